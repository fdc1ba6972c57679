//! The storage formats as the kernels of [`qk_pv`](super::qk_pv) read them: steps of a page, elements of a query, and
//! probabilities.
//!
//! ```text
//! f32, f16   a step is 16 elements; mac: acc = fma(step, element, acc)
//! bf16       a step is 16 pairs; mac: acc += step.0 element.0 + step.1 element.1       queries and p rounded to bf16
//! ```

use crate::{
    arch::{AttentionSimd, array, attention::RowPair},
    quant::round_to_bf16,
};

/// Where [`Format::elements`] writes a query.
#[derive(Clone, Copy)]
pub(crate) struct ElementPlace {
    /// Steps of a row.
    pub(crate) steps: usize,
    /// Which row of the block.
    pub(crate) r: usize,
    /// Rows of the block.
    pub(crate) rows: usize,
}

/// How a kernel reads one storage format.
pub(crate) trait Format: Copy {
    /// Elements of a row to a step.
    const PAIR: usize;
    /// Bytes of a step.
    const STEP_BYTES: usize;
    /// A step's data in registers.
    type Step<S: AttentionSimd>: Copy;

    /// `f32` slots of an element.
    fn slots<S: AttentionSimd>() -> usize;
    /// # Safety
    /// `STEP_BYTES` bytes can be read at `at`, which is aligned to 4.
    unsafe fn load<S: AttentionSimd>(s: S, at: *const u8) -> Self::Step<S>;
    /// # Safety
    /// An element can be read at `element`.
    unsafe fn mac<S: AttentionSimd>(s: S, acc: S::F, step: Self::Step<S>, element: *const f32) -> S::F;
    /// Writes probabilities in element form and returns them as they are stored.
    fn store_p<S: AttentionSimd>(s: S, x: S::F, to: &mut [f32; 16]) -> S::F;
    /// The weights of two rows, in all lanes.
    type Weights<S: AttentionSimd>: Copy;
    /// The weights of a pair of rows.
    fn weights<S: AttentionSimd>(s: S, pair: &RowPair) -> Self::Weights<S>;
    /// Tiles whose probabilities of a row share a line.
    const LINE: usize = 1;
    /// `acc + weights[0] * a + weights[1] * b` for the [`Format::LINE`] tiles that `store_p` has written to `a` and
    /// `b`.
    fn add_p<S: AttentionSimd>(
        s: S,
        acc: [S::F; 2],
        a: &[f32; 16],
        b: &[f32; 16],
        weights: Self::Weights<S>,
    ) -> [S::F; 2];
    /// What `store_p` has written to `a`.
    fn load_p<S: AttentionSimd>(s: S, a: &[f32; 16]) -> S::F;
    /// Writes the elements of `row` in their places; dims beyond its end are 0.
    fn elements<S: AttentionSimd>(row: &[f32], place: ElementPlace, to: &mut [f32]);
    /// Where the probabilities of a tile start, in floats; its scores start at `tile * stride`.
    #[inline(always)]
    fn place_p(tile: usize, stride: usize) -> usize {
        tile * stride
    }
    /// Writes padding behind the last of `tiles` tiles, `stride` floats each.
    ///
    /// # Safety
    /// `p` are their probabilities.
    #[inline(always)]
    unsafe fn pad_p(_p: *mut f32, _tiles: usize, _stride: usize) {}
}

/// bf16 pages; queries and probabilities are rounded to bf16 too, in every level.
///
/// With `IN_TILES` they stand as tile registers load them (see [`tiles`](super::amx)): 64 bytes of a row after the
/// other, queries as `[block of 16 steps][R][16 steps]`, probabilities of two tiles of keys side by side.
#[derive(Clone, Copy)]
pub(crate) struct Bf16<const IN_TILES: bool = false>;
/// f16 pages, f32 arithmetic.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// f32 pages, f32 arithmetic.
#[derive(Clone, Copy)]
pub(crate) struct F32;

impl<const IN_TILES: bool> Format for Bf16<IN_TILES> {
    const PAIR: usize = 2;
    const STEP_BYTES: usize = 64;
    type Step<S: AttentionSimd> = S::Pairs;

