//! Joining the parts of a compressed model in one file.

use crate::{
    MatrixConfigs, Options, Report,
    checkpoint_dir::CheckpointDir,
    compress::{EMBEDDING, OUTPUT_PART, Packed, layer_part},
    quantizing::output,
};
use scrimp_kernels::quant::packed::PackedView;
use scrimp_llm::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    families,
    load::{
        Encoding,
        compressed::{GGUF_HEADER, Item, write},
        side_files::SIDE_FILES,
    },
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};

/// The approximate bytes of the file besides tensors: the header and the tokenizer's files.
pub(crate) fn extra_bytes(checkpoint: &Checkpoint) -> Result<usize> {
    let header = 200 * checkpoint.tensors().len() + (16 << 10);
    Ok(header + files(checkpoint)?.iter().map(|(_, bytes)| bytes.len()).sum::<usize>())
}

/// The files of the tokenizer and the chat template.
fn files(checkpoint: &Checkpoint) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut files = Vec::new();
    if let Some(metadata) = checkpoint.gguf_metadata() {
        let wanted = |key: &str| key.starts_with("tokenizer.") || key == "general.architecture";
        files.push((GGUF_HEADER, metadata.excerpt(wanted)));
    } else if let Some(side) = checkpoint.side_files() {
        for name in SIDE_FILES {
            if let Some(bytes) = side.read(name)? {
                files.push((name, bytes));
            }
        }
    }
    Ok(files)
}

/// A layer's matrices and vectors.
pub(crate) fn layer_items<'a>(
    checkpoint: &'a Checkpoint,
    index: usize,
    packed: &'a [Packed],
) -> Vec<Item<'a>> {
    let prefix = format!("blk.{index}.");
    let vectors = checkpoint
        .tensors()
        .filter(|(name, tensor)| name.starts_with(&prefix) && tensor.shape.len() == 1)
        .map(|(name, tensor)| as_stored(checkpoint, name, &tensor.shape));
    packed.iter().map(Packed::item).chain(vectors.flatten()).collect()
}

/// A tensor in the encoding of the original.
fn as_stored<'a>(checkpoint: &'a Checkpoint, name: &str, shape: &[usize]) -> Option<Item<'a>> {
    let (encoding, data) = checkpoint.stored(name)?;
    Some(Item::Tensor { name: name.to_owned(), encoding, shape: shape.to_vec(), data })
}

/// Joins layers, embedding, output and tokenizer.
pub(crate) fn assemble(
    checkpoint: &Checkpoint,
    out: &Path,
    work: &CheckpointDir,
    options: &Options<'_>,
    choices: &MatrixConfigs,
) -> Result<Report> {
    let config = checkpoint.config();
    let output = work.part(OUTPUT_PART)?;
    let packed = |name: &str| output.entries().iter().any(|e| e.name == name);
    let layers = (0..config.n_layers).map(|i| work.part(&layer_part(i))).collect::<Result<Vec<_>>>()?;
    let files = files(checkpoint)?;
    let mut items: Vec<_> =
        files.iter().map(|(name, data)| Item::File { name: (*name).to_owned(), data }).collect();
    let (mut weights, mut zeros, mut parameters, mut bytes) = (0, 0, 0, 0);
    for name in ["token_embd.weight", "output_norm.weight", "output.weight"] {
        // A packed embedding is also the output matrix.
        let replaced = packed(name) || name == output::OUTPUT && packed(EMBEDDING);
        let tensor = checkpoint.try_tensor(name).filter(|_| !replaced);
        if let Some(tensor) = tensor {
            parameters += tensor.shape.iter().product::<usize>();
            bytes += tensor.data.len();
            items.extend(as_stored(checkpoint, name, &tensor.shape));
        }
    }
    for part in [&output].into_iter().chain(&layers) {
        for entry in part.entries() {
            let data = &part.source()[entry.range.clone()];
            let n: usize = entry.shape.iter().product();
            if entry.name.starts_with("blk.") && entry.shape.len() == 2 {
                weights += n;
                if let Encoding::Packed(format) = entry.encoding {
                    let view = PackedView::new(format, entry.shape[0], entry.shape[1], data)
                        .map_err(|e| part.source().bad(e.to_string()))?;
                    zeros += n - view.stored();
                }
            }
            parameters += n;
            bytes += data.len();
            items.push(Item::Tensor {
                name: entry.name.clone(),
                encoding: entry.encoding,
                shape: entry.shape.clone(),
                data,
            });
        }
    }
    let history = json!({
        "model": config.name,
        "method": options.method.name(),
        "choices": choices.describe(),
        "calibration_tokens": options.calibration.tokens.len(),
        "scrimp": env!("CARGO_PKG_VERSION"),
    });
    let metadata = BTreeMap::from([
        ("scrimp.config".to_owned(), families::stored::to_json(config)),
        ("scrimp.history".to_owned(), history.to_string()),
    ]);
    write(out, &metadata, &items, &mut |_| ())?;
    let bytes_after = std::fs::metadata(out).map_err(|e| Error::io(out, e))?.len();
    Ok(Report {
        bytes_before: checkpoint.file_bytes(),
        bytes_after,
        sparsity: zeros as f64 / weights.max(1) as f64,
        bits_per_weight: 8.0 * bytes as f64 / parameters.max(1) as f64,
    })
}
