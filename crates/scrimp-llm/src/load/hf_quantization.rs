//! `quantization_config` of a Hugging Face directory: which quantized checkpoints are read.

use crate::{error::Result, families::HfConfig};

/// Rows and columns that share a factor in files with blocks of factors.
pub(crate) const FP8_BLOCK: usize = 128;

/// Refuses checkpoints whose quantization is unknown.
///
/// # Errors
/// The loader cannot convert the quantization.
pub(crate) fn check(hf: HfConfig<'_>) -> Result<()> {
    let Some(quantization) = hf.object("quantization_config")? else { return Ok(()) };
    match quantization.text("quant_method")? {
        Some("mxfp4") => Ok(()),
        Some("fp8") => match quantization.get("weight_block_size") {
            None => Ok(()),
            Some(size) if *size == serde_json::json!([FP8_BLOCK, FP8_BLOCK]) => Ok(()),
            Some(size) => Err(hf.unsupported(
                &format!("FP8 factors for blocks of {size} numbers are not supported"),
                "use the model's bf16 files, or a GGUF file",
            )),
        },
        Some("compressed-tensors") if quantization.text("format")? == Some("float-quantized") => Ok(()),
        method => Err(hf.unsupported(
            &format!(
                "checkpoints with the quantization {} are not supported (FP8 and MXFP4 are)",
                method.unwrap_or("without a name")
            ),
            "use the model's bf16 files, or a GGUF file",
        )),
    }
}

/// The Hugging Face name of the matrix whose factors the tensor `name` has.
pub(crate) fn scaled_matrix(name: &str) -> Option<&str> {
    let matrix = name.strip_suffix("_scale_inv").or_else(|| name.strip_suffix("_scale"))?;
    matrix.ends_with(".weight").then_some(matrix)
}
