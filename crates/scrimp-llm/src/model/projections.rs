//! A layer's matrices in a checkpoint. Some families store several matrices in one tensor, one below the other.

use super::{fp8, mxfp4};
use crate::{
    checkpoint::{Checkpoint, TensorView},
    config::{ModelConfig, RecurrenceKind},
    error::{Error, Result},
    load::Encoding,
};
use scrimp_kernels::{
    DType,
    ops::{DeltaShape, ScanShape},
    quant::{dequantize::dequantize_row, packed::PackedView},
};
use std::ops::Range;

/// The matrices of a decoder layer, in the order in which the forward pass needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The output of attention.
    O,
    /// The gate of the feed-forward block.
    Gate,
    /// The gated half of the feed-forward block.
    Up,
    /// The output of the feed-forward block.
    Down,
}

impl Projection {
    /// All seven, in order.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Name of the tensor with only this matrix, without `blk.N.` and `.weight`.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::O => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }
}

/// How a stored tensor has the rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowLayout {
    /// One after another: `[rows][columns]`, below those of other experts.
    Rows,
    /// As columns: `[experts][columns][rows]`, every second row (gpt-oss in floats).
    Columns {
        /// Rows of an expert.
        of_expert: usize,
    },
    /// One after another, in blocks and scales of MXFP4 (gpt-oss).
    Mxfp4,
    /// The same rows of each of several groups of rows, such as a head's query before its gate (Qwen3-Next).
    Groups {
        /// The groups.
        count: usize,
        /// Rows of a group.
        rows: usize,
    },
}

/// The rows of one matrix in a stored tensor.
#[derive(Debug, Clone)]
pub struct TensorSlice {
    /// The tensor's name without `.weight`; a bias has the same with `.bias`.
    pub stem: String,
    /// The rows; of a group, if there are several.
    pub rows: Range<usize>,
    /// From one row to the next.
    pub step: usize,
    /// How the tensor has the rows.
    pub layout: RowLayout,
}

impl TensorSlice {
    /// Consecutive rows of a tensor.
    pub fn rows(stem: String, rows: Range<usize>) -> Self {
        Self { stem, rows, step: 1, layout: RowLayout::Rows }
    }

    /// The rows `rows` of each of `count` groups of `of_group` rows.
    fn groups(stem: String, count: usize, of_group: usize, rows: Range<usize>) -> Self {
        Self { stem, rows, step: 1, layout: RowLayout::Groups { count, rows: of_group } }
    }

    /// Name of the tensor; of the blocks, if it is in blocks and scales.
    pub fn weight(&self) -> String {
        match self.layout {
            RowLayout::Rows | RowLayout::Groups { .. } => format!("{}.weight", self.stem),
            RowLayout::Columns { .. } => format!("{}_columns.weight", self.stem),
            RowLayout::Mxfp4 => format!("{}_blocks.weight", self.stem),
        }
    }

    /// Name of the optional bias.
    pub fn bias(&self) -> String {
        match self.layout {
            RowLayout::Rows | RowLayout::Groups { .. } => format!("{}.bias", self.stem),
            _ => format!("{}_bias.weight", self.stem),
        }
    }

    /// The indices of the rows.
    pub fn indices(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
        let (count, rows) = match self.layout {
            RowLayout::Groups { count, rows } => (count, rows),
            _ => (1, 0),
        };
        let (start, step, of_group) = (self.rows.start, self.step, self.rows.len().div_ceil(self.step));
        (0..count * of_group).map(move |i| i / of_group * rows + start + i % of_group * step)
    }
}

