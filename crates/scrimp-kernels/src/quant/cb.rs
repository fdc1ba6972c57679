//! `cb4`, `cb3` and `cb2`: 32 columns of 4, 3 or 2 bits, which are indexes into a fixed codebook, with a scale of 8 bits.
//!
//! ```text
//! scale             a sign, 4 bits of exponent, 3 of mantissa: +-2^(e - 20) (1 + m / 8), for e = 0: +-2^-19 m / 8
//!
//! file, per row:    cb4: scale, 16 bytes: low nibbles are columns 0..16, high nibbles 16..32
//!                   cb3: scale, low[2][4], high[4]       cb2: scale, low[2][4]
//!                   column c = 4 k + j: low is low[k / 4][j] >> 2 (k % 4) & 3, high is high[j] >> k & 1
//! block of 16 rows: scale[16], then the bytes of the rows, 4 columns at a time: [..][16 rows][4]
//! ```
//! 4.25, 3.25 and 2.25 bits per weight, as in the file.
//!
//! The codebooks are the Lloyd-Max quantizers (Lloyd, 1982) of normally distributed weights, given that a group takes
//! the sign and the scale with the least squared error. They are not symmetric, so the sign of the scale selects one of
//! two codebooks. The squared error relative to the weights is 0.0057, 0.0234 and 0.096; with 16 evenly spaced values
//! it is 0.0070, with those of `IQ4_NL` 0.0058.

use super::{BlockFormat, GROUP, Group, PANEL_ROWS, Symmetric, interleave4, iq4_nl, q4};
use crate::{DType, arch::Simd};
use bytemuck::{Pod, Zeroable};
use half::f16;

/// The values of the indexes of `cb4`.
const VALUES4: [i8; 16] = [-127, -100, -79, -62, -47, -34, -21, -9, 3, 15, 28, 41, 55, 72, 92, 123];
/// Those of `cb3`.
const VALUES3: [i8; 8] = [-127, -77, -45, -18, 7, 33, 64, 105];
/// Those of `cb2`.
const VALUES2: [i8; 4] = [-127, -44, 18, 90];
/// A scale is its float of 8 bits times this.
const FACTOR: f32 = 1.0 / 32.0;
/// The largest weight that the formats hold.
pub const LARGEST: f32 = 3.75 * FACTOR * 127.0;

/// `w = scale * (QUANTS4[index] - 128)`.
pub(crate) struct Cb4;
/// The same with 8 values.
pub(crate) struct Cb3;
/// The same with 4 values.
pub(crate) struct Cb2;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block4 {
    scale: [u8; PANEL_ROWS],
    q: [[u8; 64]; 4],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block3 {
    scale: [u8; PANEL_ROWS],
    low: [[u8; 64]; 2],
    high: [u8; 64],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Block2 {
    scale: [u8; PANEL_ROWS],
    low: [[u8; 64]; 2],
}

/// The first 16 entries of a lookup table: `values` plus 128.
const fn quants(values: &[i8]) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < values.len() {
        out[i] = (values[i] as i32 + 128) as u8;
        i += 1;
    }
    out
}

/// The codebook of `dtype`, ascending; `None` for types of other formats.
const fn values(dtype: DType) -> Option<&'static [i8]> {
    match dtype {
        DType::CB4 => Some(&VALUES4),
        DType::CB3 => Some(&VALUES3),
        DType::CB2 => Some(&VALUES2),
        _ => None,
    }
}

/// The f16 of a scale's 8 bits, before [`FACTOR`].
#[inline(always)]
fn as_f16(scale: u8) -> u16 {
    u16::from(scale & 0x80) << 8 | u16::from(scale & 0x7f) << 7
}

/// The scale that 8 bits mean.
fn scale(byte: u8) -> f32 {
    f16::from_bits(as_f16(byte)).to_f32() * FACTOR
}

/// The index of column `column` of a stored block.
fn index(dtype: DType, block: &[u8], column: usize) -> usize {
    let (k, j) = (column / 4, column % 4);
    if dtype == DType::CB4 {
        return usize::from(block[1 + column % 16] >> (4 * (column / 16)) & 15);
    }
    let low = block[1 + 4 * (k / 4) + j] >> (2 * (k % 4)) & 3;
    let high = if dtype == DType::CB3 { block[9 + j] >> k & 1 } else { 0 };
    usize::from(low | high << 2)
}

/// Stores `index` as column `column` of a block whose bytes are zero there.
fn put_index(dtype: DType, block: &mut [u8], column: usize, index: usize) {
    let (k, j, index) = (column / 4, column % 4, index as u8);
    if dtype == DType::CB4 {
        block[1 + column % 16] |= index << (4 * (column / 16));
        return;
    }
    block[1 + 4 * (k / 4) + j] |= (index & 3) << (2 * (k % 4));
    if dtype == DType::CB3 {
        block[9 + j] |= (index >> 2) << k;
    }
}

