//! Earlier occurrences of the last tokens of a text, found as in LZ77: positions with the same pair of tokens form a
//! chain, newest first, and the longest match of the first positions wins. A token costs about 20 bytes.

use super::{
    DraftSource,
    gain::{CLASSES, Plan, Prior},
};
use crate::sampling::Sampler;
use std::collections::HashMap;

/// Positions of a chain that are compared.
const MAX_CANDIDATES: usize = 64;
/// Tokens that are compared before each position.
const MAX_MATCH: usize = 24;
/// No position.
const NONE: u32 = u32::MAX;
/// Lengths of matches that share a class: below each bound, and the rest.
const LENGTHS: [usize; 4] = [3, 4, 6, 12];
/// The acceptance after a match of each class. Drafting is free.
const PRIOR: Prior = Prior { classes: [0.5, 0.6, 0.7, 0.8, 0.9, 0.0, 0.0], unknown: 0.0, step: 0.0 };
const _: () = assert!(LENGTHS.len() < CLASSES);

/// Drafts of an answer from its prompt and from itself.
#[derive(Debug)]
pub(super) struct NgramSource {
    ngrams: Ngrams,
}

impl NgramSource {
    pub(super) fn new(prompt: &[u32]) -> Self {
        Self { ngrams: Ngrams::new(prompt) }
    }
}

impl DraftSource for NgramSource {
    fn prior(&self) -> Prior {
        PRIOR
    }

    fn push(&mut self, token: u32) {
        self.ngrams.push(token);
    }

    fn draft(&mut self, plan: &mut Plan<'_>, _: &Sampler) {
        let Some(found) = self.ngrams.find() else { return };
        let class = LENGTHS.iter().position(|&bound| found.length < bound).unwrap_or(LENGTHS.len());
        let mut draft = Vec::new();
        self.ngrams.continuation(found, plan.room(), &mut draft);
        for token in draft {
            if !plan.pays(Some(class)) {
                break;
            }
            plan.push(token, class);
        }
    }
}

/// A text with the positions of its pairs of tokens.
#[derive(Debug)]
struct Ngrams {
    tokens: Vec<u32>,
    /// The last position of each pair: that of its second token.
    newest: HashMap<(u32, u32), u32>,
    /// The position of the same pair before each position.
    before: Vec<u32>,
}

/// An earlier occurrence of the last tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    /// The position after it.
    next: usize,
    /// Tokens that are equal, at least 2.
    length: usize,
}

impl Ngrams {
    fn new(tokens: &[u32]) -> Self {
        let mut all = Self { tokens: Vec::new(), newest: HashMap::new(), before: Vec::new() };
        tokens.iter().for_each(|&token| all.push(token));
        all
    }

    /// Appends a token.
    fn push(&mut self, token: u32) {
        let previous = self.tokens.last().copied();
        let position = self.tokens.len() as u32;
        self.tokens.push(token);
        let before = previous.and_then(|previous| self.newest.insert((previous, token), position));
        self.before.push(before.unwrap_or(NONE));
    }

    /// The longest match of the last tokens, the newest of several.
    fn find(&self) -> Option<Found> {
        let last = self.tokens.len().checked_sub(1)?;
        let mut best: Option<Found> = None;
        let mut at = self.before[last];
        for _ in 0..MAX_CANDIDATES {
            if at == NONE {
                break;
            }
            let position = at as usize;
            let earlier = self.tokens[..=position].iter().rev();
            let length =
                earlier.zip(self.tokens.iter().rev()).take(MAX_MATCH).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|best| length > best.length) {
                best = Some(Found { next: position + 1, length });
            }
            at = self.before[position];
        }
        best
    }

    /// Writes `n` tokens that followed `found` to `draft`. Behind the end of the text, the draft follows itself.
    fn continuation(&self, found: Found, n: usize, draft: &mut Vec<u32>) {
        for position in found.next..found.next + n {
            let own = position.checked_sub(self.tokens.len()).map(|own| draft[own]);
            draft.push(own.unwrap_or_else(|| self.tokens[position]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_match_wins_and_then_the_newest() {
        let text = Ngrams::new(&[1, 2, 3, 7, 2, 3, 8, 1, 2, 3, 9, 1, 2, 3]);
        assert_eq!(text.find(), Some(Found { next: 10, length: 3 }));
        let mut draft = Vec::new();
        text.continuation(Found { next: 10, length: 3 }, 6, &mut draft);
        assert_eq!(draft, [9, 1, 2, 3, 9, 1], "a period goes on");
        assert_eq!(Ngrams::new(&[]).find(), None);
        assert_eq!(Ngrams::new(&[5]).find(), None);
        assert_eq!(Ngrams::new(&[5, 5]).find(), None);
        assert_eq!(Ngrams::new(&[5, 5, 5]).find(), Some(Found { next: 2, length: 2 }));
    }

    proptest! {
        #[test]
        fn matches_are_those_of_a_search(tokens in proptest::collection::vec(0u32..4, 0..60)) {
            let found = Ngrams::new(&tokens).find();
            let matched = |end: usize| {
                tokens[..end].iter().rev().zip(tokens.iter().rev()).take(MAX_MATCH).take_while(|(a, b)| a == b).count()
            };
            let best = (2..tokens.len()).map(matched).max().filter(|&length| length >= 2);
            prop_assert_eq!(found.map(|found| found.length), best);
            if let Some(found) = found {
                prop_assert_eq!(matched(found.next), found.length);
            }
        }
    }
}