/// The tensor and rows of `projection` of layer `index`.
pub fn tensor_slice(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
    projection: Projection,
) -> TensorSlice {
    let heads = config.heads(index);
    let (q, kv) = (heads.q_dim(), heads.kv_dim());
    let name = |stem: &str| format!("blk.{index}.{stem}");
    let has = |stem: &str| checkpoint.try_tensor(&format!("{}.weight", name(stem))).is_some();
    if projection == Projection::Q && config.attn_gate {
        let dim = config.head_dim;
        return TensorSlice::groups(name(projection.stem()), config.n_heads, 2 * dim, 0..dim);
    }
    // Phi-3 stores Q, K and V in one tensor.
    let (stem, rows) = match projection {
        Projection::Gate | Projection::Up | Projection::Down => {
            return block_slice(checkpoint, config, (index, config.block_width(index)), projection);
        }
        Projection::Q if has("attn_qkv") => ("attn_qkv", 0..q),
        Projection::K if has("attn_qkv") => ("attn_qkv", q..q + kv),
        Projection::V if has("attn_qkv") => ("attn_qkv", q + kv..q + 2 * kv),
        Projection::Q => (projection.stem(), 0..q),
        Projection::K | Projection::V => (projection.stem(), 0..kv),
        Projection::O => (projection.stem(), 0..config.hidden_size),
    };
    TensorSlice::rows(name(stem), rows)
}

/// The tensor and rows of `projection` (gate, up or down) of the feed-forward block of a layer, or of its shared expert:
/// the index of the layer, and the width of the block. Phi-3 and Granite 4 store gate and up in one tensor.
pub fn block_slice(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    (index, width): (usize, usize),
    projection: Projection,
) -> TensorSlice {
    let name = |stem: &str| format!("blk.{index}.{stem}");
    let has = |stem: &str| checkpoint.try_tensor(&format!("{}.weight", name(stem))).is_some();
    let shared = format!("{}_shexp", projection.stem());
    let fused = !has("ffn_gate");
    let rows = if projection == Projection::Down { config.hidden_size } else { width };
    match projection {
        _ if has(&shared) => TensorSlice::rows(name(&shared), 0..rows),
        Projection::Gate if fused => TensorSlice::rows(name("ffn_up"), 0..width),
        Projection::Up if fused => TensorSlice::rows(name("ffn_up"), width..2 * width),
        _ => TensorSlice::rows(name(projection.stem()), 0..rows),
    }
}

/// Whether attention of layer `index` has `projection`, one of the first four.
pub fn has_projection(config: &ModelConfig, index: usize, projection: Projection) -> bool {
    let values_are_keys = config.values_are_keys && config.sliding_window[index].is_none();
    match projection {
        Projection::K => !config.shares_kv(index),
        Projection::V => !config.shares_kv(index) && !values_are_keys,
        _ => true,
    }
}

/// The matrices of the input of layer `index` beside the residual stream, of width `width`: gate and output.
pub fn layer_input_slices(config: &ModelConfig, index: usize, width: usize) -> [TensorSlice; 2] {
    let rows = |stem: &str, rows: usize| TensorSlice::rows(format!("blk.{index}.{stem}"), 0..rows);
    [rows("inp_gate", width), rows("proj", config.hidden_size)]
}

/// The matrices of the learned residual of layer `index`, of rank `rank`: into it and out of it.
pub fn laurel_slices(config: &ModelConfig, index: usize, rank: usize) -> [TensorSlice; 2] {
    let rows = |stem: &str, rows: usize| TensorSlice::rows(format!("blk.{index}.{stem}"), 0..rows);
    [rows("laurel_l", rank), rows("laurel_r", config.hidden_size)]
}

/// The projections from the first of `streams` residual streams to the others, and those at the end. Files have them in
/// one tensor, or one tensor for each.
pub fn stream_slices(checkpoint: &Checkpoint, config: &ModelConfig, streams: usize) -> [Vec<TensorSlice>; 2] {
    let h = config.hidden_size;
    ["altup_proj", "altup_unembd_proj"].map(|stem| {
        let one = checkpoint.try_tensor(&format!("{stem}.weight")).is_some();
        let slice = |i: usize| match one {
            true => TensorSlice::rows(stem.to_owned(), i * h..(i + 1) * h),
            false => TensorSlice::rows(format!("{stem}.{i}"), 0..h),
        };
        (0..streams - 1).map(slice).collect()
    })
}

/// The rows of the gates in the query projection of layer `index` ([`ModelConfig::attn_gate`]).
pub fn attn_gate_slice(config: &ModelConfig, index: usize) -> TensorSlice {
    let dim = config.head_dim;
    TensorSlice::groups(format!("blk.{index}.attn_q"), config.n_heads, 2 * dim, dim..2 * dim)
}

