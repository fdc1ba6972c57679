//! Many sequences in one forward pass, for servers.
//!
//! ```text
//! Step: session A, 1 token    ┐                                    ┌ logits of A
//! Step: session B, 1 token    ├ rows of one pass through all layers├ logits of B
//! Step: session C, 300 tokens ┘                                    └ none: its prompt continues
//! ```
//! Weights are read once for all sequences. The cache of a sequence, its compression and its format belong to its
//! session. At every SIMD level, a session has the same bits with any other sessions in the batch. The exceptions are
//! linear layers of `bf16` weights and AMX batches (invariant I-integer-bits in ARCHITECTURE.md).

use super::{
    Model, Session,
    forward::{Buffers, SequenceChunk},
};
use crate::error::{Error, Result};

/// Rows of [`Output::EachLogits`] that are computed together.
const LOGIT_ROWS: usize = 32;

/// One sequence's share of a pass.
#[derive(Debug)]
pub struct Step<'a> {
    /// The sequence.
    pub session: &'a mut Session,
    /// The tokens to append.
    pub tokens: &'a [u32],
    /// The wanted output.
    pub output: Output,
}

/// The output of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Nothing: a prompt that is not complete.
    Nothing,
    /// The logits after its last token, `[vocab_size]`.
    Logits,
    /// The logits after each token: one output `[vocab_size]` per token, in their order, on the calling thread.
    EachLogits,
    /// The final hidden state of each token, after the output norm, `[tokens][hidden_size]`.
    Hidden,
}

/// Runs steps of many sessions of one model. Its scratch memory grows with the tokens of a pass.
#[derive(Debug)]
pub struct Batch {
    model: Model,
    buffers: Buffers,
}

impl Batch {
    /// A batch for sessions of `model`.
    pub fn new(model: &Model) -> Self {
        Self { model: model.clone(), buffers: Buffers::default() }
    }

    /// Runs all steps in one pass and calls `visit(step, output)` for each step with an output. Calls with logits come
    /// from all threads of the pool.
    ///
    /// If one step fails (too many tokens, an invalid id, no memory for its cache), the other steps still run, and the
    /// session of the failed step is unchanged. The results are in the order of the steps.
    pub fn forward(
        &mut self,
        steps: &mut [Step<'_>],
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Vec<Result<()>> {
        let before: Vec<Result<usize>> =
            steps.iter_mut().map(|step| step.session.begin_append(step.tokens)).collect();
        let outputs: Vec<Output> = steps.iter().map(|step| step.output).collect();
        let mut indices = Vec::with_capacity(steps.len());
        let mut chunks = Vec::with_capacity(steps.len());
        let mut tokens = Vec::new();
        for (index, step) in steps.iter_mut().enumerate().filter(|(index, _)| before[*index].is_ok()) {
            let wanted = match step.output {
                Output::Nothing => 0,
                Output::Logits => 1,
                Output::EachLogits | Output::Hidden => step.tokens.len(),
            };
            indices.push(index);
            tokens.extend_from_slice(step.tokens);
            chunks.push(SequenceChunk::new(step.session, step.tokens.len(), wanted));
        }
        // The rows of hidden states follow those of logits.
        let failed = self.model.pass(&mut self.buffers).layers(&self.model, &tokens, &mut chunks).err();
        let errors: Vec<Option<Error>> = chunks.into_iter().map(|chunk| chunk.error).collect();
        let mut results: Vec<Result<()>> = before.iter().map(|_| Ok(())).collect();
        for (&index, error) in indices.iter().zip(errors) {
            let result = match (&failed, error) {
                (_, Some(e)) => Err(e),
                (Some(e), None) => Err(Error::bad_input(e.to_string())),
                (None, None) => Ok(()),
            };
            let before = before[index].as_ref().map_or(0, |&before| before);
            let step = &mut steps[index];
            results[index] = step.session.end_append(before, step.tokens, result);
        }
        for (result, before) in results.iter_mut().zip(before) {
            if let Err(e) = before {
                *result = Err(e);
            }
        }
        if failed.is_none() {
            self.visit_outputs(steps, &indices, &outputs, &results, visit);
        }
        results
    }

    /// Calls `visit` with the outputs of a pass.
    fn visit_outputs(
        &mut self,
        steps: &[Step<'_>],
        indices: &[usize],
        outputs: &[Output],
        results: &[Result<()>],
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) {
        let mut row = 0;
        let mut with_logits = Vec::new();
        for &index in indices {
            let n = match outputs[index] {
                Output::Nothing => 0,
                Output::Logits => {
                    with_logits.push(index);
                    1
                }
                Output::EachLogits => {
                    let n = steps[index].tokens.len();
                    let vocab = self.model.vocab_size();
                    for first in (0..n).step_by(LOGIT_ROWS).filter(|_| results[index].is_ok()) {
                        let rows = row + first..row + n.min(first + LOGIT_ROWS);
                        let logits = self.buffers.logits(&self.model, rows);
                        logits.chunks_exact(vocab).for_each(|logits| visit(index, logits));
                    }
                    n
                }
                Output::Hidden => {
                    let n = steps[index].tokens.len();
                    if results[index].is_ok() {
                        visit(index, &self.model.pass(&mut self.buffers).hidden(&self.model, row..row + n));
                    }
                    n
                }
            };
            if outputs[index] == Output::Logits {
                self.buffers.move_row(self.model.config(), row, with_logits.len() - 1);
            }
            row += n;
        }
        if with_logits.is_empty() {
            return;
        }
        let logits = self.buffers.logits(&self.model, 0..with_logits.len());
        let vocab = self.model.vocab_size();
        self.model.exec().pool.run(with_logits.len(), |row, _| {
            if results[with_logits[row]].is_ok() {
                visit(with_logits[row], &logits[row * vocab..(row + 1) * vocab]);
            }
        });
    }
}
