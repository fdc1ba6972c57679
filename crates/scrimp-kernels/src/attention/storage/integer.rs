//! `int8` and `int4`: unsigned codes with a minimum and a scale, KIVI's layout (Liu et al. 2024, section 3.2).
//!
//! Keys have a few channels that are large in every token, values do not. So keys share minimum and scale along the
//! tokens of a page, one pair for each dim, and values along the dims, one pair for each token:
//!
//! ```text
//!   k[t][d] = kmin[d] + kscale[d] code[t][d]          v[t][d] = vmin[t] + vscale[t] code[t][d]
//!
//!   K page: [D] kmin, [D] kscale (bf16)      then codes        D: head_dim rounded up to 16
//!   V page: [T] vmin, [T] vscale (bf16)      then codes        T: page_tokens
//! ```
//!
//! Codes are in the order of bf16 elements (see [`storage`](super)), a byte each in `int8`. In `int4` two neighboring
//! steps share 32 bytes, the first in the low halves of the bytes.
//!
//! The minimum is rounded down to bf16 and the scale up, so that codes reach every number: a number that is read
//! differs by at most half a scale. A channel or token with a number that is not finite is NaN as a whole.

use super::{PageGeometry, TILE, packing::Packing};
use half::bf16;

/// 8 bits per element.
pub static INT8: &dyn Packing = &Integer::<8>;
/// 4 bits per element.
pub static INT4: &dyn Packing = &Integer::<4>;

#[derive(Debug)]
struct Integer<const BITS: usize>;

/// Bytes before the codes of a page of `n` minima and scales.
pub(crate) const fn header_bytes(n: usize) -> usize {
    4 * n
}

impl<const BITS: usize> Integer<BITS> {
    const LARGEST: f32 = ((1 << BITS) - 1) as f32;

    /// Puts the code of the element with index `at` (see the module's text).
    #[inline(always)]
    fn put(codes: &mut [u8], at: usize, code: u8) {
        if BITS == 8 {
            codes[at] = code;
        } else {
            let byte = &mut codes[at / 64 * 32 + at % 32];
            *byte = if at % 64 < 32 { *byte & 0xf0 | code } else { *byte & 0x0f | code << 4 };
        }
    }

    #[inline(always)]
    fn get(codes: &[u8], at: usize) -> u8 {
        if BITS == 8 { codes[at] } else { codes[at / 64 * 32 + at % 32] >> (at % 64 / 32 * 4) & 15 }
    }
}

/// Minimum and scale of numbers between `min` and `max`, as they are stored.
fn range(min: f32, max: f32, largest: f32) -> (bf16, bf16) {
    if !(min.is_finite() && max.is_finite()) {
        return (bf16::NAN, bf16::ZERO);
    }
    let low = towards(min, f32::NEG_INFINITY);
    let scale = towards((max - low.to_f32()) / largest, f32::INFINITY);
    (low, scale)
}

/// The nearest bf16 on the side of `x` that `end` is on.
fn towards(x: f32, end: f32) -> bf16 {
    let cut = bf16::from_bits((x.to_bits() >> 16) as u16);
    // Cutting bits off goes towards zero.
    let away = (x > 0.0) == (end > 0.0);
    if cut.to_f32() == x || !away { cut } else { bf16::from_bits(cut.to_bits() + 1) }
}

/// `(x - min) / scale` to the nearest integer from 0 to `largest`, given `1 / scale`. Without branches or calls, so
/// that loops over it are vectorized: adding 1.5 * 2^23 leaves the rounded number in the lowest bits.
#[inline(always)]
fn code(x: f32, min: f32, inverse: f32, largest: f32) -> u8 {
    let y = (x - min) * inverse;
    let y = if y > 0.0 { y } else { 0.0 };
    let y = if y < largest { y } else { largest };
    (y + 12_582_912.0).to_bits() as u8
}

/// 1 / scale, or 0 where there is no scale.
fn inverse(scale: bf16) -> f32 {
    let scale = scale.to_f32();
    if scale >= f32::MIN_POSITIVE && scale.is_finite() { 1.0 / scale } else { 0.0 }
}

fn put_bf16(header: &mut [u8], index: usize, x: bf16) {
    header[2 * index..2 * index + 2].copy_from_slice(&x.to_bits().to_le_bytes());
}

fn get_bf16(header: &[u8], index: usize) -> f32 {
    bf16::from_bits(u16::from_le_bytes([header[2 * index], header[2 * index + 1]])).to_f32()
}