/// The matrices of a layer with the gated delta rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DeltaProjection {
    Q,
    K,
    V,
    /// The gate of the output.
    Z,
    Beta,
    Alpha,
    Out,
}

impl DeltaProjection {
    /// All seven, in order.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::Z, Self::Beta, Self::Alpha, Self::Out];
}

/// The tensor and rows of `projection` of layer `index`, which has the gated delta rule.
///
/// Qwen3.5 and GGUF files have Q, K and V in one tensor and Z in another. Qwen3-Next in Hugging Face files has all four of
/// a key head below each other, and both have beta and alpha of Qwen3-Next in that order.
pub fn delta_slice(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    shape: DeltaShape,
    index: usize,
    projection: DeltaProjection,
) -> TensorSlice {
    use DeltaProjection::{Alpha, Beta, K, Out, Q, V, Z};
    let name = |stem: &str| format!("blk.{index}.{stem}");
    let has = |stem: &str| checkpoint.try_tensor(&format!("{}.weight", name(stem))).is_some();
    let (heads, key_dim) = (shape.key_heads, shape.key_dim);
    let of_key = shape.value_heads / heads;
    let (keys, values, of_key_values) = (shape.keys(), shape.values(), of_key * shape.value_dim);
    let (start, end) = match projection {
        Q => (0, key_dim),
        K => (key_dim, 2 * key_dim),
        V => (2 * key_dim, 2 * key_dim + of_key_values),
        Z => (2 * key_dim + of_key_values, 2 * (key_dim + of_key_values)),
        Beta => (0, of_key),
        Alpha => (of_key, 2 * of_key),
        Out => (0, config.hidden_size),
    };
    let (stem, rows) = match projection {
        Q | K | V | Z if has("ssm_in") => {
            return TensorSlice::groups(name("ssm_in"), heads, 2 * (key_dim + of_key_values), start..end);
        }
        Beta | Alpha if has("ssm_ba") => {
            return TensorSlice::groups(name("ssm_ba"), heads, 2 * of_key, start..end);
        }
        Q => ("attn_qkv", 0..keys),
        K => ("attn_qkv", keys..2 * keys),
        V => ("attn_qkv", 2 * keys..2 * keys + values),
        Z => ("attn_gate", 0..values),
        Beta => ("ssm_beta", 0..shape.value_heads),
        Alpha => ("ssm_alpha", 0..shape.value_heads),
        Out => ("ssm_out", start..end),
    };
    TensorSlice::rows(name(stem), rows)
}

/// The matrices of layer `index`, which has a short convolution: the gates before and after it, its input and the output.
pub fn short_conv_slices(config: &ModelConfig, index: usize) -> [TensorSlice; 4] {
    let h = config.hidden_size;
    let input =
        |part: usize| TensorSlice::rows(format!("blk.{index}.shortconv.in_proj"), part * h..(part + 1) * h);
    [input(0), input(1), input(2), TensorSlice::rows(format!("blk.{index}.shortconv.out_proj"), 0..h)]
}

/// The tensor and rows of `projection` (gate, up or down) of expert `expert` of layer `index`.
pub fn expert_slice(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
    expert: usize,
    projection: Projection,
) -> TensorSlice {
    let ffn = config.experts.map_or(0, |experts| experts.width);
    let name = |stem: &str| format!("blk.{index}.{stem}");
    let has = |stem: &str| checkpoint.try_tensor(&format!("{}.weight", name(stem))).is_some();
    let (all, fused) = (format!("{}_exps", projection.stem()), "ffn_gate_up_exps");
    let rows = if projection == Projection::Down { config.hidden_size } else { ffn };
    let of = |stem: &str, first: usize| TensorSlice::rows(name(stem), first..first + rows);
    // gpt-oss: gate and up alternate.
    let part = if projection == Projection::Down { "ffn_down_exps" } else { "ffn_gate_up_exps" };
    let (step, first) = match projection {
        Projection::Down => (1, 0),
        projection => (2, usize::from(projection == Projection::Up)),
    };
    let of_expert = step * rows;
    let alternating = |layout| {
        let rows = expert * of_expert + first..(expert + 1) * of_expert;
        TensorSlice { stem: name(part), rows, step, layout }
    };
    match projection {
        _ if has(&format!("{part}_columns")) => alternating(RowLayout::Columns { of_expert }),
        _ if has(&format!("{part}_blocks")) => alternating(RowLayout::Mxfp4),
        _ if has(&all) => of(&all, expert * rows),
        Projection::Gate if has(fused) => of(fused, 2 * expert * ffn),
        Projection::Up if has(fused) => of(fused, (2 * expert + 1) * ffn),
        _ => of(&format!("{}.{expert}", projection.stem()), 0),
    }
}

