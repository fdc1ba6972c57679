//! Attention of many sequences at once.

use crate::{
    error::KvError,
    sequence::{AttentionInputs, Sequence},
};
use scrimp_kernels::{
    Exec,
    attention::{AttentionCall, AttentionScratch, attend_batch},
};

/// One sequence and its queries.
#[derive(Debug)]
pub struct BatchEntry<'a> {
    /// The sequence with the keys and values.
    pub sequence: &'a Sequence,
    /// The queries and the result. [`AttentionInputs::scores`] is ignored: use [`Sequence::attend`] to accumulate
    /// scores.
    pub inputs: AttentionInputs<'a>,
}

/// [`Sequence::attend`] for many sequences in one parallel region. Each result has the same bits as that of
/// [`Sequence::attend`].
///
/// # Errors
/// When the shapes of an entry do not fit.
pub fn attend_all(
    layer: usize,
    entries: &mut [BatchEntry<'_>],
    exec: Exec<'_>,
    scratch: &mut AttentionScratch,
) -> Result<(), KvError> {
    let views =
        entries.iter().map(|e| e.sequence.causal_view(layer, &e.inputs)).collect::<Result<Vec<_>, _>>()?;
    let calls = entries.iter_mut().zip(&views);
    let mut calls: Vec<_> = calls
        .map(|(entry, view)| AttentionCall { args: view.args(&entry.inputs), out: &mut *entry.inputs.out })
        .collect();
    attend_batch(exec, &mut calls, scratch);
    Ok(())
}
