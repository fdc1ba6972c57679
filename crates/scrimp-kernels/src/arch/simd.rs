//! The vector operations that kernels are written in, and one implementation per level.
//!
//! Kernels are generic over [`Simd`], a token whose existence proves that the CPU has the instructions. All methods
//! are `#[inline(always)]`: they carry no `target_feature` of their own and take on the features of the entry point
//! in [`crate::arch::dispatch`] that they are inlined into.
//!
//! Every operation is exact or rounds to nearest-even like IEEE 754 asks, and reductions have a fixed order, so a
//! kernel written in these operations gives the same bits in every level.

/// 16 lanes of `f32` and `i32`, and 64 bytes seen as 16 lanes of 4.
pub(crate) trait Simd: Copy {
    /// Tokens that a GEMM kernel handles at once: what the registers can accumulate.
    const TOKEN_TILE: usize;
    /// The compiler may unroll and reorder the steps of a group: the registers hold all values that are then alive.
    const UNROLL: bool;
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 64 × u8: for each of 16 rows, 4 neighboring columns.
    type B: Copy;
    /// Sums of integer products of 16 rows, in the narrowest form that the instructions give.
    type Accumulator: Copy;
    /// The largest magnitude that a lane of a [`Simd::Accumulator`] holds; it adds up two of each 4 columns, or all.
    const ACCUMULATOR_MAX: usize;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 16]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; 16]);
    fn load_f16(self, x: &[u16; 16]) -> Self::F;
    fn load_bf16(self, x: &[u16; 16]) -> Self::F;
    fn load_u8(self, x: &[u8; 16]) -> Self::F;
    fn load_i8(self, x: &[i8; 16]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; lanes must fit an i32.
    fn round_i32(self, x: Self::F) -> Self::I;
    fn to_f32(self, x: Self::I) -> Self::F;
    /// The bits of the floats.
    fn bits(self, x: Self::F) -> Self::I;
    /// Floats from their bits.
    fn of_bits(self, x: Self::I) -> Self::F;

    fn splat_i32(self, x: i32) -> Self::I;
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn and_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl_i32<const N: u32>(self, a: Self::I) -> Self::I;
    /// With copies of the sign bit.
    fn shr_i32<const N: u32>(self, a: Self::I) -> Self::I;
    /// The low byte of each lane.
    fn store_low_bytes(self, x: Self::I, to: &mut [i8; 16]);
    fn store_i32(self, x: Self::I, to: &mut [i32; 16]);

    fn load_b(self, x: &[u8; 64]) -> Self::B;
    fn store_b(self, x: Self::B, to: &mut [u8; 64]);
    /// Each byte less `x`; wraps around.
    fn wrapping_sub(self, a: Self::B, x: u8) -> Self::B;
    /// The low 4 bits of each byte.
    fn low_nibbles(self, x: Self::B) -> Self::B;
    /// The high 4 bits of each byte.
    fn high_nibbles(self, x: Self::B) -> Self::B;
    /// The low (`half` 0) or high (`half` 1) 4 bits of each byte.
    fn nibbles(self, x: Self::B, half: usize) -> Self::B;
    /// `low | ((x >> shift) & mask) << 4` for each byte: puts bits `shift..` of `x` on top of a 4-bit value. `mask` is
    /// 1 or 3, `shift` at most 7 or 6.
    fn with_high_bits(self, low: Self::B, x: Self::B, shift: usize, mask: u8) -> Self::B;

    /// `((x >> from) & mask) << to` of each byte: bits `from..` of `x`, moved to bit `to`.
    #[inline(always)]
    fn bits_at(self, x: Self::B, from: usize, to: usize, mask: u8) -> Self::B {
        let mut bytes = [0; 64];
        self.store_b(x, &mut bytes);
        for byte in &mut bytes {
            *byte = (*byte >> from & mask) << to;
        }
        self.load_b(&bytes)
    }
    /// `low | ((x >> from) & mask) << to` for each byte.
    #[inline(always)]
    fn with_bits(self, low: Self::B, x: Self::B, from: usize, to: usize, mask: u8) -> Self::B {
        let (mut bytes, mut others) = ([0; 64], [0; 64]);
        self.store_b(low, &mut bytes);
        self.store_b(x, &mut others);
        for (byte, other) in bytes.iter_mut().zip(others) {
            *byte |= (other >> from & mask) << to;
        }
        self.load_b(&bytes)
    }
    /// Each byte, which is below 16, replaced by the entry of `table` that it indexes.
    #[inline(always)]
    fn lookup16(self, table: &[u8; 16], x: Self::B) -> Self::B {
        let mut bytes = [0; 64];
        self.store_b(x, &mut bytes);
        for byte in &mut bytes {
            *byte = table[usize::from(*byte & 15)];
        }
        self.load_b(&bytes)
    }
    /// The 4 bytes of each row times the row's factor. Products are below 256.
    #[inline(always)]
    fn scale_quants(self, w: Self::B, factor: &[u8; 16]) -> Self::B {
        let mut bytes = [0_u8; 64];
        self.store_b(w, &mut bytes);
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = byte.wrapping_mul(factor[i / 4]);
        }
        self.load_b(&bytes)
    }

    /// The sum of 16 activations in memory order, and the argument of [`Simd::acc_init`]: the negated sums of the
    /// columns that each lane of a [`Simd::Accumulator`] adds up.
    #[inline(always)]
    fn sums(self, x: &[i8; 16]) -> (i32, i32) {
        let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
        (sum, -sum)
    }
    /// The sum of activations whose negated [`Simd::sums`] are given.
    #[inline(always)]
    fn sum_of(self, negated: i32) -> i32 {
        -negated
    }
    /// `-zero * sum` of the activations whose negated [`Simd::sums`] are given, for a `zero` of at most 128.
    fn acc_init(self, zero: i32, negated_sums: [i32; 2]) -> Self::Accumulator;
    /// Adds `sum over j < 4 of w[row][j] * x[j]`, where `x` is the 4 signed bytes of an i32 in memory order, within
    /// ±127, and `w` at most 127. Sums wrap around: only the argument of [`Simd::acc_finish`] must be within
    /// [`Simd::ACCUMULATOR_MAX`].
    fn dot(self, acc: Self::Accumulator, w: Self::B, x: i32) -> Self::Accumulator;
    /// [`Simd::acc_init`] for [`Simd::dot_wide`], which may subtract the 128 itself.
    fn acc_init_wide(self, negated_sums: [i32; 2]) -> Self::Accumulator;
    /// As [`Simd::dot`] for any `w`; with [`Simd::acc_init_wide`] the whole gives `sum of (w - 128) * x`.
    fn dot_wide(self, acc: Self::Accumulator, w: Self::B, x: i32) -> Self::Accumulator;
    /// The sums of rows.
    fn acc_finish(self, acc: Self::Accumulator) -> Self::I;

    /// `from`'s first bytes, in order, where `mask` has a bit, `hole` elsewhere (`vpexpandb`): bit i is byte i.
    #[inline(always)]
    fn expand_bytes(self, mask: u64, from: &[u8; 64], hole: u8) -> Self::B {
        let mut out = [hole; 64];
        let mut n = 0;
        for (i, out) in out.iter_mut().enumerate() {
            if mask >> i & 1 != 0 {
                *out = from[n];
                n += 1;
            }
        }
        self.load_b(&out)
    }
    /// Bits of the mask of [`Simd::expand_bytes`] and its relatives.
    #[inline(always)]
    fn expanded(self, mask: u64) -> usize {
        mask.count_ones() as usize
    }
    /// The same for 32 × u16, 0 elsewhere (`vpexpandw`).
    #[inline(always)]
    fn expand_words(self, mask: u32, from: &[u8; 64]) -> Self::B {
        let mut out = [0; 64];
        let mut n = 0;
        for i in 0..32 {
            if mask >> i & 1 != 0 {
                out[2 * i..2 * i + 2].copy_from_slice(&from[2 * n..2 * n + 2]);
                n += 1;
            }
        }
        self.load_b(&out)
    }
    /// The same for the low or high 4 bits of each byte, 8 elsewhere.
    #[inline(always)]
    fn expand_nibbles<const HIGH: bool>(self, mask: u64, from: &[u8; 64]) -> Self::B {
        self.expand_bytes(mask, &from.map(|b| if HIGH { b >> 4 } else { b & 15 }), 8)
    }
    /// The same, left where it is in its byte: 16 times as much for `HIGH`.
    #[inline(always)]
    fn expand_halves<const HIGH: bool>(self, mask: u64, from: &[u8; 64]) -> Self::B {
        let (half, hole) = if HIGH { (0xF0, 0x80) } else { (0x0F, 0x08) };
        self.expand_bytes(mask, &from.map(|b| b & half), hole)
    }
    /// Chains of [`Simd::dot_bf16`] that are in flight: 1 or 2.
    const BF16_CHAINS: usize = 1;
    /// Adds `w[row][0] * x[0] + w[row][1] * x[1]`, where `w` is 16 rows of 2 × bf16, `x` two bf16, low half first.
    /// Levels differ in the order of the two and in rounding between them.
    fn dot_bf16(self, acc: Self::F, w: Self::B, x: u32) -> Self::F;
    /// `scale * w + offset` of 16 rows of 4 columns, rounded to bf16 (half to even): the first and the last two columns
    /// of each row.
    #[inline(always)]
    fn bf16_steps(self, w: Self::B, scale: Self::F, offset: Self::F) -> [Self::B; 2] {
        let (mut bytes, mut scales, mut offsets) = ([0; 64], [0.0; 16], [0.0; 16]);
        self.store_b(w, &mut bytes);
        self.store(scale, &mut scales);
        self.store(offset, &mut offsets);
        [0, 2].map(|first| {
            let mut out = [0; 64];
            for (r, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                for (c, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let x = f32::from(bytes[4 * r + first + c]).mul_add(scales[r], offsets[r]);
                    *out = round_to_bf16(x).to_le_bytes();
                }
            }
            self.load_b(&out)
        })
    }
    /// What [`Simd::dot_s8`] starts from for activations with this sum, so that the whole gives `sum of (w - 128) x`.
    #[inline(always)]
    fn acc_init_s8(self, _sum: i32) -> Self::I {
        self.splat_i32(0)
    }
    /// Adds `sum over j < 4 of (w[row][j] - 128) * x[j]`, for `x` within ±127; wraps around.
    #[inline(always)]
    fn dot_s8(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        self.add_i32(acc, self.acc_finish(self.dot_wide(self.acc_init_wide([0; 2]), w, x)))
    }

    /// Whether [`Simd::dot_four`] and its relatives are faster than their steps one by one.
    const FOUR_STEPS: bool = false;
    /// [`Simd::dot`] of four steps, one after another.
    #[inline(always)]
    fn dot_four(self, mut acc: Self::Accumulator, w: [Self::B; 4], x: &[i32; 4]) -> Self::Accumulator {
        for k in 0..4 {
            acc = self.dot(acc, w[k], x[k]);
        }
        acc
    }
    /// [`Simd::dot_wide`] of four steps, one after another.
    #[inline(always)]
    fn dot_four_wide(self, mut acc: Self::Accumulator, w: [Self::B; 4], x: &[i32; 4]) -> Self::Accumulator {
        for k in 0..4 {
            acc = self.dot_wide(acc, w[k], x[k]);
        }
        acc
    }
    /// [`Simd::dot_s8`] of four steps, one after another.
    #[inline(always)]
    fn dot_four_s8(self, mut acc: Self::I, w: [Self::B; 4], x: &[i32; 4]) -> Self::I {
        for k in 0..4 {
            acc = self.dot_s8(acc, w[k], x[k]);
        }
        acc
    }
    /// [`Simd::dot_bf16`] of four steps, one after another.
    #[inline(always)]
    fn dot_four_bf16(self, mut acc: Self::F, w: [Self::B; 4], x: &[u32; 4]) -> Self::F {
        for k in 0..4 {
            acc = self.dot_bf16(acc, w[k], x[k]);
        }
        acc
    }

    /// Whether batches are multiplied two tokens at a time, with [`Simd::dot_two`] and [`Simd::dot_two_bf16`].
    const TWO_TOKENS: bool = false;
    /// Two steps in the order of [`Simd::dot_two`].
    #[inline(always)]
    fn paired(self, w: [Self::B; 2]) -> [Self::B; 2] {
        w
    }
    /// The inverse of [`Simd::paired`].
    #[inline(always)]
    fn unpaired(self, w: [Self::B; 2]) -> [Self::B; 2] {
        w
    }
    /// The first bytes of a row in two steps after [`Simd::paired`]: the vector, and the place in it.
    #[inline(always)]
    fn places_of_row(self, row: usize) -> [(usize, usize); 2] {
        [(0, 4 * row), (1, 4 * row)]
    }
    /// Two steps of two tokens.
    type Two: Copy;
    /// Four neighboring steps of each of two tokens, two at a time.
    #[inline(always)]
    fn two_tokens(self, _first: &[i32; 4], _second: &[i32; 4]) -> [Self::Two; 2] {
        unreachable!("this level multiplies one token at a time")
    }
    /// Two steps of four tokens, of two at a time: a step of all, and the next step of all.
    #[inline(always)]
    fn four_tokens(self, _first: &[i32; 4], _second: &[i32; 4]) -> [Self::Two; 2] {
        unreachable!("this level multiplies one token at a time")
    }
    /// Two steps of two tokens: a step of both, and the next step of both.
    #[inline(always)]
    fn two_steps(self, _first: &[i32; 2], _second: &[i32; 2]) -> Self::Two {
        unreachable!("this level multiplies one token at a time")
    }
    /// The sums of two tokens in the order that [`Simd::dot_two`] adds to.
    #[inline(always)]
    fn join(self, _sums: [Self::I; 2]) -> [Self::I; 2] {
        unreachable!("this level multiplies one token at a time")
    }
    /// The inverse of [`Simd::join`].
    #[inline(always)]
    fn split(self, _sums: [Self::I; 2]) -> [Self::I; 2] {
        unreachable!("this level multiplies one token at a time")
    }
    /// [`Simd::dot_s8`] of two [`Simd::paired`] steps, for two tokens.
    #[inline(always)]
    fn dot_two(self, _acc: [Self::I; 2], _w: [Self::B; 2], _x: Self::Two) -> [Self::I; 2] {
        unreachable!("this level multiplies one token at a time")
    }
    /// [`Simd::dot_bf16`] of two [`Simd::paired`] steps, for two tokens; the same bits.
    #[inline(always)]
    fn dot_two_bf16(self, _acc: [Self::F; 2], _w: [Self::B; 2], _x: Self::Two) -> [Self::F; 2] {
        unreachable!("this level multiplies one token at a time")
    }

    /// Sum of the lanes: halves are added until one lane is left (16 → 8 → 4 → 2 → 1).
    #[inline(always)]
    fn reduce_add(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        let mut n = 8;
        while n > 0 {
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
            n /= 2;
        }
        lanes[0]
    }

    /// The largest lane of non-negative or all kinds of i32.
    #[inline(always)]
    fn reduce_max_i32(self, x: Self::I) -> i32 {
        let mut lanes = [0; 16];
        self.store_i32(x, &mut lanes);
        lanes.into_iter().fold(i32::MIN, i32::max)
    }

    /// `e^x`: `2^n * 2^r` with a degree-6 polynomial, within 2 ulp on [-87, 88]; 0 below -87.3, saturated above 88.3.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let x = self.min(self.splat(88.3), self.max(x, self.splat(-87.3)));
        let n = self.round_i32(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let nf = self.to_f32(n);
        // r = x - n ln 2, in two steps so that the first product is exact.
        let r = self.fma(nf, self.splat(-0.693_359_4), x);
        let r = self.fma(nf, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.388_888_9e-3);
        for c in [8.333_334e-3, 4.166_666_8e-2, 0.166_666_67, 0.5, 1.0, 1.0] {
            p = self.fma(p, r, self.splat(c));
        }
        self.of_bits(self.add_i32(self.bits(p), self.shl_i32::<23>(n)))
    }

    /// `x / (1 + e^-x)`.
    #[inline(always)]
    fn silu(self, x: Self::F) -> Self::F {
        let e = self.exp(self.sub(self.splat(0.0), x));
        self.div(x, self.add(self.splat(1.0), e))
    }

    /// `tanh(x) = 1 - 2 / (e^2x + 1)`.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        let e = self.exp(self.add(x, x));
        self.sub(self.splat(1.0), self.div(self.splat(2.0), self.add(e, self.splat(1.0))))
    }

    /// `x/2 (1 + erf(x / sqrt(2)))`, within 2e-7 of |x|: Abramowitz and Stegun, "Handbook of Mathematical Functions",
    /// 7.1.26.
    #[inline(always)]
    fn gelu(self, x: Self::F) -> Self::F {
        let magnitude = self.of_bits(self.and_i32(self.bits(x), self.splat_i32(0x7fff_ffff)));
        let z = self.mul(magnitude, self.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = self.div(self.splat(1.0), self.fma(z, self.splat(0.327_591_1), self.splat(1.0)));
        let mut p = self.splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = self.fma(p, t, self.splat(c));
        }
        // 1 - erf(z)
        let rest = self.mul(self.mul(p, t), self.exp(self.sub(self.splat(0.0), self.mul(z, z))));
        let positive = self.max(x, self.splat(0.0));
        self.sub(positive, self.mul(self.mul(self.splat(0.5), magnitude), rest))
    }

    /// `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`, the approximation that Gemma uses.
    #[inline(always)]
    fn gelu_tanh(self, x: Self::F) -> Self::F {
        let x2 = self.mul(x, x);
        let inner = self.mul(x, self.fma(x2, self.splat(0.797_884_6 * 0.044_715), self.splat(0.797_884_6)));
        let half = self.mul(self.splat(0.5), x);
        self.fma(half, self.tanh(inner), half)
    }
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN. Without branches, so that loops over it are vectorized.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    ((if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) >> 16) as u16
}
