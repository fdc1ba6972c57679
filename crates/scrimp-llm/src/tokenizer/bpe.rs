//! Byte-pair encoding over GPT-2's byte alphabet.
//!
//! GGUF lists merges as texts such as `"Ġ t"`: two halves, best merge first. A merge makes one token, and its position
//! in the list is its rank. There is no map of pairs. Instead, each token has the rank of its merge and the length of
//! its left half: two neighbors are one range of the text, so one lookup of this range shows whether they may merge.
//! The table is built in one pass over the list, because successive merges mostly make successive tokens.

use std::collections::HashMap;

use super::{
    alphabet::Alphabet,
    merge::Merger,
    pretokenize::Splitter,
    vocab::{Kind, Vocab},
};
use crate::error::Result;
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfc_quick};

/// The merges of all tokens, with their ranks.
pub(super) struct Ranks {
    /// For each token, the rank of its first merge and the bytes of the left half; `(MAX, 0)` without a merge.
    first: Vec<(u32, u32)>,
    /// Further merges of the same token, by token and left half (in vocabularies converted from tiktoken).
    others: HashMap<(u32, u32), u32>,
}

impl Ranks {
    /// Reads GGUF's list. Merges without a token in the vocabulary are left out.
    pub(super) fn new<'a>(vocab: &Vocab, merges: impl ExactSizeIterator<Item = &'a [u8]>) -> Self {
        let mut first = vec![(u32::MAX, 0); vocab.len()];
        let mut others = HashMap::new();
        let mut last = 0_u32;
        let mut whole = Vec::new();
        for (rank, merge) in (0_u32..).zip(merges) {
            // A space as the first character is part of the left half.
            let Some(space) = merge.iter().skip(1).position(|&b| b == b' ') else { continue };
            let (left, right) = (&merge[..=space], &merge[space + 2..]);
            let makes = |id: u32| {
                let text = vocab.text(id);
                text.len() == left.len() + right.len() && text.starts_with(left) && text.ends_with(right)
            };
            let guess = [last + 1, last].into_iter().find(|&id| makes(id));
            let found = guess.or_else(|| {
                whole.clear();
                whole.extend_from_slice(left);
                whole.extend_from_slice(right);
                vocab.id(&whole)
            });
            let Some(id) = found else { continue };
            last = id;
            let place = &mut first[id as usize];
            if place.0 == u32::MAX {
                *place = (rank, left.len() as u32);
            } else if place.1 != left.len() as u32 {
                others.entry((id, left.len() as u32)).or_insert(rank);
            }
        }
        Self { first, others }
    }

    /// Rank of the merge that makes token `id` with a left half of `left` bytes.
    #[inline]
    pub(super) fn rank(&self, id: u32, left: u32) -> Option<u32> {
        match self.first[id as usize] {
            (u32::MAX, _) => None,
            (rank, at) if at == left => Some(rank),
            _ if self.others.is_empty() => None,
            _ => self.others.get(&(id, left)).copied(),
        }
    }
}

/// The engine: cuts a text into words, then merges inside each word.
pub(super) struct Bpe {
    pub(super) splitter: Splitter,
    pub(super) ranks: Ranks,
    pub(super) ignore_merges: bool,
    /// Texts are normalized to Unicode's form NFC first.
    pub(super) nfc: bool,
    pub(super) alphabet: Alphabet,
    pub(super) unknown: Option<u32>,
}

impl Bpe {
    /// Appends the ids of `text`.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let normalized: String;
        let text = match self.nfc && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            true => {
                normalized = text.nfc().collect();
                normalized.as_str()
            }
            false => text,
        };
        let mut merger = Merger::default();
        let mut spelled = Vec::new();
        let mut seen: HashMap<&str, (usize, usize)> = HashMap::new();
        self.splitter.split(text, |word| {
            if let Some(&(start, end)) = seen.get(word) {
                ids.extend_from_within(start..end);
                return;
            }
            spelled.clear();
            self.alphabet.encode(word.as_bytes(), &mut spelled);
            let start = ids.len();
            match vocab.id(&spelled).filter(|_| self.ignore_merges) {
                Some(id) => ids.push(id),
                None => merger.run(
                    vocab,
                    &spelled,
                    |id, left| self.ranks.rank(id, left),
                    // Characters outside the vocabulary: only damaged vocabularies lack bytes.
                    |_, id| ids.extend(id.or(self.unknown)),
                ),
            }
            seen.insert(word, (start, ids.len()));
        })
    }
}

/// The token for unknown text, if the vocabulary has one.
pub(super) fn unknown(vocab: &Vocab, id: Option<u32>) -> Option<u32> {
    id.filter(|&id| vocab.kind(id) == Some(Kind::Unknown))
}
