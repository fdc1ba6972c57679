//! Merging of neighbors, lowest priority number first: the algorithm of byte-pair encoding and of SentencePiece.
//!
//! Symbols are ranges of the text. A pair of neighbors can merge if the two together are a token. The pair with the
//! lowest number merges first, of equal numbers the leftmost. The number comes from the vocabulary: the rank of the
//! merge or the order of the token's score. A heap has the pairs; a pair whose symbols have changed is recognized by
//! its length.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::vocab::Vocab;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// Bytes; 0 after the merge into its left neighbor.
    len: u32,
    prev: u32,
    next: u32,
    /// Token of a merged symbol.
    id: u32,
}

/// Reusable memory of [`Merger::run`].
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    /// Priority and left symbol in one number, then the pair's length.
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Merger {
    /// Cuts `text` into characters and merges them. `priority(id, left)` returns the priority of the token `id` of a
    /// pair with `left` bytes in its left half. Calls `emit(text, id)` for the remaining symbols, in order. A single
    /// character that is not a token has no id.
    ///
    /// `text` must be shorter than 4 GiB.
    pub(super) fn run(
        &mut self,
        vocab: &Vocab,
        text: &[u8],
        priority: impl Fn(u32, u32) -> Option<u32>,
        mut emit: impl FnMut(&[u8], Option<u32>),
    ) {
        self.symbols.clear();
        self.heap.clear();
        for (start, &byte) in (0_u32..).zip(text) {
            // Continuation bytes belong to the character before them.
            match self.symbols.last_mut() {
                Some(symbol) if byte & 0xc0 == 0x80 => symbol.len += 1,
                _ => {
                    let i = self.symbols.len() as u32;
                    self.symbols.push(Symbol {
                        start,
                        len: 1,
                        prev: i.wrapping_sub(1),
                        next: i + 1,
                        id: NONE,
                    });
                }
            }
        }
        let Some(last) = self.symbols.last_mut() else { return };
        last.next = NONE;

        for left in 0..self.symbols.len() as u32 - 1 {
            self.consider(vocab, text, &priority, left);
        }
        while let Some(Reverse((key, len))) = self.heap.pop() {
            let left = key as u32;
            let symbol = self.symbols[left as usize];
            if symbol.len == 0 || symbol.next == NONE {
                continue;
            }
            let right = self.symbols[symbol.next as usize];
            if symbol.len + right.len != len {
                continue;
            }
            self.symbols[symbol.next as usize].len = 0;
            let start = symbol.start as usize;
            let id = vocab.id(&text[start..start + len as usize]).unwrap_or(NONE);
            self.symbols[left as usize] = Symbol { len, next: right.next, id, ..symbol };
            if right.next != NONE {
                self.symbols[right.next as usize].prev = left;
            }
            self.consider(vocab, text, &priority, symbol.prev);
            self.consider(vocab, text, &priority, left);
        }
        for symbol in self.symbols.iter().filter(|s| s.len > 0) {
            let text = &text[symbol.start as usize..][..symbol.len as usize];
            let id = if symbol.id == NONE { vocab.id(text) } else { Some(symbol.id) };
            emit(text, id);
        }
    }

    /// Puts the pair of `left` and its right neighbor on the heap if it can merge.
    #[inline]
    fn consider(
        &mut self,
        vocab: &Vocab,
        text: &[u8],
        priority: &impl Fn(u32, u32) -> Option<u32>,
        left: u32,
    ) {
        let Some(symbol) = self.symbols.get(left as usize) else { return };
        let Some(right) = self.symbols.get(symbol.next as usize) else { return };
        let len = symbol.len + right.len;
        let start = symbol.start as usize;
        let Some(id) = vocab.id(&text[start..start + len as usize]) else { return };
        if let Some(priority) = priority(id, symbol.len) {
            self.heap.push(Reverse((u64::from(priority) << 32 | u64::from(left), len)));
        }
    }
}
