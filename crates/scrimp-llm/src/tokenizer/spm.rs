//! SentencePiece as in Llama 2 and Gemma: characters are merged in the order of the tokens' scores over the whole text.
//! Text without a token becomes bytes.
//!
//! Most vocabularies have scores and no list of merges: any two neighbors that together are a token may merge, the highest
//! score first. That of Gemma 4 has a list of merges.

use super::{bpe::Ranks, merge::Merger, piece::SPACE_MARK, vocab::Vocab};

/// The order of merges.
pub(super) enum Order {
    /// The position of each token, smaller first.
    Scores(Vec<u32>),
    /// A list of merges.
    Merges(Ranks),
}

impl Order {
    /// The order of the tokens' scores (missing scores are 0).
    pub(super) fn of_scores(vocab: &Vocab, scores: &[f32]) -> Self {
        let mut order: Vec<u32> = scores.iter().take(vocab.len()).map(|&s| self::order(s)).collect();
        order.resize(vocab.len(), self::order(0.0));
        Self::Scores(order)
    }
}

/// The engine.
pub(super) struct Spm {
    order: Order,
    /// Tokens of the 256 bytes.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    /// Adds a space before a text, and before the text after a special token.
    pub(super) add_space_prefix: bool,
}

/// Smaller for higher scores; equal for equal ones.
fn order(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0.0 becomes 0.0
    if bits >> 31 == 0 { !(bits | 1 << 31) } else { bits }
}

impl Spm {
    /// An engine that merges in `order`.
    pub(super) fn new(vocab: &Vocab, order: Order, unknown: Option<u32>, add_space_prefix: bool) -> Self {
        let bytes = (0..=255_u8).map(|b| vocab.id(format!("<0x{b:02X}>").as_bytes())).collect();
        Self { order, bytes, unknown, add_space_prefix }
    }

    /// Appends the ids of `text`. `at_start`: `text` begins a text or follows a special token.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, at_start: bool, ids: &mut Vec<u32>) {
        let mut marked = Vec::with_capacity(text.len() + text.len() / 2);
        if at_start && self.add_space_prefix {
            marked.extend_from_slice(SPACE_MARK.as_bytes());
        }
        for &byte in text.as_bytes() {
            match byte {
                b' ' => marked.extend_from_slice(SPACE_MARK.as_bytes()),
                _ => marked.push(byte),
            }
        }
        Merger::default().run(
            vocab,
            &marked,
            |id, left| match &self.order {
                Order::Scores(order) => Some(order[id as usize]),
                Order::Merges(ranks) => ranks.rank(id, left),
            },
            |text, id| match id {
                Some(id) => ids.push(id),
                None => {
                    let bytes = text.iter().map(|&b| self.bytes[usize::from(b)].or(self.unknown));
                    ids.extend(bytes.flatten());
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn higher_scores_come_first() {
        let scores = [f32::INFINITY, 1.5, 1.0, 1e-30, 0.0, -1e-30, -1.0, -236_280.0, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|w| order(w[0]) < order(w[1])));
        assert_eq!(order(0.0), order(-0.0));
    }
}