/// The matrices of layer `index`, which is one of Mamba-2: the gate of the output, the inputs of the convolution, dt and the
/// output.
pub fn mamba2_slices(config: &ModelConfig, shape: ScanShape, index: usize) -> [TensorSlice; 4] {
    let (z, u) = (shape.width(), shape.width() + shape.inputs());
    let input = |rows| TensorSlice::rows(format!("blk.{index}.ssm_in"), rows);
    let out = TensorSlice::rows(format!("blk.{index}.ssm_out"), 0..config.hidden_size);
    [input(0..z), input(z..u), input(u..u + shape.heads), out]
}

/// Rejects models whose layers have more than the seven matrices of [`Projection`].
///
/// # Errors
/// The layers have experts or inputs beside the residual stream, or some layers are recurrent or have other heads, or no
/// keys and values of their own.
pub fn seven_matrices(config: &ModelConfig) -> Result<()> {
    let unlike = config.window_heads.is_some() || config.shared_kv.is_some() || config.values_are_keys;
    let what = match (&config.experts, &config.recurrence) {
        (Some(_), _) => "mixtures of experts",
        (None, Some(_)) => "models with recurrent layers",
        (None, None) if config.per_layer_input.is_some() || unlike => "models of this family",
        (None, None) => return Ok(()),
    };
    Err(Error::unsupported(
        format!("compressing the weights of {what} is not supported"),
        "run the model with the weights of its file",
    ))
}

/// Name of the router's matrix of layer `index`, without `.weight`.
pub fn router(index: usize) -> String {
    format!("blk.{index}.ffn_gate_inp")
}

/// All matrices of layer `index`.
pub fn layer_slices(checkpoint: &Checkpoint, config: &ModelConfig, index: usize) -> Vec<TensorSlice> {
    use Projection::{Down, Gate, Up};
    let recurrent = config.recurrence.as_ref().filter(|_| config.is_recurrent(index));
    let dense = Projection::ALL.into_iter().filter(|p| match p {
        Gate | Up | Down => config.has_block(index),
        _ => recurrent.is_none() && has_projection(config, index, *p),
    });
    let mut slices: Vec<_> = dense.map(|p| tensor_slice(checkpoint, config, index, p)).collect();
    match recurrent.map(|recurrence| recurrence.kind) {
        Some(RecurrenceKind::GatedDelta(shape)) => {
            let all = DeltaProjection::ALL.into_iter();
            slices.extend(all.map(|p| delta_slice(checkpoint, config, shape, index, p)));
        }
        Some(RecurrenceKind::Mamba2 { scan, .. }) => slices.extend(mamba2_slices(config, scan, index)),
        Some(RecurrenceKind::ShortConv { .. }) => slices.extend(short_conv_slices(config, index)),
        None if config.attn_gate => slices.push(attn_gate_slice(config, index)),
        None => {}
    }
    if let Some(inputs) = config.per_layer_input {
        slices.extend(layer_input_slices(config, index, inputs.width));
    }
    if let Some(rank) = config.laurel_rank {
        slices.extend(laurel_slices(config, index, rank));
    }
    if let Some(experts) = config.experts_of(index) {
        slices.push(TensorSlice::rows(router(index), 0..experts.count));
        if let Some(width) = experts.shared {
            slices.extend([Gate, Up, Down].map(|p| block_slice(checkpoint, config, (index, width), p)));
        }
        for expert in 0..experts.count {
            slices.extend([Gate, Up, Down].map(|p| expert_slice(checkpoint, config, index, expert, p)));
        }
    }
    slices
}