/// Decodes a stored block.
pub(crate) fn dequantize(dtype: DType, block: &[u8], y: &mut [f32]) {
    let (scale, values) = (scale(block[0]), values(dtype).unwrap_or_default());
    for (c, y) in y.iter_mut().enumerate() {
        *y = scale * f32::from(values[index(dtype, block, c)]);
    }
}

#[inline(always)]
fn load_scale<S: Simd>(s: S, scale: &[u8; PANEL_ROWS]) -> S::F {
    let mut bits = [0; PANEL_ROWS];
    for r in 0..PANEL_ROWS {
        bits[r] = as_f16(scale[r]);
    }
    s.mul(s.load_f16(&bits), s.splat(FACTOR))
}

/// The low two bits of 32 columns.
#[inline(always)]
fn low_bits<S: Simd>(s: S, low: &[[u8; 64]; 2]) -> [S::B; 8] {
    let mut w = [s.load_b(&low[0]); 8];
    for k in 0..8 {
        w[k] = s.bits_at(s.load_b(&low[k / 4]), 2 * (k % 4), 0, 3);
    }
    w
}

impl BlockFormat for Cb4 {
    type Quants = Symmetric<128, 255>;
    type Block = Block4;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block4) {
        block.scale = rows.map(|row| row[0]);
        for (k, q) in block.q.iter_mut().enumerate() {
            interleave4(rows, 1 + 4 * k, q);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block4, _: usize) -> Group<S> {
        let w = iq4_nl::lookup(s, const { &quants(&VALUES4) }, q4::unpack(s, &block.q));
        Group::symmetric(s, w, load_scale(s, &block.scale))
    }
}

impl BlockFormat for Cb3 {
    type Quants = Symmetric<128, 255>;
    type Block = Block3;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block3) {
        block.scale = rows.map(|row| row[0]);
        for (k, low) in block.low.iter_mut().enumerate() {
            interleave4(rows, 1 + 4 * k, low);
        }
        interleave4(rows, 9, &mut block.high);
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block3, _: usize) -> Group<S> {
        let mut w = low_bits(s, &block.low);
        for k in 0..8 {
            w[k] = s.with_bits(w[k], s.load_b(&block.high), k, 2, 1);
        }
        let w = iq4_nl::lookup(s, const { &quants(&VALUES3) }, w);
        Group::symmetric(s, w, load_scale(s, &block.scale))
    }
}

impl BlockFormat for Cb2 {
    type Quants = Symmetric<128, 255>;
    type Block = Block2;
    const GROUPS: usize = 1;

    fn pack(_: DType, rows: &[&[u8]; PANEL_ROWS], block: &mut Block2) {
        block.scale = rows.map(|row| row[0]);
        for (k, low) in block.low.iter_mut().enumerate() {
            interleave4(rows, 1 + 4 * k, low);
        }
    }

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &Block2, _: usize) -> Group<S> {
        let w = iq4_nl::lookup(s, const { &quants(&VALUES2) }, low_bits(s, &block.low));
        Group::symmetric(s, w, load_scale(s, &block.scale))
    }
}

/// A codebook format as an encoder uses it: the choice of scales, and rounding.
#[derive(Debug, Clone)]
pub struct Codebook {
    dtype: DType,
    values: &'static [i8],
    /// The index of the value nearest to `x`, at `floor(2 x) + 256`: midpoints are multiples of one half.
    nearest: Box<[u8; 512]>,
    /// The positive scales, ascending, by their bits.
    scales: Box<[f32; 128]>,
}

/// Columns that share a scale.
pub const COLUMNS: usize = GROUP;
/// The ratios of the largest weight of a group to `127 * scale` between which scales are tried. Small ones are the best
/// where magnitudes are alike, large ones where the largest weight has little importance.
const TRIED: (f32, f32) = (0.1, 4.0);

impl Codebook {
    /// The codebook of `cb4`, `cb3` or `cb2`; `None` for other types.
    pub fn new(dtype: DType) -> Option<Self> {
        let values = values(dtype)?;
        let mut nearest = Box::new([0; 512]);
        for (i, nearest) in nearest.iter_mut().enumerate() {
            let twice = i as i32 - 256;
            let below = |pair: &&[i8]| i32::from(pair[0]) + i32::from(pair[1]) <= twice;
            *nearest = values.windows(2).filter(below).count() as u8;
        }
        let scales = Box::new(std::array::from_fn(|byte| scale(byte as u8)));
        Some(Self { dtype, values, nearest, scales })
    }

    /// The index of the value nearest to `x`, which is a weight divided by its scale.
    #[inline]
    fn nearest(&self, x: f32) -> usize {
        // A conversion to integers saturates, and NaN becomes 0.
        let at = ((2.0 * x).floor() as i32).clamp(-256, 255);
        usize::from(self.nearest[(at + 256) as usize])
    }

    /// `scale` times the value that is nearest to `w / scale`; 0 if `scale` is 0.
    #[inline]
    pub fn round(&self, scale: f32, w: f32) -> f32 {
        if scale == 0.0 { 0.0 } else { scale * f32::from(self.values[self.nearest(w / scale)]) }
    }

