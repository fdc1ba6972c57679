//! The embeddings of tokens, from the output matrix or from a table in the file.

use super::forward::each_row;
use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
};
use scrimp_kernels::{DType, Exec, linear::Matrix, ops, quant::dequantize::dequantize_row};
use std::sync::atomic::{AtomicBool, Ordering};

/// The source of the embeddings.
pub(super) enum Embedding<'a> {
    /// The output matrix, if it is tied to the embedding.
    Packed(&'a Matrix),
    /// The rows of a checkpoint's tensor, which may hold values that are not finite.
    Stored(DType, &'a [u8]),
}

impl<'a> Embedding<'a> {
    /// The stored embedding of a checkpoint.
    ///
    /// # Errors
    /// When the tensor is missing or damaged.
    pub(super) fn stored(checkpoint: &'a Checkpoint) -> Result<Self> {
        checkpoint.embedding().map(|(dtype, bytes)| Self::Stored(dtype, bytes))
    }

    /// Writes the scaled embeddings of `tokens` to `h`, `[tokens][hidden_size]`. Returns false if one is not finite.
    pub(super) fn embed(&self, exec: Exec<'_>, config: &ModelConfig, tokens: &[u32], h: &mut [f32]) -> bool {
        let finite = AtomicBool::new(true);
        each_row(exec.pool, h, config.hidden_size, |t, row| {
            let token = tokens[t] as usize;
            match self {
                Self::Packed(matrix) => matrix.row(exec.level, token, row),
                Self::Stored(dtype, stored) => {
                    let bytes = stored.len() / config.vocab_size;
                    dequantize_row(*dtype, &stored[token * bytes..(token + 1) * bytes], row);
                    if row.iter().any(|x| !x.is_finite()) {
                        finite.store(false, Ordering::Relaxed);
                    }
                }
            }
            if config.embedding_scale != 1.0 {
                ops::scale(exec.level, config.embedding_scale, row);
            }
        });
        finite.into_inner()
    }
}

/// The error for an embedding that is not finite.
pub(super) fn bad_embedding(checkpoint: &Checkpoint) -> Error {
    bad_table(checkpoint, "token_embd.weight")
}

/// The error for a row of the table `name` that is not finite.
pub(super) fn bad_table(checkpoint: &Checkpoint, name: &str) -> Error {
    Error::damaged_file(checkpoint.path(), format!("tensor {name} holds a NaN or an infinity"))
}