/// Rows and columns of a matrix. Those of all experts in one tensor are below each other.
///
/// # Errors
/// When the tensor is no matrix.
pub fn shape(checkpoint: &Checkpoint, name: &str, tensor: &TensorView<'_>) -> Result<[usize; 2]> {
    match tensor.shape[..] {
        [rows, cols] => Ok([rows, cols]),
        [experts, rows, cols] => Ok([experts * rows, cols]),
        _ => Err(Error::damaged_file(
            checkpoint.path(),
            format!("tensor {name} is no matrix: {:?}", tensor.shape),
        )),
    }
}

/// A norm's weights or a bias, as f32.
///
/// # Errors
/// When there is no such tensor, or it is damaged.
pub fn vector(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let tensor = checkpoint.tensor(name)?;
    let len = tensor.shape.iter().product();
    let mut values = vec![0.0; len];
    let dtype = tensor.encoding.rows().filter(|dtype| dtype.row_bytes(len) == Some(tensor.data.len()));
    let Some(dtype) = dtype else {
        return Err(Error::damaged_file(checkpoint.path(), format!("tensor {name} has a damaged shape")));
    };
    dequantize_row(dtype, tensor.data, &mut values);
    if values.iter().any(|x| !x.is_finite()) {
        return Err(Error::damaged_file(
            checkpoint.path(),
            format!("tensor {name} holds a NaN or an infinity"),
        ));
    }
    Ok(values)
}

/// As [`vector`], for optional tensors.
///
/// # Errors
/// As [`vector`].
pub fn optional_vector(checkpoint: &Checkpoint, name: &str) -> Result<Option<Vec<f32>>> {
    if checkpoint.try_tensor(name).is_some() { vector(checkpoint, name).map(Some) } else { Ok(None) }
}

/// A matrix in a file: rows of a tensor, or a packed matrix.
pub enum StoredMatrix<'a> {
    /// `[rows][cols]` in `dtype`.
    Rows {
        /// Number format.
        dtype: DType,
        /// Out features.
        rows: usize,
        /// In features.
        cols: usize,
        /// The stored bytes.
        data: &'a [u8],
    },
    /// Packed and checked.
    Packed(PackedView<'a>),
    /// As `Rows`, converted from another layout.
    Converted {
        /// Number format.
        dtype: DType,
        /// In features.
        cols: usize,
        /// The rows.
        data: Vec<u8>,
    },
}

/// Number format, rows and columns of a slice, and its bytes if it is packed.
///
/// # Errors
/// When the tensor is no matrix.
pub fn slice_shape(checkpoint: &Checkpoint, slice: &TensorSlice) -> Result<(Encoding, [usize; 2])> {
    let name = &slice.weight();
    let tensor = checkpoint.tensor(name)?;
    let rows = slice.indices().len();
    match (slice.layout, &tensor.shape[..]) {
        (RowLayout::Columns { .. }, [_, cols, _]) => Ok((tensor.encoding, [rows, *cols])),
        (RowLayout::Mxfp4, [_, _, groups, _]) => Ok((Encoding::Rows(DType::MXFP4), [rows, groups * 32])),
        _ => {
            let [_, cols] = shape(checkpoint, name, &tensor)?;
            let converted = tensor.encoding == Encoding::Fp8;
            Ok((if converted { Encoding::Rows(DType::BF16) } else { tensor.encoding }, [rows, cols]))
        }
    }
}

