//! What attention needs of a tier beyond [`Simd`]: bf16 pair products, `2^x`, and a row-block size that fits its registers.

use super::{Simd, scalar::Scalar};
use half::bf16;

/// Two rows that add to the same sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPair {
    /// Where their probabilities start in the scores.
    pub(crate) rows: [usize; 2],
    pub(crate) weights: [f32; 2],
    /// Both weights as bf16, the first in the lower half. Probabilities are rounded to bf16 as well, so this is no coarser.
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

/// 16-lane arithmetic of the attention kernels.
///
/// An *element* is what a kernel broadcasts to all lanes in one step: a query's or a probability's part in it. It takes
/// one `f32` slot of memory, but two for bf16 where the tier has no bf16 dot product (the pair, widened).
pub(crate) trait Lanes: Simd {
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

    /// What [`Lanes::store_rounded`] has written.
    fn load_rounded(self, from: &[f32; 16]) -> Self::F;

    /// The weights of two rows, in all lanes.
    type Weights: Copy;
    /// The weights of a pair of rows.
    fn weights(self, pair: &RowPair) -> Self::Weights;
    /// `acc + weights[0] * a + weights[1] * b`, where [`Lanes::store_rounded`] has written `a` and `b`.
    fn add_rounded(self, acc: Self::F, a: &[f32; 16], b: &[f32; 16], weights: Self::Weights) -> Self::F;
    /// The same for two tiles, whose probabilities stand side by side in `a` and `b` (in tiers with tile registers only).
    #[inline(always)]
    fn add_rounded_line(
        self,
        _acc: [Self::F; 2],
        _a: &[f32; 16],
        _b: &[f32; 16],
        _weights: Self::Weights,
    ) -> [Self::F; 2] {
        unreachable!("no tile registers in this tier")
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

    /// Asks for the cache line at `at`, which need not be valid.
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        let _ = at;
    }
}

/// Widened pairs for tiers without a bf16 dot product: the first and the second elements.
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
            // SAFETY: the caller vouches for two slots.
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

impl Lanes for Scalar {
    widened_pairs!();

    #[inline(always)]
    fn mul_acc(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn store_rounded(self, x: Self::F, to: &mut [f32; 16]) -> Self::F {
        let x = x.map(|x| bf16::from_f32_const(x).to_f32_const());
        self.store(x, to);
        x
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, RowPair, bf16};
    use crate::arch::{Simd, avx2::Avx2, avx512::Avx512};
    use std::arch::x86_64::*;

    /// Adds the products of 16 words of `a` and `b` each, from float `FROM` (0 or 8) on, with a pair of weights.
    ///
    /// # Safety
    /// The CPU has AVX-512 with BF16 and BW.
    #[inline(always)]
    unsafe fn add_half<const FROM: usize>(
        acc: __m512,
        a: &[f32; 16],
        b: &[f32; 16],
        weights: __m512bh,
    ) -> __m512 {
        // Words i of both, side by side in lane i.
        let order: [i32; 16] = std::array::from_fn(|i| (i | (i + 32) << 16) as i32);
        // SAFETY: the caller's word; 8 floats each are read.
        unsafe {
            let load = |x: &[f32; 16]| _mm512_castsi256_si512(_mm256_loadu_si256(x[FROM..].as_ptr().cast()));
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            let pairs = _mm512_permutex2var_epi16(load(a), order, load(b));
            let pairs: __m512bh = std::mem::transmute(pairs);
            _mm512_dpbf16_ps(acc, pairs, weights)
        }
    }

    impl Lanes for Avx2 {
        widened_pairs!();

        #[inline(always)]
        fn store_rounded(self, x: Self::F, to: &mut [f32; 16]) -> Self::F {
            // Nearest-even: add half, and one less if the result's last bit is 0.
            let bits = self.bits(x);
            let rounded = x.map(|x| {
                // SAFETY: the token proves AVX2.
                unsafe {
                    let bits = _mm256_castps_si256(x);
                    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                    _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))
                }
            });
            let bits = self.and_i32(self.add_i32(bits, rounded), self.splat_i32(0xffff_0000_u32 as i32));
            let x = self.of_bits(bits);
            self.store(x, to);
            x
        }

        #[inline(always)]
        fn prefetch(self, at: *const u8) {
            // SAFETY: a prefetch reads nothing architecturally; any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
        }
    }

    impl Lanes for Avx512 {
        type Pairs = __m512bh;
        const PAIR_SLOTS: usize = 1;

        #[inline(always)]
        fn load_pairs(self, from: &[f32; 16]) -> __m512bh {
            // SAFETY: the token proves AVX-512; both types are 64 bytes without invalid values.
            unsafe { std::mem::transmute(_mm512_loadu_ps(from.as_ptr())) }
        }

        #[inline(always)]
        unsafe fn mac_pairs(self, acc: __m512, pairs: __m512bh, element: *const f32) -> __m512 {
            // SAFETY: the token proves AVX-512 with BF16, the caller that the slot can be read.
            unsafe {
                let element: __m512bh = std::mem::transmute(_mm512_set1_epi32(*element.cast::<i32>()));
                _mm512_dpbf16_ps(acc, pairs, element)
            }
        }

        #[inline(always)]
        fn store_rounded(self, x: __m512, to: &mut [f32; 16]) -> __m512 {
            // SAFETY: the token proves AVX-512 with BF16; 32 of the 64 bytes are written.
            unsafe {
                let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded)))
            }
        }

        #[inline(always)]
        fn load_rounded(self, from: &[f32; 16]) -> __m512 {
            // SAFETY: the token proves AVX-512; 32 of the 64 bytes are read.
            unsafe {
                let rounded = _mm256_loadu_si256(from.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded)))
            }
        }

        /// As bf16 pairs, and what rounding took from them: together they are good to 2^-17.
        type Weights = __m512bh;
        #[inline(always)]
        fn weights(self, pair: &RowPair) -> __m512bh {
            // SAFETY: the token proves AVX-512; the types are 64 bytes without invalid values.
            unsafe { std::mem::transmute(_mm512_set1_epi32(pair.rounded)) }
        }
        #[inline(always)]
        fn add_rounded(self, acc: __m512, a: &[f32; 16], b: &[f32; 16], weights: __m512bh) -> __m512 {
            // SAFETY: the token proves AVX-512 with BF16 and BW.
            unsafe { add_half::<0>(acc, a, b, weights) }
        }
        #[inline(always)]
        fn add_rounded_line(
            self,
            acc: [__m512; 2],
            a: &[f32; 16],
            b: &[f32; 16],
            weights: __m512bh,
        ) -> [__m512; 2] {
            // SAFETY: as above.
            unsafe { [add_half::<0>(acc[0], a, b, weights), add_half::<8>(acc[1], a, b, weights)] }
        }

        #[inline(always)]
        fn pair_element(a: u16, b: u16, to: &mut [f32]) {
            to[0] = f32::from_bits(u32::from(a) | u32::from(b) << 16);
        }

        #[inline(always)]
        fn exp2(self, x: __m512) -> __m512 {
            let x = self.max(self.splat(-150.0), x);
            // SAFETY: the token proves AVX-512F.
            unsafe {
                let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                _mm512_scalef_ps(self.exp2_fraction(_mm512_sub_ps(x, n)), n)
            }
        }

        #[inline(always)]
        fn prefetch(self, at: *const u8) {
            // SAFETY: a prefetch reads nothing architecturally; any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
        }
    }
}