    #[inline(always)]
    fn slots<S: AttentionSimd>() -> usize {
        S::PAIR_SLOTS
    }
    #[inline(always)]
    unsafe fn load<S: AttentionSimd>(s: S, at: *const u8) -> S::Pairs {
        // SAFETY: the caller guarantees `STEP_BYTES` readable bytes, aligned to 4, which are 16 floats.
        s.load_pairs(unsafe { &*at.cast() })
    }
    #[inline(always)]
    unsafe fn mac<S: AttentionSimd>(s: S, acc: S::F, step: S::Pairs, element: *const f32) -> S::F {
        // SAFETY: the caller guarantees a readable element.
        unsafe { s.mac_pairs(acc, step, element) }
    }
    #[inline(always)]
    fn store_p<S: AttentionSimd>(s: S, x: S::F, to: &mut [f32; 16]) -> S::F {
        s.store_rounded(x, to)
    }
    type Weights<S: AttentionSimd> = S::Weights;
    #[inline(always)]
    fn weights<S: AttentionSimd>(s: S, pair: &RowPair) -> S::Weights {
        s.weights(pair)
    }
    const LINE: usize = if IN_TILES { 2 } else { 1 };
    #[inline(always)]
    fn add_p<S: AttentionSimd>(
        s: S,
        acc: [S::F; 2],
        a: &[f32; 16],
        b: &[f32; 16],
        weights: S::Weights,
    ) -> [S::F; 2] {
        match IN_TILES {
            true => s.add_rounded_line(acc, a, b, weights),
            false => [s.add_rounded(acc[0], a, b, weights), acc[1]],
        }
    }
    #[inline(always)]
    fn load_p<S: AttentionSimd>(s: S, a: &[f32; 16]) -> S::F {
        s.load_rounded(a)
    }
    #[inline(always)]
    fn elements<S: AttentionSimd>(row: &[f32], place: ElementPlace, to: &mut [f32]) {
        let ElementPlace { steps, r, rows } = place;
        let slots = S::PAIR_SLOTS;
        let place = |step: usize| match IN_TILES {
            true => step / 16 * rows * 16 + r * 16 + step % 16,
            false => step * rows + r,
        };
        // Vectors of 16: 8 steps, which lie apart or together.
        for first in (0..steps).step_by(8) {
            let mut x = [0.0; 16];
            let from = row.get(2 * first..).unwrap_or_default();
            let n = from.len().min(16);
            x[..n].copy_from_slice(&from[..n]);
            let mut bits = [0; 16];
            bits.iter_mut().zip(x).for_each(|(bits, x)| *bits = round_to_bf16(x));
            for (i, pair) in bits.chunks_exact(2).enumerate() {
                S::pair_element(pair[0], pair[1], &mut to[place(first + i) * slots..][..slots]);
            }
        }
    }
    #[inline(always)]
    fn place_p(tile: usize, stride: usize) -> usize {
        if IN_TILES { tile / 2 * stride + tile % 2 * 8 } else { tile * stride }
    }
    #[inline(always)]
    unsafe fn pad_p(p: *mut f32, tiles: usize, stride: usize) {
        if IN_TILES && !tiles.is_multiple_of(2) {
            for row in (0..stride).step_by(16) {
                // SAFETY: the second half of a row of the last tile, whose scores are no longer needed.
                unsafe { p.add(Self::place_p(tiles, stride) + row).write_bytes(0, 8) };
            }
        }
    }
}

macro_rules! plain_format {
    ($name:ident, $bytes:literal, |$s:ident, $at:ident| $load:expr) => {
        impl Format for $name {
            const PAIR: usize = 1;
            const STEP_BYTES: usize = $bytes;
            type Step<S: AttentionSimd> = S::F;

            #[inline(always)]
            fn slots<S: AttentionSimd>() -> usize {
                1
            }
            #[inline(always)]
            unsafe fn load<S: AttentionSimd>($s: S, $at: *const u8) -> S::F {
                // SAFETY: the caller guarantees `STEP_BYTES` readable bytes, aligned to 4, which are 16 numbers.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn mac<S: AttentionSimd>(s: S, acc: S::F, step: S::F, element: *const f32) -> S::F {
                // SAFETY: the caller guarantees a readable element.
                s.mul_acc(step, s.splat(unsafe { *element }), acc)
            }
            #[inline(always)]
            fn store_p<S: AttentionSimd>(s: S, x: S::F, to: &mut [f32; 16]) -> S::F {
                s.store(x, to);
                x
            }
            type Weights<S: AttentionSimd> = [S::F; 2];
            #[inline(always)]
            fn weights<S: AttentionSimd>(s: S, pair: &RowPair) -> [S::F; 2] {
                array(|i| s.splat(pair.weights[i]))
            }
            #[inline(always)]
            fn add_p<S: AttentionSimd>(
                s: S,
                acc: [S::F; 2],
                a: &[f32; 16],
                b: &[f32; 16],
                w: [S::F; 2],
            ) -> [S::F; 2] {
                [s.mul_acc(s.load(b), w[1], s.mul_acc(s.load(a), w[0], acc[0])), acc[1]]
            }
            #[inline(always)]
            fn load_p<S: AttentionSimd>(s: S, a: &[f32; 16]) -> S::F {
                s.load(a)
            }
            #[inline(always)]
            fn elements<S: AttentionSimd>(row: &[f32], place: ElementPlace, to: &mut [f32]) {
                let ElementPlace { steps, r, rows } = place;
                let values = row.iter().copied().chain(std::iter::repeat(0.0));
                to[r..].iter_mut().step_by(rows).take(steps).zip(values).for_each(|(to, x)| *to = x);
            }
        }
    };
}
plain_format!(F16, 32, |s, at| s.load_f16(&*at.cast()));
plain_format!(F32, 64, |s, at| s.load(&*at.cast()));
