//! Decisions of a linear layer: how activations are laid out, which kernel computes a product, and how its work is
//! split.
//!
//! All are functions of shapes, formats and the level; nothing here touches weights or activations.
//!
//! | tokens | block formats (GGUF, `int4`) | `bf16`, `int8`, dense and sparse | `f32`, `f16` |
//! |---|---|---|---|
//! | 1 | [`gemv`](super::gemv) | [`packed`](super::packed) | `gemv` |
//! | 2 to [`SMALL_BATCH`] | `gemv` for each token tile; on ARM small-batch [`gemm`](super::gemm) | `packed`: steps are expanded in registers | `gemm` |
//! | more | `gemm` | `packed`: a panel is expanded once | `gemm` |
//! | 5 to 16 with AMX | [`amx_int8`](super::amx_int8) | [`amx_packed`](super::amx_packed) | `gemm` |
//! | 17 to 47 with AMX | `gemm` | `amx_packed` | `gemm` |
//! | 48 and more with AMX | [`amx_bf16`](super::amx_bf16) | `amx_packed` | `gemm` |
//!
//! An [exact level](SimdLevel::exact) has neither `amx_bf16` nor `bf16` weights in `amx_packed`: vector kernels compute
//! these batches.

use super::{
    Activations, Linear, Matrix, Needs,
    amx_bf16::{self, BF16_TOKENS},
    amx_int8::{self, INT8_TOKENS},
    amx_packed::{self, FEW_TOKENS},
    gemm::{PanelGroup, SMALL_BATCH, SMALL_BATCH_GROUPS},
    matrix::Kind,
    packed_task::panel_groups,
};
use crate::{
    arch::SimdLevel,
    quant::{GROUP, packed::Value},
};
use std::ops::RangeInclusive;

/// Weight bytes per task when decoding. Threads take chunks of tasks, so this only bounds how much later than the
/// others the last one ends; large parallel regions can afford larger tasks, whose beginnings and ends cost less.
const GEMV_TASK_BYTES: RangeInclusive<usize> = 64 << 10..=256 << 10;
/// Tasks per thread that a large parallel region is split into.
const GEMV_TASKS_PER_THREAD: usize = 64;
/// Unpacked bytes per task of a batch: they stay in the second-level cache while all tokens pass by.
const PANEL_BYTES: usize = 400 << 10;
/// The smallest number of tokens for which each of several threads unpacks the weights and has tokens of its own.
const BLOCK_TOKENS: usize = 24;

/// How activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActivationLayout {
    /// Every form in token tiles of `tile` tokens, which vector kernels read.
    Tiles { tile: usize },
    /// bf16 pairs and 8-bit rows in AMX tiles of `rows` tokens: `[AMX tile][64 bytes of a token][tokens of the tile]`.
    /// 8-bit groups and floats are in token tiles.
    Amx { tile: usize, rows: usize },
    /// As [`ActivationLayout::Amx`], and the 8-bit groups are one token tile as wide as an AMX tile: int8 AMX reads
    /// them.
    AmxInt8 { tile: usize, rows: usize },
    /// As [`ActivationLayout::Amx`], and weights of block formats are dequantized: bf16 AMX reads the pairs instead of
    /// 8-bit groups.
    AmxBf16 { tile: usize, rows: usize },
}

impl ActivationLayout {
    /// The layout of `n_tokens` tokens in the forms `needs`, for AMX kernels if `amx`.
    pub(crate) fn new(level: SimdLevel, n_tokens: usize, needs: Needs, amx: bool) -> Self {
        // 16 tokens do better as two tiles of 8 than as 12 and 4.
        let tile = match (level.token_tile(), n_tokens) {
            (12, 13..=16) => 8,
            (tile, _) => tile,
        };
        if !amx {
            return Self::Tiles { tile };
        }
        let rows = amx_packed::tile_rows(n_tokens);
        if needs.quantized && n_tokens >= BF16_TOKENS && !level.is_exact() {
            Self::AmxBf16 { tile, rows }
        } else if needs.quantized && !needs.float && INT8_TOKENS.contains(&n_tokens) {
            // Floats would need tiles of other widths.
            Self::AmxInt8 { tile: amx_int8::width(n_tokens), rows }
        } else {
            Self::Amx { tile, rows }
        }
    }

    /// Tokens of a token tile.
    pub(crate) fn tile(self) -> usize {
        match self {
            Self::Tiles { tile }
            | Self::Amx { tile, .. }
            | Self::AmxInt8 { tile, .. }
            | Self::AmxBf16 { tile, .. } => tile,
        }
    }

    /// Tokens of an AMX tile, where AMX kernels read the pairs and bytes.
    pub(crate) fn amx_rows(self) -> Option<usize> {
        match self {
            Self::Tiles { .. } => None,
            Self::Amx { rows, .. } | Self::AmxInt8 { rows, .. } | Self::AmxBf16 { rows, .. } => Some(rows),
        }
    }

    /// The forms that are stored for weights that need `needs`.
    pub(crate) fn forms(self, needs: Needs) -> Needs {
        match self {
            Self::AmxBf16 { .. } => Needs { quantized: false, bf16: true, ..needs },
            _ => needs,
        }
    }
}

