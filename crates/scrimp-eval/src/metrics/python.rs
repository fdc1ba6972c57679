//! String functions of Python that metrics depend on and that Rust lacks.

use regex_automata::{
    Input,
    hybrid::dfa::{Cache, DFA},
};
use std::sync::OnceLock;

/// `string.punctuation`.
pub(super) fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
}

/// `str.isspace`: Unicode's white space, and four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text.split()`.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// `re.findall(r"\d+", text)`: runs of decimal digits of any script.
pub(super) fn digits(text: &str) -> Vec<&str> {
    static PATTERN: OnceLock<Option<DFA>> = OnceLock::new();
    let Some(dfa) = PATTERN.get_or_init(|| DFA::new(r"\d").ok()) else { return Vec::new() };
    let mut cache = Cache::new(dfa);
    let mut is_digit = |piece: &str| {
        piece.is_ascii() && piece.as_bytes()[0].is_ascii_digit()
            || !piece.is_ascii()
                && dfa.try_search_fwd(&mut cache, &Input::new(piece)).is_ok_and(|found| found.is_some())
    };
    let mut runs = Vec::new();
    let mut start = None;
    for (at, c) in text.char_indices() {
        match (is_digit(&text[at..at + c.len_utf8()]), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                runs.push(&text[from..at]);
                start = None;
            }
            _ => {}
        }
    }
    runs.extend(start.map(|from| &text[from..]));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_and_words() {
        assert_eq!(digits("a12b3 ４５x²"), ["12", "3", "４５"]);
        assert_eq!(digits("99"), ["99"]);
        assert!(digits("none").is_empty());
        assert_eq!(split(" a\u{1d}b\u{3000}c ").collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
