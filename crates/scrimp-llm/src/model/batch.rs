//! Many sequences in one forward pass, for servers.
//!
//! ```text
//! Step: session A, 1 token    ┐                                    ┌ logits of A
//! Step: session B, 1 token    ├ rows of one pass through all layers├ logits of B
//! Step: session C, 300 tokens ┘                                    └ none: its prompt continues
//! ```
//! Weights are read once for all sequences. The cache of a sequence, its compression and its format belong to its
//! session. The results of a session do not depend on the other sessions, bit for bit.
//!
//! With AMX, linear layers of large batches multiply in bf16, so the size of a batch would change results. Steps that are
//! whole blocks of [`BLOCK_TOKENS`] tokens, from a multiple of that on, therefore run in a pass of their own, which is
//! always large. All other steps (decoding, ends of prompts) run in a second pass at the [exact
//! level](scrimp_kernels::SimdLevel::exact), and so do the steps behind the attention of the last layer.

use super::{Model, Session, chunk::SequenceChunk, forward::Buffers};
use crate::error::{Error, Result};
use scrimp_kernels::SimdLevel;

/// Tokens of a block of a prompt.
pub const BLOCK_TOKENS: usize = 64;
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

impl Step<'_> {
    /// Whether the step is whole blocks of a prompt.
    fn is_blocks(&self) -> bool {
        is_blocks(self.session.len(), self.tokens.len())
    }
}

/// Whether `n` tokens from position `first` on are whole blocks.
fn is_blocks(first: usize, n: usize) -> bool {
    first.is_multiple_of(BLOCK_TOKENS) && n.is_multiple_of(BLOCK_TOKENS)
}

/// `tokens`, the beginning of a text, in parts for successive steps: whole blocks of at most `most` tokens, then the rest.
pub fn prompt_parts(tokens: &[u32], most: usize) -> impl Iterator<Item = &[u32]> {
    let (blocks, rest) = tokens.split_at(tokens.len() / BLOCK_TOKENS * BLOCK_TOKENS);
    let most = (most / BLOCK_TOKENS).max(1) * BLOCK_TOKENS;
    blocks.chunks(most).chain([rest]).filter(|part| !part.is_empty())
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

    /// Runs all steps and calls `visit(step, output)` for each step with an output. Calls with logits come
    /// from all threads of the pool.
    ///
    /// If one step fails (too many tokens, an invalid id, no memory for its cache), the other steps still run, and the
    /// session of the failed step is unchanged. The results are in the order of the steps.
    pub fn forward(
        &mut self,
        steps: &mut [Step<'_>],
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = steps.iter().map(|_| Ok(())).collect();
        for indices in passes(self.model.level(), steps.iter().map(Step::is_blocks)) {
            self.pass(steps, indices, &mut results, visit);
        }
        results
    }

    /// Runs the steps `indices` in one pass.
    fn pass(
        &mut self,
        steps: &mut [Step<'_>],
        mut indices: Vec<usize>,
        results: &mut [Result<()>],
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) {
        let exact = !indices.iter().all(|&index| steps[index].is_blocks());
        let mut before = vec![0; steps.len()];
        indices.retain(|&index| {
            let step = &mut steps[index];
            match step.session.begin_append(step.tokens) {
                Ok(length) => before[index] = length,
                Err(e) => results[index] = Err(e),
            }
            results[index].is_ok()
        });
        let outputs: Vec<Output> = steps.iter().map(|step| step.output).collect();
        let (mut chunks, mut tokens) = (Vec::with_capacity(indices.len()), Vec::new());
        for (index, step) in steps.iter_mut().enumerate() {
            if !indices.contains(&index) {
                continue;
            }
            let wanted = match step.output {
                Output::Nothing => 0,
                Output::Logits => 1,
                Output::EachLogits | Output::Hidden => step.tokens.len(),
            };
            tokens.extend_from_slice(step.tokens);
            chunks.push(SequenceChunk::new(step.session, step.tokens.len(), wanted));
        }
        // The rows of hidden states follow those of logits.
        let mut pass = self.model.exact_end_pass(&mut self.buffers);
        if exact {
            pass.exec.level = pass.exec.level.exact();
        }
        let failed = pass.layers(&self.model, &tokens, &mut chunks).err();
        let errors: Vec<Option<Error>> = chunks.into_iter().map(|chunk| chunk.error).collect();
        for (&index, error) in indices.iter().zip(errors) {
            let result = match (&failed, error) {
                (_, Some(e)) => Err(e),
                (Some(e), None) => Err(Error::bad_input(e.to_string())),
                (None, None) => Ok(()),
            };
            let step = &mut steps[index];
            results[index] = step.session.end_append(before[index], step.tokens, result);
        }
        if failed.is_none() {
            self.visit_outputs(steps, &indices, &outputs, results, visit);
        }
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
                        let logits = self.buffers.exact_logits(&self.model, rows);
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
        let logits = self.buffers.exact_logits(&self.model, 0..with_logits.len());
        let vocab = self.model.vocab_size();
        self.model.exec().pool.run(with_logits.len(), |row, _| {
            if results[with_logits[row]].is_ok() {
                visit(with_logits[row], &logits[row * vocab..(row + 1) * vocab]);
            }
        });
    }
}

/// The steps of each pass, given for each step whether it is whole blocks: blocks first, if the level is not exact.
fn passes(level: SimdLevel, is_blocks: impl Iterator<Item = bool>) -> Vec<Vec<usize>> {
    let all: Vec<bool> = is_blocks.collect();
    let of = |wanted: bool| (0..all.len()).filter(|&index| all[index] == wanted).collect::<Vec<_>>();
    let passes = match level == level.exact() {
        true => vec![(0..all.len()).collect()],
        false => vec![of(true), of(false)],
    };
    passes.into_iter().filter(|pass| !pass.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_blocks_and_a_rest() {
        let tokens: Vec<u32> = (0..1000).collect();
        for n in [0, 1, 63, 64, 65, 128, 500, 512, 513, 1000] {
            for most in [1, 64, 100, 512] {
                let parts: Vec<&[u32]> = prompt_parts(&tokens[..n], most).collect();
                assert_eq!(parts.concat(), tokens[..n]);
                let mut at = 0;
                for part in &parts {
                    assert!(part.len() <= most.max(BLOCK_TOKENS));
                    assert_eq!(is_blocks(at, part.len()), part.len() >= BLOCK_TOKENS, "{n} {most}");
                    at += part.len();
                }
            }
        }
    }

    #[test]
    fn levels_without_amx_need_one_pass() {
        let blocks = [true, false, true, false];
        for level in SimdLevel::supported() {
            let passes = passes(level, blocks.into_iter());
            match level == level.exact() {
                true => assert_eq!(passes, [[0, 1, 2, 3]]),
                false => assert_eq!(passes, [[0, 2], [1, 3]]),
            }
        }
        assert!(passes(SimdLevel::SCALAR, [].into_iter()).is_empty());
    }
}