/// Which kernels compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Vector instructions.
    Vectors,
    /// `bf16` or `int8` weights are loaded into AMX tiles directly, or expanded.
    AmxPacked,
    /// Groups of a block format are multiplied as integers in AMX tiles.
    AmxInt8,
    /// Weights of a block format are dequantized to bf16 for AMX tiles.
    AmxBf16,
}

impl Engine {
    /// The engine for a weight and activations of a layout.
    pub(crate) fn new(layout: ActivationLayout, weight: &Kind) -> Self {
        match (weight, layout) {
            (_, ActivationLayout::Tiles { .. }) => Self::Vectors,
            (Kind::Packed(packed), _) if packed.format.value() != Value::Int4 => Self::AmxPacked,
            (Kind::Stored(dtype), _) if dtype.block_len() == 1 => Self::Vectors,
            (_, ActivationLayout::AmxInt8 { .. }) => Self::AmxInt8,
            (_, ActivationLayout::AmxBf16 { .. }) => Self::AmxBf16,
            (_, ActivationLayout::Amx { .. }) => Self::Vectors,
        }
    }
}

/// How the panels of a matrix (16 rows each) are split into tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// So many panels in each task.
    Panels(usize),
    /// As many bytes in each of so many tasks: sparse matrices may have rows of very different lengths.
    Bytes(usize),
}

/// A parallel region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) threads: usize,
    /// Bytes of all weights.
    pub(crate) bytes: usize,
    /// Inputs. With several, threads need no token blocks of one input to have enough tasks.
    pub(crate) groups: usize,
}

/// Decisions for all products of one input in a parallel region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionPlan {
    threads: usize,
    layout: ActivationLayout,
    n_tokens: usize,
    cols: usize,
    /// Weights are unpacked in registers or in the first-level cache, so their bytes measure the work.
    decode: bool,
    /// Block formats take the kernels of small batches.
    pub(crate) small_batch: bool,
    /// Blocks that the tokens are cut into. The activations and results of a token then stay in one
    /// thread's caches from one layer to the next, and threads share only the weights, which are never written.
    pub(crate) token_blocks: usize,
    task_bytes: usize,
}

/// Decisions for one product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductPlan {
    pub(crate) engine: Engine,
    pub(crate) split: Split,
    pub(crate) n_tasks: usize,
    /// [`PanelGroup`]s of scratch memory that a thread needs.
    panel_groups: usize,
}

impl RegionPlan {
    /// The plan for the products of `x` in `region`.
    pub(crate) fn new(x: &Activations, products: &[Linear<'_>], region: Region) -> Self {
        let Region { threads, bytes, groups } = region;
        let (layout, n_tokens) = (x.layout(), x.n_tokens());
        let all = |test: &dyn Fn(&Matrix) -> bool| products.iter().all(|product| test(product.weight));
        let engine = |weight: &Matrix| Engine::new(layout, weight.kind());
        let packed = |weight: &Matrix| matches!(weight.kind(), Kind::Packed(_));
        let quantized =
            |weight: &Matrix| matches!(weight.kind(), Kind::Stored(dtype) if dtype.block_len() > 1);
        let vectors = matches!(layout, ActivationLayout::Tiles { .. } | ActivationLayout::Amx { .. });
        let small_batch = n_tokens > 1 && n_tokens <= SMALL_BATCH && vectors && all(&quantized);
        let expands_in_registers = x.expands_each() && layout.amx_rows().is_none() && all(&packed);
        let decode = n_tokens == 1
            || small_batch
            || expands_in_registers
            || all(&|weight| engine(weight) == Engine::AmxInt8);
        let token_blocks = match decode || groups > 1 || !all(&|weight| engine(weight) == Engine::Vectors) {
            true => 1,
            false => token_blocks(n_tokens, x.n_token_tiles(), threads),
        };
        let task_bytes = (bytes / (GEMV_TASKS_PER_THREAD * threads))
            .clamp(*GEMV_TASK_BYTES.start(), *GEMV_TASK_BYTES.end());
        Self { threads, layout, n_tokens, cols: x.cols(), decode, small_batch, token_blocks, task_bytes }
    }

    /// The plan for the product of a weight with at least one row.
    pub(crate) fn product(&self, weight: &Matrix) -> ProductPlan {
        let (n_panels, threads) = (weight.n_panels(), self.threads);
        let per_panel = match weight.kind() {
            Kind::Stored(_) => self.cols.div_ceil(GROUP),
            Kind::Packed(layout) => panel_groups(layout),
        };
        let engine = Engine::new(self.layout, weight.kind());
        let vectors = if self.decode || engine == Engine::AmxInt8 {
            self.task_bytes / (weight.bytes() / n_panels).max(1)
        } else {
            // Never so many that threads run out of tasks.
            (PANEL_BYTES / (per_panel * size_of::<PanelGroup>()).max(1))
                .min(n_panels * self.token_blocks / (8 * threads))
        };
        let per_task = match engine {
            Engine::Vectors | Engine::AmxInt8 => vectors,
            // In pairs, and four tasks for each thread.
            Engine::AmxPacked => ((n_panels / (4 * threads)) & !1).clamp(2, amx_packed::TASK_PANELS),
            Engine::AmxBf16 => amx_bf16::task_panels(n_panels, threads),
        }
        .clamp(1, n_panels);
        let panel_groups = match engine {
            Engine::Vectors => per_panel * per_task,
            Engine::AmxPacked => per_panel * 2,
            Engine::AmxInt8 => amx_int8::PANEL_GROUPS,
            Engine::AmxBf16 => {
                let rows = self.layout.amx_rows().unwrap_or(1);
                amx_bf16::panel_groups(per_task, self.n_tokens.div_ceil(rows))
            }
        };
        let n_tasks = n_panels.div_ceil(per_task);
        let split = match weight.kind() {
            Kind::Packed(layout) if self.decode && layout.format.is_sparse() => Split::Bytes(n_tasks),
            _ => Split::Panels(per_task),
        };
        ProductPlan { engine, split, n_tasks, panel_groups }
    }

    /// [`PanelGroup`]s of scratch memory that each thread needs for these products.
    pub(crate) fn panel_groups(&self, products: impl Iterator<Item = ProductPlan>) -> usize {
        let largest = products.map(|product| product.panel_groups).max().unwrap_or(0);
        match self.layout {
            _ if !self.decode => largest,
            _ if self.small_batch => SMALL_BATCH_GROUPS,
            ActivationLayout::AmxInt8 { .. } => largest,
            _ => 0,
        }
    }
}

/// Blocks that the tokens of a large batch are cut into, for as many equal groups of the threads.
fn token_blocks(n_tokens: usize, n_token_tiles: usize, threads: usize) -> usize {
    let most = (n_tokens / BLOCK_TOKENS).min(n_token_tiles);
    (1..=threads).rev().find(|blocks| threads.is_multiple_of(*blocks) && *blocks <= most).unwrap_or(1)
}

const _: () = assert!(FEW_TOKENS < *INT8_TOKENS.start() && *INT8_TOKENS.end() < BF16_TOKENS);

#[cfg(test)]
mod tests {
    use super::{super::activations::uses_amx, *};

