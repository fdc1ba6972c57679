//! The one place where tiers become compiled attention kernels: tables of functions that carry the tier's features.

use super::{
    amx as tiles,
    codes::{self, Codes, Codes4, Codes8, PackedPage},
    format::{Bf16, F16, F32, Format},
    qk_pv::{self as kernels, Values},
    sparse,
    storage::{PageGeometry, StorageKind, packing::PackedKind},
    unpack,
};
use crate::arch::{
    SimdLevel,
    attention::{Lanes, RowPair},
    level::Kind,
    scalar::Scalar,
};

/// Kernels for blocks of `rows` query rows. What they read and write, and what callers owe, stands in [`kernels`].
pub(crate) struct RowKernels {
    pub(crate) rows: usize,
    /// `(k, tiles, steps, q, out, ahead)`
    pub(crate) qk: unsafe fn(*const u8, usize, usize, *const f32, *mut f32, *const u8),
    /// `(pages, block_bytes, blocks, p, acc, ahead)`
    pub(crate) pv: unsafe fn(&[Values], usize, usize, *const f32, *mut f32, *const u8),
    /// `(scores, tiles, scale, cap, bias)`
    pub(crate) finish: unsafe fn(*mut f32, usize, f32, f32, *const f32),
    /// `(scores, tiles, max)`
    pub(crate) row_max: unsafe fn(*const f32, usize, *mut f32),
    /// `(scores, tiles, c, max, sum)`
    pub(crate) exp_sum: unsafe fn(*mut f32, usize, f32, *const f32, *mut f32),
}

/// Kernels over packed pages, for as many rows as the [`RowKernels`] in the same place.
pub(crate) struct PackedKernels {
    /// `(page, q, out)`; q is in f32 if `plain_q`, else as elements.
    pub(crate) qk: unsafe fn(&PackedPage, *const f32, *mut f32),
    pub(crate) plain_q: bool,
    /// `(page, p, acc)`
    pub(crate) pv: unsafe fn(&PackedPage, *const f32, *mut f32),
}

type UnpackPage = unsafe fn(PackedKind, *const u8, usize, usize, *mut u8);
type AddColumns = unsafe fn(*const f32, usize, usize, &[RowPair], *mut f32);

/// The kernels of one tier for one storage format.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// By number of rows, smallest first.
    pub(crate) blocks: &'static [RowKernels],
    /// `(p, tiles, stride, pairs, columns)`
    pub(crate) add_columns: AddColumns,
    /// Likewise, with maxima in the place of sums.
    pub(crate) max_columns: AddColumns,
    /// `(row, steps, r, rows, to)`
    pub(crate) elements: fn(&[f32], usize, usize, usize, &mut [f32]),
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
    /// `(kind, page, n, runs, to)`: turns a page of codes into one of bf16, see [`unpack`]; `None` for kernels that read codes.
    pub(crate) unpack: Option<UnpackPage>,
    /// Whether they use tile registers: then a unit has all of its rows in one block, and its keys start at an even tile.
    pub(crate) in_tiles: bool,
    packed: fn(PackedKind) -> &'static [PackedKernels],
}

impl Kernels {
    /// Kernels over bf16 pages that use tile registers, where the tier has them and the pages suit them.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    pub(crate) fn in_tiles(level: SimdLevel, kind: StorageKind, g: PageGeometry) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if level.has_amx() && kind == StorageKind::Bf16 && tiles::fits(g) {
            return Some(amx::KERNELS);
        }
        None
    }

    /// The kernels over pages of `kind`, one for each of [`Kernels::blocks`].
    pub(crate) fn packed(self, kind: PackedKind) -> &'static [PackedKernels] {
        (self.packed)(kind)
    }

    /// The kernels of `tier` for `kind`.
    pub(crate) fn new(level: SimdLevel, kind: StorageKind) -> Self {
        match kind {
            StorageKind::Bf16 => Self::of::<Bf16<false>>(level),
            StorageKind::F16 => Self::of::<F16>(level),
            StorageKind::F32 => Self::of::<F32>(level),
        }
    }

    fn of<F: Format + 'static>(level: SimdLevel) -> Self {
        // A `SimdLevel` exists only where the CPU has its features, so its functions may be called.
        match level.kind() {
            Kind::Scalar => scalar::kernels::<F>(),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2::kernels::<F>(),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => avx512::kernels::<F>(),
        }
    }
}

