//! Function tables: the kernels that a call of attention uses, compiled for its SIMD level.
//!
//! A call finds its table once, by level, storage and number of rows. An entry is a function with the
//! `target_feature`s of its level ([`Level::call`]); it takes its arguments as one struct.

use super::{
    amx,
    codes::{self, Codes, Codes4, Codes8},
    format::{Bf16, ElementPlace, F16, F32, Format},
    packed_page::{PackedPvArgs, PackedQkArgs},
    qk_pv::{self, ColumnArgs, ExpSumArgs, FinishArgs, PvArgs, QkArgs, RowMaxArgs},
    sparse,
    storage::{PageGeometry, StorageKind, packing::PackedKind},
    unpack::{self, UnpackArgs},
};
use crate::arch::{EntryKernel, Kernel, Level, SimdLevel, attention::BlockShape};
use std::marker::PhantomData;

/// Kernels for blocks of `rows` query rows. Their arguments and safety conditions are those of [`qk_pv`].
#[derive(Clone, Copy)]
pub(crate) struct RowKernels {
    pub(crate) rows: usize,
    pub(crate) qk: unsafe fn(QkArgs),
    pub(crate) pv: unsafe fn(PvArgs<'_>),
    pub(crate) finish: unsafe fn(FinishArgs),
    pub(crate) row_max: unsafe fn(RowMaxArgs),
    pub(crate) exp_sum: unsafe fn(ExpSumArgs),
    /// Over packed pages: int8, int4 and sparse. `None` where these are unpacked first.
    packed: Option<[PackedKernels; 3]>,
}

impl RowKernels {
    /// The kernels over pages of `kind`.
    ///
    /// # Panics
    /// When packed pages are unpacked for these kernels.
    pub(crate) fn packed(&self, kind: PackedKind) -> PackedKernels {
        let kernels = self.packed.expect("kernels that read packed pages");
        match kind {
            PackedKind::Int8 => kernels[0],
            PackedKind::Int4 => kernels[1],
            PackedKind::Sparse(_) => kernels[2],
        }
    }
}

/// Kernels over packed pages of one kind.
#[derive(Clone, Copy)]
pub(crate) struct PackedKernels {
    pub(crate) qk: unsafe fn(PackedQkArgs<'_>),
    /// Queries are f32, not elements.
    pub(crate) plain_q: bool,
    pub(crate) pv: unsafe fn(PackedPvArgs<'_>),
}

/// The kernels of one level for one storage format.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// The smallest block that covers so many rows, or the largest.
    pub(crate) row_kernels: fn(usize) -> RowKernels,
    pub(crate) add_columns: unsafe fn(ColumnArgs<'_>),
    /// Likewise, with maxima instead of sums.
    pub(crate) max_columns: unsafe fn(ColumnArgs<'_>),
    /// Writes a query as elements.
    pub(crate) elements: fn(&[f32], ElementPlace, &mut [f32]),
    /// Elements of a row to a step.
    pub(crate) pair: usize,
    /// Bytes of a step.
    pub(crate) step_bytes: usize,
    /// `f32` slots of an element.
    pub(crate) slots: usize,
    /// `(tile, stride)`: where the probabilities of a tile start, see [`Format::place_p`].
    pub(crate) place_p: fn(usize, usize) -> usize,
    /// Pages whose values are added at a time.
    pub(crate) run_pages: usize,
    /// Turns a page of codes into one of bf16, see [`unpack`](super::unpack); `None` for kernels that read codes.
    pub(crate) unpack: Option<unsafe fn(UnpackArgs)>,
    /// Whether they use tile registers: then a task has all of its rows in one block, and its keys start at an even
    /// tile.
    pub(crate) in_tiles: bool,
}

impl Kernels {
    /// The kernels of `level` for `kind`.
    pub(crate) fn new(level: SimdLevel, kind: StorageKind) -> Self {
        match kind {
            StorageKind::Bf16 => level.run(Vectors::<Bf16<false>>(PhantomData)),
            StorageKind::F16 => level.run(Vectors::<F16>(PhantomData)),
            StorageKind::F32 => level.run(Vectors::<F32>(PhantomData)),
        }
    }

    /// Kernels over bf16 pages that use tile registers, where the level has them and the pages suit them.
    pub(crate) fn in_tiles(level: SimdLevel, kind: StorageKind, g: PageGeometry) -> Option<Self> {
        let suits = level.has_amx() && kind == StorageKind::Bf16 && amx::fits(g);
        suits.then(|| level.run(Tiles))
    }
}

/// Makes an [`EntryKernel`] of a kernel: its name, generic parameters, their names, the type parameter, and its
/// arguments.
macro_rules! entry {
    ($name:ident [$($params:tt)*] [$($names:tt)*] $marker:ty: $args:ty => $kernel:expr) => {
        struct $name<$($params)*>(PhantomData<$marker>);

        impl<$($params)*> EntryKernel for $name<$($names)*> {
            type Args<'a> = $args;

            #[inline(always)]
            unsafe fn run<S: Level>(s: S, args: Self::Args<'_>) {
                // SAFETY: the caller of the entry guarantees what the kernel requires of its arguments.
                unsafe { $kernel(s, args) }
            }
        }
    };
}

entry!(Qk [F: Format, const R: usize, const T: usize] [F, R, T] F: QkArgs => qk_pv::qk::<S, F, R, T>);
entry!(Pv [F: Format, const R: usize, const D: usize] [F, R, D] F: PvArgs<'a> => qk_pv::pv::<S, F, R, D>);
entry!(Finish [const R: usize] [R] (): FinishArgs => qk_pv::finish::<S, R>);
entry!(RowMax [const R: usize] [R] (): RowMaxArgs => qk_pv::row_max::<S, R>);
entry!(ExpSum [F: Format, const R: usize] [F, R] F: ExpSumArgs => qk_pv::exp_sum::<S, F, R>);
entry!(AddColumns [F: Format] [F] F: ColumnArgs<'a> => qk_pv::add_columns::<S, F>);
entry!(MaxColumns [F: Format] [F] F: ColumnArgs<'a> => qk_pv::max_columns::<S, F>);
entry!(QkCodes [C: Codes, const R: usize, const T: usize] [C, R, T] C: PackedQkArgs<'a> => codes::qk::<S, C, R, T>);
entry!(PvCodes [C: Codes, const R: usize, const D: usize] [C, R, D] C: PackedPvArgs<'a> => codes::pv::<S, C, R, D>);
entry!(QkSparse [const R: usize, const T: usize] [R, T] (): PackedQkArgs<'a> => sparse::qk::<S, R, T>);
entry!(PvSparse [const R: usize, const D: usize] [R, D] (): PackedPvArgs<'a> => sparse::pv::<S, R, D>);
entry!(UnpackCodes [] [] (): UnpackArgs => unpack::unpack::<S>);

/// The kernels of level `S` for storage `F`, by the shape of a block.
struct Shapes<S, F>(PhantomData<(S, F)>);

impl<S: Level, F: Format> BlockShape for Shapes<S, F> {
    type Output = RowKernels;

    fn of<const R: usize, const T: usize, const D: usize>() -> RowKernels {
        let int8 = PackedKernels {
            qk: S::call::<QkCodes<Codes8, R, T>>,
            plain_q: true,
            pv: S::call::<PvCodes<Codes8, R, D>>,
        };
        let int4 = PackedKernels {
            qk: S::call::<QkCodes<Codes4, R, T>>,
            plain_q: true,
            pv: S::call::<PvCodes<Codes4, R, D>>,
        };
        let sparse =
            PackedKernels { qk: S::call::<QkSparse<R, T>>, plain_q: false, pv: S::call::<PvSparse<R, D>> };
        RowKernels {
            rows: R,
            qk: S::call::<Qk<F, R, T>>,
            pv: S::call::<Pv<F, R, D>>,
            finish: S::call::<Finish<R>>,
            row_max: S::call::<RowMax<R>>,
            exp_sum: S::call::<ExpSum<F, R>>,
            packed: Some([int8, int4, sparse]),
        }
    }
}

/// Looks up the kernels for storage `F` that use vectors.
struct Vectors<F>(PhantomData<F>);

impl<F: Format> Kernel for Vectors<F> {
    type Output = Kernels;

    #[inline(always)]
    fn run<S: Level>(self, _: S) -> Kernels {
        Kernels {
            row_kernels: S::row_block::<Shapes<S, F>>,
            add_columns: S::call::<AddColumns<F>>,
            max_columns: S::call::<MaxColumns<F>>,
            elements: F::elements::<S>,
            pair: F::PAIR,
            step_bytes: F::STEP_BYTES,
            slots: F::slots::<S>(),
            place_p: F::place_p,
            run_pages: 1,
            unpack: None,
            in_tiles: false,
        }
    }
}

/// Looks up the kernels whose products are in tile registers, and everything else in vectors.
struct Tiles;

impl Kernel for Tiles {
    type Output = Kernels;

    #[inline(always)]
    fn run<S: Level>(self, _: S) -> Kernels {
        type InTiles = Bf16<true>;
        Kernels {
            row_kernels: |_| RowKernels {
                rows: amx::ROWS,
                qk: amx::qk_entry,
                pv: amx::pv_entry,
                finish: S::call::<Finish<{ amx::ROWS }>>,
                row_max: S::call::<RowMax<{ amx::ROWS }>>,
                exp_sum: S::call::<ExpSum<InTiles, { amx::ROWS }>>,
                packed: None,
            },
            add_columns: S::call::<AddColumns<InTiles>>,
            max_columns: S::call::<MaxColumns<InTiles>>,
            elements: InTiles::elements::<S>,
            pair: InTiles::PAIR,
            step_bytes: InTiles::STEP_BYTES,
            slots: S::PAIR_SLOTS,
            place_p: InTiles::place_p,
            run_pages: amx::RUN_PAGES,
            unpack: Some(S::call::<UnpackCodes>),
            in_tiles: true,
        }
    }
}
