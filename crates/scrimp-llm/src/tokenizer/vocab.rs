//! The vocabulary: the texts of all tokens in one buffer, an index from text to id, and the kinds of tokens.
//!
//! A vocabulary of 262,144 tokens is built at every start. It takes two passes over the file's bytes and no allocation
//! per token:
//!
//! ```text
//! text   t h e o f ...                 all texts, one after another
//! ends   3 5 ...                       the end of text i
//! slots  [tag | id + 1]                open addressing, linear probing, at most half full;
//!                                      the tag holds the hash bits that the id leaves free
//! ```

use std::hash::{BuildHasher, Hasher, RandomState};

/// The kind of a token: `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Ordinary text.
    Normal,
    /// Represents text that the vocabulary cannot spell.
    Unknown,
    /// Structure of the conversation or document, not text.
    Control,
    /// Text that is cut out first.
    UserDefined,
    /// An unused entry of the vocabulary.
    Unused,
    /// One byte, written `<0xXX>`.
    Byte,
}

impl Kind {
    /// The kind with GGUF's number.
    pub(super) fn from_gguf(kind: i32) -> Self {
        match kind {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Texts, index and kinds of all tokens.
pub(super) struct Vocab {
    text: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    slots: Vec<u32>,
    /// Bits of a slot that hold id + 1.
    id_bits: u32,
    seed: u64,
    /// Bytes of the longest text.
    longest: usize,
}

/// Maximum number of tokens (the largest known vocabularies have some 260,000).
pub(super) const MAX_TOKENS: usize = 1 << 24;

impl Vocab {
    /// A vocabulary of `texts`, all of them `Kind::Normal`, or `None` when there are more than [`MAX_TOKENS`] tokens
    /// or 4 GiB of text. Of equal texts, the first is in the index; empty texts are not found.
    pub(super) fn new<'a>(texts: impl ExactSizeIterator<Item = &'a [u8]>, bytes_hint: usize) -> Option<Self> {
        let count = texts.len();
        if count > MAX_TOKENS {
            return None;
        }
        let mut vocab = Self {
            text: Vec::with_capacity(bytes_hint),
            ends: Vec::with_capacity(count),
            kinds: vec![Kind::Normal; count],
            slots: vec![0; (count * 2).next_power_of_two().max(2)],
            id_bits: usize::BITS - count.leading_zeros(),
            seed: RandomState::new().build_hasher().finish(),
            longest: 0,
        };
        for (id, text) in (0_u32..).zip(texts) {
            vocab.text.extend_from_slice(text);
            vocab.ends.push(u32::try_from(vocab.text.len()).ok()?);
            vocab.longest = vocab.longest.max(text.len());
            if text.is_empty() {
                continue;
            }
            if let Err(slot) = vocab.find(text) {
                vocab.slots[slot] = vocab.tag(vocab.hash(text)) | (id + 1);
            }
        }
        Some(vocab)
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The stored text of token `id`; empty when there is no such token.
    pub(super) fn text(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.text[start as usize..end as usize]
    }

    /// Kind of token `id`.
    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// Changes the kind of token `id`.
    pub(super) fn set_kind(&mut self, id: u32, kind: Kind) {
        if let Some(k) = self.kinds.get_mut(id as usize) {
            *k = kind;
        }
    }

    /// Id of the token whose text is `text`.
    #[inline]
    pub(super) fn id(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest { None } else { self.find(text).ok() }
    }

    /// The id of `text`, or the free slot for it.
    #[inline]
    fn find(&self, text: &[u8]) -> Result<u32, usize> {
        let hash = self.hash(text);
        let (tag, mask) = (self.tag(hash), self.slots.len() - 1);
        let id_mask = (1_u64 << self.id_bits) as u32 - 1;
        let mut slot = hash as usize & mask;
        loop {
            let entry = self.slots[slot];
            if entry == 0 {
                return Err(slot);
            }
            let id = (entry & id_mask) - 1;
            if entry & !id_mask == tag && self.text(id) == text {
                return Ok(id);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// The upper bits of `hash`: the bits of a slot that are not the id.
    #[inline]
    fn tag(&self, hash: u64) -> u32 {
        ((hash >> 32) as u32) & !((1_u64 << self.id_bits) as u32 - 1)
    }

    /// A multiply-and-fold hash. The seed is random, so no file can be constructed to collide.
    #[inline]
    fn hash(&self, text: &[u8]) -> u64 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold = |x: u64| {
            let wide = u128::from(x) * u128::from(ODD);
            (wide as u64) ^ (wide >> 64) as u64
        };
        let mut hash = self.seed ^ text.len() as u64;
        let (words, tail) = text.as_chunks::<8>();
        for word in words {
            hash = fold(hash ^ u64::from_le_bytes(*word)) ^ self.seed;
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        fold(fold(hash ^ u64::from_le_bytes(last)) ^ self.seed)
    }
}

/// The special tokens, which are cut out of a text first.
///
/// Texts are sorted. Narrowing a range byte by byte searches them like a trie.
pub(super) struct Specials {
    /// Text, id, and whether the token includes the white space after it.
    sorted: Vec<(Box<[u8]>, u32, bool)>,
    /// Range of `sorted` that starts with each byte.
    by_first: Vec<(u32, u32)>,
}

/// A special token found in a text.
pub(super) struct SpecialMatch {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) id: u32,
    pub(super) strip_after: bool,
}

impl Specials {
    /// Builds the index of tokens with their texts. Empty texts are left out.
    pub(super) fn new(tokens: impl Iterator<Item = (Box<[u8]>, u32, bool)>) -> Self {
        let mut sorted: Vec<_> = tokens.filter(|(text, ..)| !text.is_empty()).collect();
        sorted.sort_unstable();
        let mut by_first = vec![(0, 0); 256];
        for (i, (text, ..)) in (0_u32..).zip(&sorted) {
            let (start, end) = &mut by_first[usize::from(text[0])];
            if *end == 0 {
                *start = i;
            }
            *end = i + 1;
        }
        Self { sorted, by_first }
    }

    /// The first token at or after byte `from` for which `wanted(id)`; of several that start there, the longest.
    pub(super) fn find(
        &self,
        text: &[u8],
        from: usize,
        wanted: impl Fn(u32) -> bool,
    ) -> Option<SpecialMatch> {
        (from..text.len()).find_map(|start| {
            let (mut lo, mut hi) = self.by_first[usize::from(text[start])];
            let mut best = None;
            let mut depth = 1;
            while lo < hi {
                let range = &self.sorted[lo as usize..hi as usize];
                // Of the texts that share `depth` bytes, one that ends here sorts first.
                let done = range.partition_point(|(t, ..)| t.len() == depth);
                for (_, id, strip_after) in range[..done].iter().filter(|(_, id, _)| wanted(*id)).take(1) {
                    best =
                        Some(SpecialMatch { start, end: start + depth, id: *id, strip_after: *strip_after });
                }
                let Some(&next) = text.get(start + depth) else { break };
                let range = &range[done..];
                let first = range.partition_point(|(t, ..)| t[depth] < next);
                let count = range[first..].partition_point(|(t, ..)| t[depth] == next);
                lo += (done + first) as u32;
                hi = lo + count as u32;
                depth += 1;
            }
            best
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_text_and_nothing_else() {
        let texts: Vec<String> = (0..5000).map(|i| format!("t{}", i * 7)).collect();
        let vocab = Vocab::new(texts.iter().map(String::as_bytes), 0).unwrap();
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(vocab.id(text.as_bytes()), Some(i as u32));
            assert_eq!(vocab.text(i as u32), text.as_bytes());
        }
        assert_eq!(vocab.id(b"t1"), None);
        assert_eq!(vocab.id(b""), None);
        assert_eq!(vocab.id(b"t7 and much more than the longest"), None);
        assert_eq!(vocab.text(5000), b"");
    }

    #[test]
    fn first_of_equal_texts_wins_and_odd_sizes_work() {
        for n in 0..40 {
            let texts: Vec<Vec<u8>> = (0..n).map(|i| vec![b'a' + i % 3; 1 + usize::from(i % 5)]).collect();
            let vocab = Vocab::new(texts.iter().map(Vec::as_slice), 0).unwrap();
            for text in &texts {
                assert_eq!(vocab.id(text), texts.iter().position(|t| t == text).map(|i| i as u32));
            }
        }
    }

    #[test]
    fn specials_are_leftmost_longest() {
        let texts = ["<a>", "<a><b>", "<", "\n", "\n\n", "\n\n\n"];
        let specials = Specials::new((0..).zip(texts).map(|(i, t)| (t.as_bytes().into(), i, false)));
        let all = |text: &str, skip: u32| {
            let mut found = Vec::new();
            let mut at = 0;
            while let Some(m) = specials.find(text.as_bytes(), at, |id| id != skip) {
                found.push((m.start, m.id));
                at = m.end;
            }
            found
        };
        assert_eq!(all("x<a><b>", 9), [(1, 1)]);
        assert_eq!(all("x<a><b>", 1), [(1, 0), (4, 2)]);
        assert_eq!(all("<a><c", 9), [(0, 0), (3, 2)]);
        assert_eq!(all("\n\n\n\n\n-\n", 9), [(0, 5), (3, 4), (6, 3)]);
        assert_eq!(all("", 9), []);
    }
}