    /// The engines of a block format, of `bf16` and of `int8` for a batch.
    fn engines(level: SimdLevel, n_tokens: usize, needs: Needs) -> [Engine; 3] {
        let layout = ActivationLayout::new(level, n_tokens, needs, uses_amx(level, n_tokens, needs));
        let packed = |value| match layout {
            ActivationLayout::Tiles { .. } => Engine::Vectors,
            _ if value == Value::Int4 => unreachable!("int4 is a block format here"),
            _ => Engine::AmxPacked,
        };
        let blocks = match layout {
            ActivationLayout::AmxInt8 { .. } => Engine::AmxInt8,
            ActivationLayout::AmxBf16 { .. } => Engine::AmxBf16,
            ActivationLayout::Tiles { .. } | ActivationLayout::Amx { .. } => Engine::Vectors,
        };
        [blocks, packed(Value::Bf16), packed(Value::Int8)]
    }

    fn all_needs() -> impl Iterator<Item = Needs> {
        (1..16).map(|bits| Needs {
            quantized: bits & 1 != 0,
            float: bits & 2 != 0,
            bf16: bits & 4 != 0,
            row_int8: bits & 8 != 0,
        })
    }

    /// Integer products are equal in all engines but `AmxBf16`; those of `bf16` weights only within one engine.
    #[test]
    fn an_exact_level_computes_a_token_alike_in_batches_of_any_size() {
        let Some(level) = SimdLevel::emulated_amx() else {
            eprintln!("SKIPPED: this CPU has no AVX-512");
            return;
        };
        let exact = level.exact();
        assert!(exact != level && exact.exact() == exact && exact.has_amx() && exact.name() == level.name());
        for needs in all_needs() {
            for n_tokens in 1..=600 {
                let [blocks, bf16, _] = engines(exact, n_tokens, needs);
                assert!(!needs.quantized || blocks != Engine::AmxBf16, "{n_tokens} {needs:?}");
                assert!(!needs.bf16 || bf16 == Engine::Vectors, "{n_tokens} {needs:?}");
                // The forms of activations are those that the weights read.
                let layout = ActivationLayout::new(exact, n_tokens, needs, uses_amx(exact, n_tokens, needs));
                assert_eq!(layout.forms(needs), needs);
            }
        }
    }

    /// Whole blocks of prompts have one engine, with any other blocks in their batch.
    #[test]
    fn batches_of_64_tokens_and_more_have_one_engine() {
        let Some(level) = SimdLevel::emulated_amx() else {
            eprintln!("SKIPPED: this CPU has no AVX-512");
            return;
        };
        for needs in all_needs() {
            for n_tokens in 64..=600 {
                assert_eq!(
                    engines(level, n_tokens, needs),
                    engines(level, 64, needs),
                    "{n_tokens} {needs:?}"
                );
            }
            assert!(!needs.quantized || engines(level, 64, needs)[0] == Engine::AmxBf16);
        }
    }
}
