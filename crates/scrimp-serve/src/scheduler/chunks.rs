//! The chunks of a prompt: fixed positions at which they end.
//!
//! ```text
//! prompt   |<--- block --->|<--- block --->|<--- block --->|<- end ->|  answer: one token at a time
//!          0              64             128             192       230
//! chunks   one or more blocks, the end, or the last blocks with the end
//! ```
//! The rounding of a token's results depends on the kernel that computes it. Linear layers choose it by the number of
//! tokens ([`scrimp_llm::model::Batch`]), and attention has a kernel for few rows and one for many. So that both choices
//! depend on the prompt only:
//!
//! * A chunk consists of whole blocks, counted from the beginning of the prompt, or it reaches the end of the prompt.
//! * The end behind the last block is a chunk of its own if it is short ([`LONG_END`]) or if `separate_ends` says so.
//! * No chunk crosses a multiple of [`PIECE`], where integer KV caches are packed.
//! * Tokens of the answer that are computed again after a preemption are computed one by one, as before it.
//!
//! A prefix from the cache ends at a block, so that the chunks behind it are those of a prompt without it. Only the prefix
//! of a compressed cache can end elsewhere; the first chunk then ends at the next block.

use super::prefix::BLOCK_SIZE;
use scrimp_llm::model::PIECE;

/// Tokens of the shortest end that may share a chunk with blocks: attention computes it with the kernel for many rows.
const LONG_END: usize = 25;

/// The tokens of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunks {
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Tokens of the prompt and the answer.
    pub(super) total: usize,
    /// The end behind the last block is always a chunk of its own.
    pub(super) separate_ends: bool,
}

impl Chunks {
    /// Tokens of the longest chunk from token `at` on that has at most `room` tokens. 0: none is that short.
    pub(super) fn next(self, at: usize, room: usize) -> usize {
        let last = (at + room).min((at / PIECE + 1) * PIECE);
        self.ends(at).take_while(|&end| end <= last).last().map_or(0, |end| end - at)
    }

    /// Tokens of the shortest chunk from token `at` on.
    pub(super) fn smallest(self, at: usize) -> usize {
        self.ends(at).next().map_or(0, |end| end - at)
    }

    /// The possible ends of a chunk from token `at` on, in ascending order.
    fn ends(self, at: usize) -> impl Iterator<Item = usize> {
        let end_of_blocks = self.prompt / BLOCK_SIZE * BLOCK_SIZE;
        let blocks = ((at / BLOCK_SIZE + 1) * BLOCK_SIZE..=end_of_blocks).step_by(BLOCK_SIZE);
        let end = self.prompt - end_of_blocks;
        let joins = at >= end_of_blocks || end >= LONG_END && !self.separate_ends;
        let whole = (at < self.prompt && end > 0 && joins).then_some(self.prompt);
        let answer = (at >= self.prompt && at < self.total).then_some(at + 1);
        blocks.chain(whole).chain(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunks of a request with rooms from an iterator.
    fn chunks(chunks: Chunks, mut rooms: impl Iterator<Item = usize>) -> Vec<usize> {
        let (mut at, mut all) = (0, Vec::new());
        while at < chunks.total {
            let n = match chunks.next(at, rooms.next().unwrap_or(512)) {
                0 => chunks.smallest(at),
                n => n,
            };
            all.push(n);
            at += n;
        }
        all
    }

    #[test]
    fn chunks_end_at_fixed_positions() {
        let of = |prompt, total, separate_ends| Chunks { prompt, total, separate_ends };
        for (c, want) in [
            (of(1, 1, false), vec![1]),
            (of(63, 64, false), vec![63, 1]),
            (of(64, 64, false), vec![64]),
            (of(70, 70, false), vec![64, 6]),
            (of(100, 100, false), vec![100]),
            (of(100, 100, true), vec![64, 36]),
            (of(100, 103, true), vec![64, 36, 1, 1, 1]),
            (of(1200, 1200, false), vec![512, 512, 176]),
        ] {
            assert_eq!(chunks(c, [].into_iter()), want, "{c:?}");
        }
        assert_eq!(of(500, 500, false).next(64, 130), 128);
        assert_eq!(of(500, 500, false).next(64, 63), 0);
        assert_eq!(of(500, 500, false).next(70, 512), 430);
        assert_eq!(of(70, 70, false).next(40, 512), 24);
    }

    /// The kernels of each token, as far as they depend on its chunk: few or many rows, whole blocks or not.
    fn kernels(chunks: &[usize], separate_ends: bool) -> Vec<(bool, bool)> {
        let (mut at, mut all) = (0, Vec::new());
        for &n in chunks {
            let is_blocks = separate_ends && at % BLOCK_SIZE == 0 && n % BLOCK_SIZE == 0;
            all.extend(std::iter::repeat_n((n >= LONG_END, is_blocks), n));
            at += n;
        }
        all
    }

    #[test]
    fn kernels_of_a_token_depend_on_its_prompt_only() {
        let mut random = scrimp_base::SplitMix64::new(1);
        for _ in 0..2000 {
            let prompt = 1 + random.below(1500) as usize;
            let total = prompt + random.below(5) as usize;
            for separate_ends in [false, true] {
                let request = Chunks { prompt, total, separate_ends };
                let alone = chunks(request, [].into_iter());
                let rooms: Vec<usize> = (0..100).map(|_| random.below(600) as usize).collect();
                let beside_others = chunks(request, rooms.into_iter());
                for all in [&alone, &beside_others] {
                    let mut at = 0;
                    for n in all {
                        assert!(at / PIECE == (at + n - 1) / PIECE, "{request:?}: {all:?}");
                        at += n;
                    }
                }
                let (a, b) = (kernels(&alone, separate_ends), kernels(&beside_others, separate_ends));
                assert_eq!(a, b, "{request:?}: {alone:?} {beside_others:?}");
            }
        }
    }
}