/// One module per tier: entry points with the tier's features, and their tables.
/// `rows, tiles, blocks`: query rows of a block, and how many K tiles and V blocks its accumulators cover.
macro_rules! level {
    ($name:ident, $lanes:ty, $token:expr, [$($attr:meta),*], [$(($rows:literal, $tiles:literal, $blocks:literal)),*]) => {
        mod $name {
            use super::*;

            $(#[$attr])*
            unsafe fn qk<F: Format, const R: usize, const T: usize>(
                k: *const u8, tiles: usize, steps: usize, q: *const f32, out: *mut f32, ahead: *const u8,
            ) {
                // SAFETY: the caller vouches for the pointers, and that the CPU has the tier's features.
                unsafe { kernels::qk::<$lanes, F, R, T>($token, k, tiles, steps, q, out, ahead) }
            }

            $(#[$attr])*
            unsafe fn pv<F: Format, const R: usize, const D: usize>(
                pages: &[Values], block_bytes: usize, blocks: usize, p: *const f32, acc: *mut f32, ahead: *const u8,
            ) {
                // SAFETY: as above.
                unsafe { kernels::pv::<$lanes, F, R, D>($token, pages, block_bytes, blocks, p, acc, ahead) }
            }

            $(#[$attr])*
            pub(super) unsafe fn finish<const R: usize>(
                scores: *mut f32, tiles: usize, scale: f32, cap: f32, bias: *const f32,
            ) {
                // SAFETY: as above.
                unsafe { kernels::finish::<$lanes, R>($token, scores, tiles, scale, cap, bias) }
            }

            $(#[$attr])*
            pub(super) unsafe fn row_max<const R: usize>(scores: *const f32, tiles: usize, max: *mut f32) {
                // SAFETY: as above.
                unsafe { kernels::row_max::<$lanes, R>($token, scores, tiles, max) }
            }

            $(#[$attr])*
            pub(super) unsafe fn exp_sum<F: Format, const R: usize>(
                scores: *mut f32, tiles: usize, c: f32, max: *const f32, sum: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { kernels::exp_sum::<$lanes, F, R>($token, scores, tiles, c, max, sum) }
            }

            $(#[$attr])*
            pub(super) unsafe fn add_columns<F: Format>(
                p: *const f32, tiles: usize, stride: usize, pairs: &[RowPair], columns: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { kernels::add_columns::<$lanes, F>($token, p, tiles, stride, pairs, columns) }
            }

            $(#[$attr])*
            pub(super) unsafe fn max_columns<F: Format>(
                p: *const f32, tiles: usize, stride: usize, pairs: &[RowPair], columns: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { kernels::max_columns::<$lanes, F>($token, p, tiles, stride, pairs, columns) }
            }

            $(#[$attr])*
            unsafe fn qk_codes<C: Codes, const R: usize, const T: usize>(
                page: &PackedPage, q: *const f32, out: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { codes::qk::<$lanes, C, R, T>($token, page, q, out) }
            }

            $(#[$attr])*
            unsafe fn pv_codes<C: Codes, const R: usize, const D: usize>(
                page: &PackedPage, p: *const f32, acc: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { codes::pv::<$lanes, C, R, D>($token, page, p, acc) }
            }

            struct OfCodes<C>(std::marker::PhantomData<C>);
            impl<C: Codes> OfCodes<C> {
                const BLOCKS: &'static [PackedKernels] = &[$(PackedKernels {
                    qk: qk_codes::<C, $rows, $tiles>,
                    plain_q: true,
                    pv: pv_codes::<C, $rows, $blocks>,
                }),*];
            }

            $(#[$attr])*
            unsafe fn qk_sparse<const R: usize, const T: usize>(
                page: &PackedPage, q: *const f32, out: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { sparse::qk::<$lanes, R, T>($token, page, q, out) }
            }

            $(#[$attr])*
            unsafe fn pv_sparse<const R: usize, const D: usize>(
                page: &PackedPage, p: *const f32, acc: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { sparse::pv::<$lanes, R, D>($token, page, p, acc) }
            }

            const SPARSE: &[PackedKernels] = &[$(PackedKernels {
                qk: qk_sparse::<$rows, $tiles>,
                plain_q: false,
                pv: pv_sparse::<$rows, $blocks>,
            }),*];

            fn packed(kind: PackedKind) -> &'static [PackedKernels] {
                match kind {
                    PackedKind::Int8 => OfCodes::<Codes8>::BLOCKS,
                    PackedKind::Int4 => OfCodes::<Codes4>::BLOCKS,
                    PackedKind::Sparse(_) => SPARSE,
                }
            }

            struct Of<F>(std::marker::PhantomData<F>);
            impl<F: Format> Of<F> {
                const BLOCKS: &'static [RowKernels] = &[$(RowKernels {
                    rows: $rows,
                    qk: qk::<F, $rows, $tiles>,
                    pv: pv::<F, $rows, $blocks>,
                    finish: finish::<$rows>,
                    row_max: row_max::<$rows>,
                    exp_sum: exp_sum::<F, $rows>,
                }),*];
            }

            pub(super) fn kernels<F: Format + 'static>() -> Kernels {
                Kernels {
                    blocks: Of::<F>::BLOCKS,
                    add_columns: add_columns::<F>,
                    max_columns: max_columns::<F>,
                    elements: F::elements::<$lanes>,
                    pair: F::PAIR,
                    step_bytes: F::STEP_BYTES,
                    slots: F::slots::<$lanes>(),
                    place_p: F::place_p,
                    run_pages: 1,
                    unpack: None,
                    in_tiles: false,
                    packed,
                }
            }
        }
    };
}

level!(scalar, Scalar, Scalar, [], [(1, 1, 1), (4, 1, 1)]);

#[cfg(target_arch = "x86_64")]
use crate::arch::{avx2::Avx2, avx512::Avx512};
#[cfg(target_arch = "x86_64")]
level!(
    avx2,
    Avx2,
    Avx2::new(),
    [target_feature(enable = "avx2,fma,f16c,popcnt")],
    [(1, 2, 2), (2, 2, 2), (4, 1, 1)]
);
#[cfg(target_arch = "x86_64")]
level!(
    avx512,
    Avx512,
    Avx512::new(),
    [target_feature(
        enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi2"
    )],
    [(1, 2, 2), (2, 2, 2), (3, 2, 2), (4, 2, 2), (6, 2, 2), (8, 1, 1), (12, 2, 2)]
);

/// Products in tile registers, everything else with AVX-512.
#[cfg(target_arch = "x86_64")]
mod amx {
    use super::*;
    use crate::arch::amx::asm::Amx;

    type InTiles = Bf16<true>;

    unsafe fn qk(k: *const u8, keys: usize, steps: usize, q: *const f32, out: *mut f32, _ahead: *const u8) {
        // SAFETY: the caller vouches for the pointers, and that the CPU has tile registers, which are configured.
        unsafe { tiles::qk(&mut Amx::new(), k, keys, steps, q, out) }
    }

    unsafe fn pv(
        pages: &[Values],
        block_bytes: usize,
        blocks: usize,
        p: *const f32,
        acc: *mut f32,
        _ahead: *const u8,
    ) {
        // SAFETY: as above.
        unsafe { tiles::pv(&mut Amx::new(), pages, block_bytes, blocks, p, acc) }
    }

    #[target_feature(
        enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi2"
    )]
    unsafe fn unpack_page(kind: PackedKind, page: *const u8, n: usize, runs: usize, to: *mut u8) {
        // SAFETY: the caller vouches for the pointers, and that the CPU has AVX-512.
        unsafe {
            match kind {
                PackedKind::Int8 => unpack::unpack::<Avx512, 8>(Avx512::new(), page, n, runs, to),
                PackedKind::Int4 => unpack::unpack::<Avx512, 4>(Avx512::new(), page, n, runs, to),
                PackedKind::Sparse(_) => unreachable!("sparse pages stay with AVX-512"),
            }
        }
    }

    pub(super) const KERNELS: Kernels = Kernels {
        blocks: &[RowKernels {
            rows: tiles::ROWS,
            qk,
            pv,
            finish: avx512::finish::<{ tiles::ROWS }>,
            row_max: avx512::row_max::<{ tiles::ROWS }>,
            exp_sum: avx512::exp_sum::<InTiles, { tiles::ROWS }>,
        }],
        add_columns: avx512::add_columns::<InTiles>,
        max_columns: avx512::max_columns::<InTiles>,
        elements: InTiles::elements::<Avx512>,
        pair: InTiles::PAIR,
        step_bytes: InTiles::STEP_BYTES,
        slots: <Avx512 as Lanes>::PAIR_SLOTS,
        place_p: InTiles::place_p,
        run_pages: tiles::RUN_PAGES,
        unpack: Some(unpack_page),
        in_tiles: true,
        packed: |_| unreachable!("packed pages are unpacked, or stay with AVX-512"),
    };
}

const _: () = assert!(<Scalar as Lanes>::PAIR_SLOTS == 2);
