//! The tokens and the state of a sequence in a recurrent layer.

use crate::exec::Pool;
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// The next tokens of a sequence.
#[derive(Debug)]
pub struct StateChunk<'a> {
    /// Their rows.
    pub rows: Range<usize>,
    /// The states of all heads before and after them.
    pub state: &'a mut [f32],
}

/// Checks the order of the rows and the lengths of the states of some chunks. Returns the end of their rows.
///
/// # Panics
/// When rows overlap, or a state does not have `state_len` elements.
pub(super) fn check_chunks(chunks: &[StateChunk<'_>], state_len: usize) -> usize {
    assert!(chunks.iter().all(|chunk| chunk.state.len() == state_len), "states");
    let follow = |pair: &[StateChunk<'_>]| pair[0].rows.end <= pair[1].rows.start;
    assert!(chunks.windows(2).all(follow), "rows of chunks overlap");
    assert!(chunks.iter().all(|chunk| chunk.rows.start <= chunk.rows.end), "rows");
    chunks.iter().map(|chunk| chunk.rows.end).max().unwrap_or(0)
}

/// Calls `step(rows, head, state)` for each head of each chunk, on all threads. The state of a head has `head_len`
/// elements.
pub(super) fn each_head(
    pool: &Pool,
    chunks: &mut [StateChunk<'_>],
    head_len: usize,
    step: impl Fn(Range<usize>, usize, &mut [f32]) + Sync,
) {
    let mut heads = Vec::new();
    for chunk in chunks {
        let states = chunk.state.chunks_exact_mut(head_len).enumerate();
        heads.extend(states.map(|(head, state)| (chunk.rows.clone(), head, Mutex::new(state))));
    }
    pool.run(heads.len(), |task, _| {
        let (rows, head, state) = &heads[task];
        step(rows.clone(), *head, &mut state.lock().unwrap_or_else(PoisonError::into_inner));
    });
}