    /// The scale of a group of weights with the least sum of `importance[i] * (w[i] - rounded w[i])^2`; 0 if all weights
    /// are 0.
    pub fn scale(&self, weights: &[f32], importance: &[f32]) -> f32 {
        let largest = weights.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
        if largest == 0.0 {
            return 0.0;
        }
        let last = self.scales[127];
        let mut best = (f32::INFINITY, last);
        for &positive in &self.scales[1..] {
            let ratio = largest / (127.0 * positive);
            if ratio > TRIED.1 && positive < last || ratio < TRIED.0 && best.0.is_finite() {
                continue;
            }
            for tried in [positive, -positive] {
                let inverse = 1.0 / tried;
                let error: f32 = weights
                    .iter()
                    .zip(importance)
                    .map(|(w, h)| {
                        let x = w * inverse;
                        let error = x - f32::from(self.values[self.nearest(x)]);
                        h * error * error
                    })
                    .sum();
                let error = error * tried * tried;
                if error < best.0 {
                    best = (error, tried);
                }
            }
        }
        best.1
    }

    /// The type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Stores a row of weights, which are rounded to the `scales` of its groups of [`COLUMNS`], in `to`.
    ///
    /// # Panics
    /// When the lengths do not fit each other.
    pub fn encode(&self, weights: &[f32], scales: &[f32], to: &mut [u8]) {
        assert_eq!(Some(to.len()), self.dtype.row_bytes(weights.len()), "bytes of a row");
        assert_eq!(scales.len(), weights.len() / COLUMNS, "scales of a row");
        to.fill(0);
        let blocks = to.chunks_exact_mut(self.dtype.block_bytes());
        for ((block, w), &wanted) in blocks.zip(weights.chunks_exact(COLUMNS)).zip(scales) {
            let magnitude = self.scales.partition_point(|&scale| scale < wanted.abs()).min(0x7f);
            block[0] = magnitude as u8 | u8::from(wanted < 0.0) << 7;
            for (c, &w) in w.iter().enumerate() {
                let index = if wanted == 0.0 { 0 } else { self.nearest(w / wanted) };
                put_index(self.dtype, block, c, index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize::dequantize_row;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(scrimp_testkit::cases(64)))]

        #[test]
        fn rounded_rows_are_stored_exactly_and_scales_are_the_best(
            which in 0..3_usize, seed: u64, size in -14..4_i32, uniform: bool,
        ) {
            let dtype = DType::CODEBOOKS[which];
            let codebook = Codebook::new(dtype).expect("a codebook format");
            let mut numbers = scrimp_testkit::numbers(seed, 4 * COLUMNS);
            if uniform {
                numbers.iter_mut().for_each(|x| *x = x.signum());
            }
            let weights: Vec<f32> = numbers[..2 * COLUMNS].iter().map(|x| x * 2.0_f32.powi(size)).collect();
            let importance: Vec<f32> = numbers[2 * COLUMNS..].iter().map(|x| x * x + 0.1).collect();
            let groups = || weights.chunks_exact(COLUMNS).zip(importance.chunks_exact(COLUMNS));
            let scales: Vec<f32> = groups().map(|(w, h)| codebook.scale(w, h)).collect();
            let error = |scale: f32, w: &[f32], h: &[f32]| -> f64 {
                let one = |(w, h): (&f32, &f32)| f64::from(h * (w - codebook.round(scale, *w)).powi(2));
                w.iter().zip(h).map(one).sum()
            };
            for ((w, h), &found) in groups().zip(&scales) {
                let best = (0..=u8::MAX).map(|byte| error(scale(byte), w, h)).fold(f64::INFINITY, f64::min);
                prop_assert!(error(found, w, h) <= best * 1.05 + 1e-12, "{dtype}: {} {best}", error(found, w, h));
            }
            let rounded: Vec<f32> =
                weights.iter().enumerate().map(|(i, &w)| codebook.round(scales[i / COLUMNS], w)).collect();
            let mut stored = vec![0xff; dtype.row_bytes(weights.len()).expect("whole blocks")];
            codebook.encode(&rounded, &scales, &mut stored);
            let mut read = vec![f32::NAN; weights.len()];
            dequantize_row(dtype, &stored, &mut read);
            prop_assert_eq!(read, rounded, "{}", dtype);
        }
    }

    #[test]
    fn zeros_stay_zero() {
        for dtype in DType::CODEBOOKS {
            let codebook = Codebook::new(dtype).unwrap();
            let scale = codebook.scale(&[0.0; COLUMNS], &[1.0; COLUMNS]);
            assert_eq!((scale, codebook.round(scale, 0.0)), (0.0, 0.0));
            let mut stored = vec![0xff; dtype.block_bytes()];
            codebook.encode(&[0.0; COLUMNS], &[scale], &mut stored);
            let mut read = [f32::NAN; COLUMNS];
            dequantize_row(dtype, &stored, &mut read);
            assert_eq!(read, [0.0; COLUMNS], "{dtype}");
        }
        assert!(Codebook::new(DType::Q4_0).is_none());
    }
}
