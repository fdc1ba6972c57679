//! Quantization of a row of activations to 8 bits or bf16.
//!
//! ```text
//! scale = max |x| / 127        q = x / scale, rounded half to even        of a group of 32 columns, or of a row
//! bf16  = x rounded half to even; NaN stays NaN
//! ```
//! Every level gives the same bits.

use super::activations::RowScale;
use crate::{
    arch::{Kernel, Level, Simd},
    exec::DisjointSliceMut,
    quant::{GROUP, QuantGroup, round_to_bf16},
};

/// Quantizes the row of a token into the groups `start`, `start + width` and so on.
pub(super) struct Quantize<'a> {
    row: &'a [f32],
    out: &'a DisjointSliceMut<'a, QuantGroup>,
    start: usize,
    width: usize,
}

impl<'a> Quantize<'a> {
    /// # Safety
    /// No other thread accesses these groups until it has run.
    pub(super) unsafe fn new(
        row: &'a [f32],
        out: &'a DisjointSliceMut<'a, QuantGroup>,
        start: usize,
        width: usize,
    ) -> Self {
        Self { row, out, start, width }
    }
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        for (i, x) in self.row.as_chunks::<GROUP>().0.iter().enumerate() {
            let at = self.start + i * self.width;
            // SAFETY: `Quantize::new` requires that no one else accesses these groups until it has run; `slice`
            // checks the bounds.
            let out = unsafe { self.out.slice(at..at + 1) };
            out[0] = quantize(s, x);
        }
    }
}

/// A row as bf16, rounded half to even; NaN stays NaN. Plain integer arithmetic, which compilers turn into vectors.
pub(super) struct RoundRow<'a> {
    pub(super) row: &'a [f32],
    pub(super) out: &'a mut [u16],
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, _: S) {
        for (out, x) in self.out.iter_mut().zip(self.row) {
            *out = round_to_bf16(*x);
        }
    }
}

/// Quantizes a whole row with one scale.
pub(super) struct QuantizeRow<'a> {
    pub(super) row: &'a [f32],
    pub(super) out: &'a mut [i32],
    pub(super) width: usize,
}

impl Kernel for QuantizeRow<'_> {
    type Output = RowScale;

    #[inline(always)]
    fn run<S: Level>(self, s: S) -> RowScale {
        let vectors = self.row.as_chunks::<16>().0;
        let magnitude = s.splat_i32(0x7fff_ffff);
        let mut bits = s.splat_i32(0);
        for x in vectors {
            bits = s.max_i32(bits, s.and_i32(s.bits(s.load(x)), magnitude));
        }
        let largest = f32::from_bits(s.reduce_max_i32(bits) as u32);
        if !largest.is_finite() || largest < 1e-30 {
            self.out.iter_mut().step_by(self.width).for_each(|out| *out = 0);
            return RowScale { scale: if largest.is_finite() { 0.0 } else { f32::NAN }, sum: 0 };
        }
        let inverse = s.splat(127.0 / largest);
        let mut sum = 0;
        let mut out = self.out.iter_mut().step_by(self.width);
        for x in vectors {
            let mut bytes = [0i8; 16];
            s.store_low_bytes(s.round_i32(s.mul(s.load(x), inverse)), &mut bytes);
            sum += bytes.iter().map(|&b| i32::from(b)).sum::<i32>();
            for (b, out) in bytes.as_chunks::<4>().0.iter().zip(out.by_ref()) {
                *out = i32::from_ne_bytes(b.map(|b| b as u8));
            }
        }
        RowScale { scale: largest / 127.0, sum }
    }
}

#[inline(always)]
fn quantize<S: Simd>(s: S, x: &[f32; GROUP]) -> QuantGroup {
    let [lo, hi] = *x.as_chunks::<16>().0 else { unreachable!("a group is two vectors") };
    let (lo, hi) = (s.load(&lo), s.load(&hi));
    // The bits of a magnitude, seen as an integer, are ordered like the magnitude; NaN and infinity come last.
    let magnitude = s.splat_i32(0x7fff_ffff);
    let bits = s.max_i32(s.and_i32(s.bits(lo), magnitude), s.and_i32(s.bits(hi), magnitude));
    let largest = f32::from_bits(s.reduce_max_i32(bits) as u32);
    if !largest.is_finite() {
        return QuantGroup { scale: f32::NAN, sum: f32::NAN, ..QuantGroup::default() };
    }
    if largest < 1e-30 {
        return QuantGroup::default();
    }
    let inverse = s.splat(127.0 / largest);
    let (qlo, qhi) = (s.round_i32(s.mul(lo, inverse)), s.round_i32(s.mul(hi, inverse)));
    let mut bytes = [[0i8; 16]; 2];
    s.store_low_bytes(qlo, &mut bytes[0]);
    s.store_low_bytes(qhi, &mut bytes[1]);
    let q: [i32; 8] = std::array::from_fn(|i| {
        let b = &bytes[i / 4][4 * (i % 4)..4 * (i % 4) + 4];
        i32::from_le_bytes([b[0] as u8, b[1] as u8, b[2] as u8, b[3] as u8])
    });
    let scale = largest / 127.0;
    let [(first, negated_first), (last, negated_last)] = [s.sums(&bytes[0]), s.sums(&bytes[1])];
    let negated_sums = [negated_first, negated_last];
    QuantGroup { q, scale, sum: scale * (first + last) as f32, negated_sums }
}