impl<const BITS: usize> Packing for Integer<BITS> {
    fn name(&self) -> &'static str {
        if BITS == 8 { "int8" } else { "int4" }
    }

    fn page_bytes(&self, g: PageGeometry) -> [usize; 2] {
        let (dim, tokens) = (g.padded_dim(), g.page_tokens);
        let codes = tokens.saturating_mul(dim) / 8 * BITS;
        [codes.saturating_add(header_bytes(dim)), codes.saturating_add(header_bytes(tokens))]
    }

    fn pack_k(&self, g: PageGeometry, rows: &[f32], page: &mut [u8]) {
        let (dim, padded) = (g.head_dim, g.padded_dim());
        assert_eq!(rows.len(), g.page_tokens * dim);
        let (header, codes) = page.split_at_mut(header_bytes(padded));
        codes.fill(0);
        for first in (0..dim).step_by(TILE) {
            let n = TILE.min(dim - first);
            let (mut min, mut max, mut odd) = ([f32::INFINITY; TILE], [f32::NEG_INFINITY; TILE], [0.0; TILE]);
            for row in rows.chunks_exact(dim) {
                for (i, &x) in row[first..first + n].iter().enumerate() {
                    min[i] = if x < min[i] { x } else { min[i] };
                    max[i] = if x > max[i] { x } else { max[i] };
                    // 0 as long as all are finite.
                    odd[i] += x * 0.0;
                }
            }
            let (mut low, mut factor) = ([0.0; TILE], [0.0; TILE]);
            for i in 0..TILE {
                let (a, b) = if i < n {
                    range(min[i] + odd[i], max[i], Self::LARGEST)
                } else {
                    (bf16::ZERO, bf16::ZERO)
                };
                put_bf16(header, first + i, a);
                put_bf16(header, padded + first + i, b);
                (low[i], factor[i]) = (a.to_f32(), inverse(b));
            }
            for (slot, row) in rows.chunks_exact(dim).enumerate() {
                let mut x = [0.0; TILE];
                x[..n].copy_from_slice(&row[first..first + n]);
                let x: [u8; TILE] = std::array::from_fn(|i| code(x[i], low[i], factor[i], Self::LARGEST));
                let at = slot / TILE * padded * TILE + first * TILE + slot % TILE * 2;
                for (pair, x) in x.chunks_exact(2).enumerate() {
                    Self::put(codes, at + pair * 32, x[0]);
                    Self::put(codes, at + pair * 32 + 1, x[1]);
                }
            }
        }
    }

    fn pack_v(&self, g: PageGeometry, rows: &[f32], page: &mut [u8]) {
        let (dim, tokens) = (g.head_dim, g.page_tokens);
        assert_eq!(rows.len(), tokens * dim);
        let (header, codes) = page.split_at_mut(header_bytes(tokens));
        codes.fill(0);
        for (slot, row) in rows.chunks_exact(dim).enumerate() {
            let (mut min, mut max, mut odd) = ([f32::INFINITY; TILE], [f32::NEG_INFINITY; TILE], [0.0; TILE]);
            for x in row.chunks(TILE) {
                for (i, &x) in x.iter().enumerate() {
                    min[i] = if x < min[i] { x } else { min[i] };
                    max[i] = if x > max[i] { x } else { max[i] };
                    odd[i] += x * 0.0;
                }
            }
            let min = min.into_iter().fold(f32::INFINITY, f32::min) + odd.iter().sum::<f32>();
            let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
            let (low, scale) = range(min, max, Self::LARGEST);
            put_bf16(header, slot, low);
            put_bf16(header, tokens + slot, scale);
            let (low, factor) = (low.to_f32(), inverse(scale));
            for (block, x) in row.chunks(TILE).enumerate() {
                let at = block * tokens * TILE + slot / 2 * 32 + slot % 2;
                for (i, &x) in x.iter().enumerate() {
                    Self::put(codes, at + 2 * i, code(x, low, factor, Self::LARGEST));
                }
            }
        }
    }

    fn read_k(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        assert!(slot < g.page_tokens);
        let padded = g.padded_dim();
        let (header, codes) = page.split_at(header_bytes(padded));
        let base = slot / TILE * padded * TILE + slot % TILE * 2;
        for (d, x) in row[..g.head_dim].iter_mut().enumerate() {
            let code = Self::get(codes, base + d / 2 * 32 + d % 2);
            *x = get_bf16(header, d) + get_bf16(header, padded + d) * f32::from(code);
        }
    }

    fn read_v(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        assert!(slot < g.page_tokens);
        let (header, codes) = page.split_at(header_bytes(g.page_tokens));
        let (low, scale) = (get_bf16(header, slot), get_bf16(header, g.page_tokens + slot));
        let base = slot / 2 * 32 + slot % 2;
        for (d, x) in row[..g.head_dim].iter_mut().enumerate() {
            let code = Self::get(codes, base + d / TILE * g.page_tokens * TILE + d % TILE * 2);
            *x = low + scale * f32::from(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(packing: &dyn Packing, g: PageGeometry, rows: &[f32]) -> [Vec<u8>; 2] {
        // What an earlier page left must not show.
        let [mut k, mut v] = packing.page_bytes(g).map(|bytes| vec![0xa5; bytes]);
        packing.pack_k(g, rows, &mut k);
        packing.pack_v(g, rows, &mut v);
        [k, v]
    }

    /// A number that is read differs by half a scale at most, the scale being that of the numbers that share it.
    fn check(packing: &dyn Packing, g: PageGeometry, rows: &[f32], steps: f32) {
        let [k, v] = pack(packing, g, rows);
        let dim = g.head_dim;
        let spread = |x: &mut dyn Iterator<Item = f32>| {
            let (min, max) = x.fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(x), b.max(x)));
            // The minimum is rounded down to bf16, and the scale up.
            let low = min.abs() / 128.0;
            (max - min + low) * (1.0 + 1.0 / 128.0) / steps * 0.5 * 1.0001 + max.abs().max(min.abs()) * 1e-6
        };
        let mut row = vec![0.0; dim];
        for slot in 0..g.page_tokens {
            let want = &rows[slot * dim..(slot + 1) * dim];
            packing.read_k(g, &k, slot, &mut row);
            for d in 0..dim {
                let bound = spread(&mut rows[d..].iter().step_by(dim).copied());
                assert!(
                    (row[d] - want[d]).abs() <= bound,
                    "K {slot}.{d}: {} for {} in {g:?}",
                    row[d],
                    want[d]
                );
            }
            packing.read_v(g, &v, slot, &mut row);
            let bound = spread(&mut want.iter().copied());
            for d in 0..dim {
                assert!(
                    (row[d] - want[d]).abs() <= bound,
                    "V {slot}.{d}: {} for {} in {g:?}",
                    row[d],
                    want[d]
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: scrimp_testkit::cases(64), failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn numbers_come_back_within_half_a_scale(
            tiles in 1_usize..5,
            head_dim in 1_usize..70,
            exponent in -20_i32..20,
            offset in -100.0_f32..100.0,
            seed in any::<u64>(),
        ) {
            let g = PageGeometry { page_tokens: tiles * 16, head_dim };
            let mut seed = seed;
            let unit = 2.0_f32.powi(exponent);
            let mut rows: Vec<f32> = (0..g.page_tokens * head_dim)
                .map(|_| super::super::super::tests::noise(&mut seed) * unit)
                .collect();
            // A channel that is large in every token, and one that is constant.
            rows.iter_mut().step_by(head_dim).for_each(|x| *x += offset * unit);
            rows[head_dim - 1..].iter_mut().step_by(head_dim).for_each(|x| *x = offset);
            check(INT8, g, &rows, 255.0);
            check(INT4, g, &rows, 15.0);
        }
    }

    #[test]
    fn whole_numbers_are_exact() {
        let g = PageGeometry { page_tokens: 64, head_dim: 48 };
        for (packing, codes) in [(INT8, 256), (INT4, 16)] {
            let value = |slot: usize, d: usize| ((slot * 7 + d * 5) % codes) as f32 - 8.0;
            let rows: Vec<f32> = (0..64 * 48).map(|i| value(i / 48, i % 48)).collect();
            // Every channel and token reaches both ends.
            let mut rows = rows;
            for i in 0..64 {
                rows[i * 48 + i % 48] = -8.0;
                rows[i * 48 + (i + 1) % 48] = codes as f32 - 9.0;
            }
            let [k, v] = pack(packing, g, &rows);
            let mut row = vec![0.0; 48];
            for slot in 0..64 {
                packing.read_k(g, &k, slot, &mut row);
                assert_eq!(row, rows[slot * 48..][..48]);
                packing.read_v(g, &v, slot, &mut row);
                assert_eq!(row, rows[slot * 48..][..48]);
            }
        }
    }

    #[test]
    fn numbers_that_are_not_finite_show() {
        let g = PageGeometry { page_tokens: 16, head_dim: 20 };
        for packing in [INT8, INT4] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut rows = vec![1.0; 16 * 20];
                rows[3 * 20 + 7] = bad;
                let [k, v] = pack(packing, g, &rows);
                let mut row = vec![0.0; 20];
                packing.read_k(g, &k, 9, &mut row);
                assert!((0..20).all(|d| row[d].is_nan() == (d == 7)));
                packing.read_v(g, &v, 3, &mut row);
                assert!(row.iter().all(|x| x.is_nan()));
                packing.read_v(g, &v, 4, &mut row);
                assert!(row.iter().all(|&x| x == 1.0));
            }
            // The largest numbers are no reason to panic.
            let rows: Vec<f32> = (0..16 * 20).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect();
            pack(packing, g, &rows);
        }
    }

    #[test]
    fn sizes() {
        let g = PageGeometry { page_tokens: 64, head_dim: 64 };
        assert_eq!(INT8.page_bytes(g), [4096 + 256, 4096 + 256]);
        assert_eq!(INT4.page_bytes(g), [2048 + 256, 2048 + 256]);
        let g = PageGeometry { page_tokens: 64, head_dim: 80 };
        assert_eq!(INT8.page_bytes(g), [5120 + 320, 5120 + 256]);
    }
}
