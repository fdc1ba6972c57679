//! Attention of many sequences at once.

use crate::{
    error::KvError,
    sequence::{AttentionInputs, Sequence},
};
use scrimp_kernels::{
    Pool,
    attention::{AttentionCall, AttentionScratch, attend_batch},
};

/// One sequence and its queries.
#[derive(Debug)]
pub struct BatchEntry<'a> {
    /// Whose keys and values are read.
    pub sequence: &'a Sequence,
    /// The queries, and where the result goes. Column sums are not gathered: sequences that want them attend alone.
    pub inputs: AttentionInputs<'a>,
}

/// [`Sequence::attend`] for many sequences in one parallel region. The result of each is the same, bit for bit, as if it
/// had attended alone.
///
/// # Errors
/// When the shapes of an entry do not fit.
pub fn attend_all(
    layer: usize,
    entries: &mut [BatchEntry<'_>],
    pool: &Pool,
    scratch: &mut AttentionScratch,
) -> Result<(), KvError> {
    let views = entries.iter().map(|e| e.sequence.causal(layer, &e.inputs)).collect::<Result<Vec<_>, _>>()?;
    let calls = entries.iter_mut().zip(&views);
    let mut calls: Vec<_> = calls
        .map(|(entry, view)| AttentionCall {
            args: view.args(&entry.sequence.shared, &entry.inputs),
            out: &mut *entry.inputs.out,
        })
        .collect();
    attend_batch(&mut calls, pool, scratch);
    Ok(())
}
