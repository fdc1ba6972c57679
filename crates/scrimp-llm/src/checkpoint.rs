//! A model on disk: its configuration and its tensors under GGUF's names, whatever the file format.

use scrimp_kernels::DType;

/// One stored tensor, borrowed from the memory map.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// Encoding of `data`.
    pub dtype: DType,
    /// Dimensions, outermost first: a linear layer is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// Rows one after another, as in the file. Not necessarily aligned.
    pub data: &'a [u8],
}
