//! Many sequences in one forward pass: what a server runs.
//!
//! ```text
//! Step: session A, 1 token    ┐                                    ┌ logits of A
//! Step: session B, 1 token    ├ rows of one pass through all layers├ logits of B
//! Step: session C, 300 tokens ┘                                    └ none: its prompt goes on
//! ```
//! Weights are read once for all of them. Everything that belongs to a sequence (its cache, how that is made smaller, in
//! which format it is stored) is its session's, and a session's results are the same, bit for bit, whatever runs beside
//! it, in every tier but for what linear layers of `bf16` weights and AMX batches say (see ARCHITECTURE.md).

use super::{
    Model, Session,
    forward::{Buffers, SequenceChunk},
};
use crate::error::{Error, Result};

/// One sequence's share of a pass.
#[derive(Debug)]
pub struct Step<'a, 'm> {
    /// The sequence.
    pub session: &'a mut Session<'m>,
    /// What is appended to it.
    pub tokens: &'a [u32],
    /// What is wanted of it.
    pub output: Output,
}

/// What a step gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Nothing: a prompt that is not complete.
    Nothing,
    /// The logits after its last token, `[vocab_size]`.
    Logits,
    /// The final hidden state of each token, after the output norm, `[tokens][hidden_size]`.
    Hidden,
}

/// Runs steps of many sessions of one model. Its working memory grows with the tokens of a pass.
#[derive(Debug)]
pub struct Batch<'m> {
    model: &'m Model,
    buffers: Buffers,
}

impl<'m> Batch<'m> {
    /// Of sessions of `model`.
    pub fn new(model: &'m Model) -> Self {
        Self { model, buffers: Buffers::default() }
    }

    /// Runs all steps in one pass and calls `visit(step, output)` for each that gives something, logits on all threads.
    ///
    /// A step fails alone, its session is then as it was before: too many tokens, ids outside the vocabulary, no memory
    /// for its cache. The results are in the order of the steps.
    pub fn forward(
        &mut self,
        steps: &mut [Step<'_, 'm>],
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Vec<Result<()>> {
        let before: Vec<Result<usize>> =
            steps.iter_mut().map(|step| step.session.begin_append(step.tokens)).collect();
        let outputs: Vec<Output> = steps.iter().map(|step| step.output).collect();
        let mut indices = Vec::with_capacity(steps.len());
        let mut parts = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter_mut().enumerate().filter(|(index, _)| before[*index].is_ok()) {
            let wanted = match step.output {
                Output::Nothing => 0,
                Output::Logits => 1,
                Output::Hidden => step.tokens.len(),
            };
            indices.push(index);
            parts.push(SequenceChunk::new(&mut *step.session, step.tokens, wanted));
        }
        // Rows of hidden states come with those of logits.
        let failed = self.buffers.layers(self.model, &mut parts).err();
        let mut results: Vec<Result<()>> = before.iter().map(|_| Ok(())).collect();
        for (&index, part) in indices.iter().zip(parts) {
            let result = match (&failed, part.error) {
                (_, Some(e)) => Err(e),
                (Some(e), None) => Err(Error::bad_input(e.to_string())),
                (None, None) => Ok(()),
            };
            let before = before[index].as_ref().map_or(0, |&before| before);
            results[index] = part.session.end_append(before, part.tokens, result);
        }
        for (result, before) in results.iter_mut().zip(before) {
            if let Err(e) = before {
                *result = Err(e);
            }
        }
        if failed.is_none() {
            self.hand_out(steps, &indices, &outputs, &results, visit);
        }
        results
    }

    /// Calls `visit` with what is in the buffers after a pass.
    fn hand_out(
        &mut self,
        steps: &[Step<'_, 'm>],
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
                Output::Hidden => {
                    let n = steps[index].tokens.len();
                    if results[index].is_ok() {
                        visit(index, &self.buffers.hidden(self.model, row..row + n));
                    }
                    n
                }
            };
            if outputs[index] == Output::Logits {
                self.buffers.move_row(self.model, row, with_logits.len() - 1);
            }
            row += n;
        }
        if with_logits.is_empty() {
            return;
        }
        let logits = self.buffers.logits(self.model, 0..with_logits.len());
        let vocab = self.model.vocab_size();
        self.model.pool.run(with_logits.len(), |row, _| {
            if results[with_logits[row]].is_ok() {
                visit(with_logits[row], &logits[row * vocab..(row + 1) * vocab]);
            }
        });
    }
}