/// The rows of `slice`.
///
/// # Errors
/// As [`stored_matrix`].
pub fn stored_slice<'a>(checkpoint: &'a Checkpoint, slice: &TensorSlice) -> Result<StoredMatrix<'a>> {
    let name = &slice.weight();
    let (encoding, [rows, cols]) = slice_shape(checkpoint, slice)?;
    let bad = |what: &str| Error::damaged_file(checkpoint.path(), format!("tensor {name} {what}"));
    match slice.layout {
        RowLayout::Rows => stored_matrix(checkpoint, name, &slice.rows),
        RowLayout::Groups { .. } => {
            let dtype = encoding.rows().ok_or_else(|| bad("cannot be cut into groups of rows"))?;
            let bytes =
                dtype.row_bytes(cols).ok_or_else(|| bad("has rows of a length that its type lacks"))?;
            let stored = checkpoint.tensor(name)?.data;
            let rows = slice.indices().map(|row| stored.get(row * bytes..(row + 1) * bytes));
            let rows = rows.collect::<Option<Vec<_>>>().ok_or_else(|| bad("has too few rows"))?;
            Ok(StoredMatrix::Converted { dtype, cols, data: rows.concat() })
        }
        RowLayout::Columns { of_expert } => {
            let dtype = encoding.rows().filter(|dtype| dtype.block_len() == 1);
            let dtype = dtype.ok_or_else(|| bad("is not stored as floats"))?;
            let (size, stored) = (dtype.block_bytes(), checkpoint.tensor(name)?.data);
            let mut data = Vec::with_capacity(rows * cols * size);
            for row in slice.indices() {
                let first = row / of_expert * of_expert * cols + row % of_expert;
                for column in 0..cols {
                    let at = (first + column * of_expert) * size;
                    data.extend_from_slice(&stored[at..at + size]);
                }
            }
            Ok(StoredMatrix::Converted { dtype, cols, data })
        }
        RowLayout::Mxfp4 => {
            let blocks = checkpoint.tensor(name)?.data;
            let scales = checkpoint.tensor(&format!("{}_scales.weight", slice.stem))?.data;
            let groups = cols / 32;
            let blocks = blocks.as_chunks::<16>().0;
            let mut data = Vec::with_capacity(rows * groups * DType::MXFP4.block_bytes());
            for group in slice.indices().flat_map(|row| row * groups..(row + 1) * groups) {
                mxfp4::append_block(&blocks[group], scales[group], &mut data);
            }
            Ok(StoredMatrix::Converted { dtype: DType::MXFP4, cols, data })
        }
    }
}

/// Rows `rows` of a stored matrix. A packed matrix is read and checked as a whole.
///
/// # Errors
/// When the tensor is no matrix, has fewer rows, or is packed and damaged or of other rows.
pub fn stored_matrix<'a>(
    checkpoint: &'a Checkpoint,
    name: &str,
    rows: &Range<usize>,
) -> Result<StoredMatrix<'a>> {
    let tensor = checkpoint.tensor(name)?;
    let [stored, cols] = shape(checkpoint, name, &tensor)?;
    let bad = |what: String| Error::damaged_file(checkpoint.path(), format!("tensor {name}: {what}"));
    if rows.end > stored {
        return Err(bad(format!("it has {stored} rows, {} are needed", rows.end)));
    }
    match tensor.encoding {
        Encoding::Rows(dtype) => {
            let row_bytes = tensor.data.len() / stored.max(1);
            let data = &tensor.data[rows.start * row_bytes..rows.end * row_bytes];
            Ok(StoredMatrix::Rows { dtype, rows: rows.len(), cols, data })
        }
        Encoding::Packed(_) if rows.len() != stored => {
            Err(bad(format!("a packed matrix cannot be cut into rows {rows:?}")))
        }
        Encoding::Bytes => Err(bad("it holds bytes instead of numbers".to_owned())),
        Encoding::Fp8 => {
            let factors = checkpoint.tensor(&fp8::factors(name))?.shape;
            let values = vector(checkpoint, &fp8::factors(name))?;
            let factors = fp8::Factors::new(values, &factors, [stored, cols]);
            let factors = factors.ok_or_else(|| bad("its factors have another shape".to_owned()))?;
            let data = factors.rows_as_bf16(tensor.data, cols, rows.clone());
            let data = data.ok_or_else(|| bad("it is too short".to_owned()))?;
            Ok(StoredMatrix::Converted { dtype: DType::BF16, cols, data })
        }
        Encoding::Packed(format) => PackedView::new(format, stored, cols, tensor.data)
            .map(StoredMatrix::Packed)
            .map_err(|e| bad(e.to_string())),
    }
}
