//! Bounds the digits of numbers in generated JSON.
//!
//! The grammar of a JSON number is endless. A model that repeats `0` after `100` never leaves it. A number gets at most
//! [`MAX_DIGITS`] digits before its point, as many behind it, and [`MAX_EXPONENT`] digits in its exponent. A schema that
//! demands more digits (`const`, `minimum`) gets them: the bound applies only where the grammar allows another token.
//!
//! 19 digits hold every identifier of 63 bits, and more than the 17 significant digits of a double.

use std::sync::Arc;

/// Maximum number of digits before and behind the decimal point.
const MAX_DIGITS: usize = 19;
/// Maximum number of digits of an exponent.
const MAX_EXPONENT: usize = 2;

/// Tokens that begin with digits, and the bytes of all tokens.
#[derive(Debug)]
pub(super) struct Digits {
    /// Token id and number of leading digits.
    leading: Vec<(u32, usize)>,
    words: Vec<Vec<u8>>,
}

impl Digits {
    /// `words`: the bytes of each token.
    pub(super) fn new(words: Vec<Vec<u8>>) -> Self {
        let leading = (0..)
            .zip(&words)
            .map(|(id, word)| (id, word.iter().take_while(|byte| byte.is_ascii_digit()).count()))
            .filter(|&(_, digits)| digits > 0)
            .collect();
        Self { leading, words }
    }
}

/// The position within the generated JSON.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// Between strings and numbers.
    Outside,
    /// In a string; true: behind a backslash.
    String(bool),
    /// In a number: digits of the current part, and whether this is the exponent.
    Number { digits: usize, exponent: bool },
}

/// Follows the generated JSON.
#[derive(Debug)]
pub(super) struct Numbers {
    digits: Arc<Digits>,
    place: Place,
}

impl Numbers {
    pub(super) fn new(digits: Arc<Digits>) -> Self {
        Self { digits, place: Place::Outside }
    }

    /// Follows a generated token.
    pub(super) fn accept(&mut self, token: u32) {
        for &byte in self.digits.words.get(token as usize).into_iter().flatten() {
            self.place = next(self.place, byte);
        }
    }

    /// Sets the logits of tokens that exceed the bound to minus infinity, unless no other token is left.
    pub(super) fn bound(&self, logits: &mut [f32]) {
        let Place::Number { digits, exponent } = self.place else { return };
        let limit = if exponent { MAX_EXPONENT } else { MAX_DIGITS };
        let mut removed = Vec::new();
        for &(id, leading) in &self.digits.leading {
            if let Some(logit) = logits.get_mut(id as usize)
                && digits + leading > limit
                && *logit > f32::NEG_INFINITY
            {
                removed.push((id, std::mem::replace(logit, f32::NEG_INFINITY)));
            }
        }
        if !removed.is_empty() && !logits.iter().any(|&logit| logit > f32::NEG_INFINITY) {
            removed.into_iter().for_each(|(id, logit)| logits[id as usize] = logit);
        }
    }
}

/// The place behind `byte`.
fn next(place: Place, byte: u8) -> Place {
    match (place, byte) {
        (Place::String(true), _) => Place::String(false),
        (Place::String(false), b'\\') => Place::String(true),
        (Place::String(false), b'"') => Place::Outside,
        (Place::String(false), _) => place,
        (_, b'"') => Place::String(false),
        (Place::Number { digits, exponent }, b'0'..=b'9') => Place::Number { digits: digits + 1, exponent },
        (_, b'0'..=b'9') => Place::Number { digits: 1, exponent: false },
        (Place::Number { .. }, b'.') => Place::Number { digits: 0, exponent: false },
        (Place::Number { .. }, b'e' | b'E') => Place::Number { digits: 0, exponent: true },
        (Place::Number { exponent: true, .. }, b'+' | b'-') => place,
        (Place::Outside | Place::Number { .. }, _) => Place::Outside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_of_numbers_are_counted() {
        let after = |text: &str| text.bytes().fold(Place::Outside, next);
        for (text, digits, exponent) in [
            ("{\"a 99\": -12", 2, false),
            ("[1, 234", 3, false),
            ("0.25", 2, false),
            ("1e-1", 1, true),
            ("7E", 0, true),
        ] {
            assert_eq!(after(text), Place::Number { digits, exponent }, "{text}");
        }
        for text in ["{\"a\": 1}", "[1, ", "true", "", "\"a\\\"9\""] {
            assert_eq!(after(text), Place::Outside, "{text}");
        }
        assert_eq!(after("\"\\\"9"), Place::String(false));
    }

    #[test]
    fn numbers_end_unless_they_must_go_on() {
        let words = ["0", "123", ",", "}", ".5", "a"].map(|word| word.as_bytes().to_vec()).to_vec();
        let mut numbers = Numbers::new(Arc::new(Digits::new(words)));
        let allowed = |numbers: &Numbers, mask: [bool; 6]| {
            let mut logits = mask.map(|allowed| if allowed { 0.0 } else { f32::NEG_INFINITY });
            numbers.bound(&mut logits);
            logits.map(|logit| logit > f32::NEG_INFINITY)
        };
        let any = [true; 6];
        assert_eq!(allowed(&numbers, any), any);
        (0..MAX_DIGITS - 2).for_each(|_| numbers.accept(0));
        assert_eq!(allowed(&numbers, any), [true, false, true, true, true, true]);
        (0..2).for_each(|_| numbers.accept(0));
        assert_eq!(allowed(&numbers, any), [false, false, true, true, true, true]);
        let forced = [true, false, false, false, false, false];
        assert_eq!(allowed(&numbers, forced), forced);
        numbers.accept(4);
        assert_eq!(allowed(&numbers, any), any);
    }
}
