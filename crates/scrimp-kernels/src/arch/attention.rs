//! What attention needs of a level beyond [`Simd`]: products of bf16 pairs, products of 16-bit pairs of codes, pairs of
//! bf16 spread by a bitmap, and `2^x`.

use super::Simd;
use half::bf16;

/// Two rows that add to the same sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPair {
    /// Where their probabilities start in the scores.
    pub(crate) rows: [usize; 2],
    pub(crate) weights: [f32; 2],
    /// Both weights as bf16, the first in the lower half. Probabilities are rounded to bf16 as well, so this is no
    /// coarser.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub(crate) rounded: i32,
}

impl RowPair {
    /// The rows and their weights, of which `share` counts.
    pub(crate) fn new(rows: [(usize, f32); 2], share: f32) -> Self {
        let weights = rows.map(|(_, weight)| weight * share);
        let [lower, upper] = weights.map(|w| i32::from(bf16::from_f32(w).to_bits()));
        Self { rows: rows.map(|(row, _)| row), weights, rounded: lower | upper << 16 }
    }
}

/// Something that exists for each shape of a register block: `R` query rows, whose accumulators cover `T` tiles of keys
/// for scores and `D` blocks of dims for values.
pub(crate) trait BlockShape {
    type Output;
    fn of<const R: usize, const T: usize, const D: usize>() -> Self::Output;
}

/// 16-lane arithmetic of the attention kernels.
///
/// An *element* is the operand that a kernel broadcasts to all lanes in one step, from a query or from probabilities.
/// It takes one `f32` slot of memory, but two for bf16 where the level has no bf16 dot product (the pair, widened).
pub(crate) trait AttentionSimd: Simd {
    /// `B` for the smallest block that covers `rows` query rows, or the largest block that the registers hold.
    fn row_block<B: BlockShape>(rows: usize) -> B::Output;

    /// One step of bf16 data: 16 pairs.
    type Pairs: Copy;
    /// `f32` slots per bf16 pair in element form.
    const PAIR_SLOTS: usize;

    /// `a * b + c`, rounded once or twice.
    #[inline(always)]
    fn mul_acc(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.fma(a, b, c)
    }

    /// 16 pairs of bf16.
    fn load_pairs(self, from: &[f32; 16]) -> Self::Pairs;

    /// `acc + pair . element`, lane by lane.
    ///
    /// # Safety
    /// `PAIR_SLOTS` slots can be read at `element`.
    unsafe fn mac_pairs(self, acc: Self::F, pairs: Self::Pairs, element: *const f32) -> Self::F;

    /// Writes 16 probabilities rounded to bf16, in element form, and returns them as they are now.
    fn store_rounded(self, x: Self::F, to: &mut [f32; 16]) -> Self::F;

    /// What [`AttentionSimd::store_rounded`] has written.
    fn load_rounded(self, from: &[f32; 16]) -> Self::F;

    /// The weights of two rows, in all lanes.
    type Weights: Copy;
    /// The weights of a pair of rows.
    fn weights(self, pair: &RowPair) -> Self::Weights;
    /// `acc + weights[0] * a + weights[1] * b`, where [`AttentionSimd::store_rounded`] has written `a` and `b`.
    fn add_rounded(self, acc: Self::F, a: &[f32; 16], b: &[f32; 16], weights: Self::Weights) -> Self::F;
    /// The same for two tiles, whose probabilities stand side by side in `a` and `b` (in levels with tile registers
    /// only).
    #[inline(always)]
    fn add_rounded_line(
        self,
        _acc: [Self::F; 2],
        _a: &[f32; 16],
        _b: &[f32; 16],
        _weights: Self::Weights,
    ) -> [Self::F; 2] {
        unreachable!("no tile registers in this level")
    }

    /// Writes a pair of bf16 values in element form into `to[..PAIR_SLOTS]`.
    fn pair_element(a: u16, b: u16, to: &mut [f32]);

    /// `2^x` for `x <= 126`, within 2 ulp; 0 below -127, NaN for NaN.
    #[inline(always)]
    fn exp2(self, x: Self::F) -> Self::F {
        let x = self.max(self.splat(-128.0), x);
        let n = self.round_i32(x);
        let f = self.sub(x, self.to_f32(n));
        let p = self.exp2_fraction(f);
        // The exponent field of p is 126 or 127: with n = -128 the sum is negative, and becomes zero.
        let r = self.max_i32(self.add_i32(self.bits(p), self.shl_i32::<23>(n)), self.splat_i32(0));
        // Integer arithmetic loses a NaN; this brings it back.
        self.mul_acc(f, self.splat(0.0), self.of_bits(r))
    }

    /// `2^f` for `f` in [-0.5, 0.5]: the degree-6 minimax polynomial of the Cephes library.
    #[inline(always)]
    fn exp2_fraction(self, f: Self::F) -> Self::F {
        let mut p = self.splat(1.535_336_2e-4);
        for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 0.240_226_48, std::f32::consts::LN_2, 1.0] {
            p = self.mul_acc(p, f, self.splat(c));
        }
        p
    }

    /// `cap * tanh(x / cap)`, NaN for NaN, given `2 log2(e) / cap`.
    #[inline(always)]
    fn softcap(self, x: Self::F, cap: f32, factor: f32) -> Self::F {
        let x = self.min(self.splat(126.0), self.mul(x, self.splat(factor)));
        let e = self.exp2(x);
        let t = self.div(self.splat(-2.0 * cap), self.add(e, self.splat(1.0)));
        self.add(self.splat(cap), t)
    }

    /// 16 pairs of codes, widened to 16 bits.
    type Codes: Copy;
    /// 16 pairs of bytes.
    fn load_codes(self, from: &[u8; 32]) -> Self::Codes;
    /// 16 pairs of the low halves of bytes, and 16 pairs of the high halves.
    fn load_half_codes(self, from: &[u8; 32]) -> [Self::Codes; 2];
    /// `acc + codes . element` lane by lane, the element being a pair of i16 (the first in the lower half).
    fn mac_codes(self, acc: Self::I, codes: Self::Codes, element: i32) -> Self::I;
    /// Rounds to the nearest integers (ties to even), which fit 16 bits unless something was not finite, and writes
    /// them as pairs.
    fn store_i16(self, x: Self::F, to: &mut [i32; 8]);
    /// 16 pairs of bf16, of which those with a bit in `bitmap` are read from `values` one after the other; the others
    /// are 0.
    ///
    /// # Safety
    /// 64 bytes can be read at `values`.
    unsafe fn expand_pairs(self, bitmap: u32, values: *const u8) -> Self::Pairs;
    /// Bits that are set.
    #[inline(always)]
    fn count_ones(self, bitmap: u32) -> usize {
        bitmap.count_ones() as usize
    }
}

macro_rules! widened_pairs {
    () => {
        type Pairs = [Self::F; 2];
        const PAIR_SLOTS: usize = 2;

        #[inline(always)]
        fn load_pairs(self, from: &[f32; 16]) -> Self::Pairs {
            let bits = self.bits(self.load(from));
            [
                self.of_bits(self.shl_i32::<16>(bits)),
                self.of_bits(self.and_i32(bits, self.splat_i32(0xffff_0000_u32 as i32))),
            ]
        }

        #[inline(always)]
        unsafe fn mac_pairs(self, acc: Self::F, pairs: Self::Pairs, element: *const f32) -> Self::F {
            // SAFETY: the caller guarantees `PAIR_SLOTS` readable slots, which are two here.
            let (a, b) = unsafe { (*element, *element.add(1)) };
            self.mul_acc(pairs[0], self.splat(a), self.mul_acc(pairs[1], self.splat(b), acc))
        }

        #[inline(always)]
        fn load_rounded(self, from: &[f32; 16]) -> Self::F {
            self.load(from)
        }

        type Weights = [Self::F; 2];
        #[inline(always)]
        fn weights(self, pair: &RowPair) -> [Self::F; 2] {
            pair.weights.map(|w| self.splat(w))
        }
        #[inline(always)]
        fn add_rounded(self, acc: Self::F, a: &[f32; 16], b: &[f32; 16], w: [Self::F; 2]) -> Self::F {
            self.mul_acc(self.load(b), w[1], self.mul_acc(self.load(a), w[0], acc))
        }

        #[inline(always)]
        fn pair_element(a: u16, b: u16, to: &mut [f32]) {
            to[0] = bf16::from_bits(a).to_f32_const();
            to[1] = bf16::from_bits(b).to_f32_const();
        }
    };
}
pub(super) use widened_pairs;
