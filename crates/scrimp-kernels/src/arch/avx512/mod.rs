//! AVX-512 (F, BW, DQ, VL, VNNI, BF16, VBMI, VBMI2): one register per vector.

mod attention;
mod embedding;

use super::Simd;
use std::arch::x86_64::*;

/// Proof that the CPU has the level's features; made only in [`dispatch`](crate::arch::dispatch).
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU must have every feature of the level.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// `vpexpandw` with zeros elsewhere. In assembly, because it is fast in one form only (Zen 4): with an operand in
/// memory it takes about three times as long, and with zeroing masks it depends on the previous content of its target
/// register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
fn expand_words(mask: u32, from: &[u8; 64]) -> __m512i {
    let (x, _v): (__m512i, __m512i);
    // SAFETY: reads the 64 bytes of a reference into a register.
    unsafe {
        std::arch::asm!(
            "vmovdqu64 {v}, [{from}]",
            "vpxord {x}, {x}, {x}",
            "vpexpandw {x} {{{mask}}}, {v}",
            v = out(zmm_reg) _v,
            x = out(zmm_reg) x,
            mask = in(kreg) mask,
            from = in(reg) from.as_ptr(),
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    x
}

/// `vpexpandb` of bytes in memory with `holes` elsewhere; see [`expand_words`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
fn expand_bytes(mask: u64, from: &[u8; 64], holes: __m512i) -> __m512i {
    let (x, _v): (__m512i, __m512i);
    // SAFETY: reads the 64 bytes of a reference into a register; the attribute requires the instructions.
    unsafe {
        std::arch::asm!(
            "vmovdqu64 {v}, [{from}]",
            "vmovdqa64 {x}, {holes}",
            "vpexpandb {x} {{{mask}}}, {v}",
            v = out(zmm_reg) _v,
            x = out(zmm_reg) x,
            mask = in(kreg) mask,
            holes = in(zmm_reg) holes,
            from = in(reg) from.as_ptr(),
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    x
}

/// `vpexpandb` of one `half` of each byte in memory, with `holes` elsewhere; see [`expand_words`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
fn expand_halves(mask: u64, from: &[u8; 64], half: __m512i, holes: __m512i) -> __m512i {
    let (x, _v): (__m512i, __m512i);
    // SAFETY: reads the 64 bytes of a reference into a register; the attribute requires the instructions.
    unsafe {
        std::arch::asm!(
            "vpandd {v}, {half}, [{from}]",
            "vmovdqa64 {x}, {holes}",
            "vpexpandb {x} {{{mask}}}, {v}",
            v = out(zmm_reg) _v,
            x = out(zmm_reg) x,
            mask = in(kreg) mask,
            half = in(zmm_reg) half,
            holes = in(zmm_reg) holes,
            from = in(reg) from.as_ptr(),
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    x
}

impl Simd for Avx512 {
    const UNROLL: bool = true;
    const TOKEN_TILE: usize = 12;
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type Accumulator = __m512i;
    type Two = ();
    const ACCUMULATOR_MAX: usize = i32::MAX as usize;
    const BF16_CHAINS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        isa!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        isa!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; 16]) {
        isa!(_mm512_storeu_ps(to.as_mut_ptr(), x));
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> __m512 {
        isa!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> __m512 {
        isa!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
            x.as_ptr().cast()
        )))))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> __m512 {
        isa!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> __m512 {
        isa!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        isa!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn round_i32(self, x: __m512) -> __m512i {
        isa!(_mm512_cvtps_epi32(x))
    }
    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        isa!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn bits(self, x: __m512) -> __m512i {
        isa!(_mm512_castps_si512(x))
    }
    #[inline(always)]
    fn of_bits(self, x: __m512i) -> __m512 {
        isa!(_mm512_castsi512_ps(x))
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        isa!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn and_i32(self, a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn max_i32(self, a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn shl_i32<const N: u32>(self, a: __m512i) -> __m512i {
        isa!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shr_i32<const N: u32>(self, a: __m512i) -> __m512i {
        isa!(_mm512_srai_epi32::<N>(a))
    }
    #[inline(always)]
    fn store_low_bytes(self, x: __m512i, to: &mut [i8; 16]) {
        isa!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)));
    }
    #[inline(always)]
    fn store_i32(self, x: __m512i, to: &mut [i32; 16]) {
        isa!(_mm512_storeu_si512(to.as_mut_ptr().cast(), x));
    }
    #[inline(always)]
    fn load_b(self, x: &[u8; 64]) -> __m512i {
        isa!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_b(self, x: __m512i, to: &mut [u8; 64]) {
        isa!(_mm512_storeu_si512(to.as_mut_ptr().cast(), x));
    }
    #[inline(always)]
    fn wrapping_sub(self, a: __m512i, x: u8) -> __m512i {
        isa!(_mm512_sub_epi8(a, _mm512_set1_epi8(x as i8)))
    }
    #[inline(always)]
    fn low_nibbles(self, x: __m512i) -> __m512i {
        isa!(_mm512_and_si512(x, _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_nibbles(self, x: __m512i) -> __m512i {
        isa!(_mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn nibbles(self, x: __m512i, half: usize) -> __m512i {
        isa!({
            let shifted = _mm512_srl_epi16(x, _mm_cvtsi32_si128(4 * half as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(15))
        })
    }
    #[inline(always)]
    fn with_high_bits(self, low: __m512i, x: __m512i, shift: usize, mask: u8) -> __m512i {
        // Rotating a 32-bit lane by 4 - shift moves the wanted bits of every byte to bit 4 of the same byte; the truth
        // table 0xF8 is a | (b & c).
        isa!({
            let turned = _mm512_rolv_epi32(x, _mm512_set1_epi32(4 - shift as i32));
            _mm512_ternarylogic_epi32::<0xF8>(low, turned, _mm512_set1_epi8((mask << 4) as i8))
        })
    }
    #[inline(always)]
    fn bits_at(self, x: __m512i, from: usize, to: usize, mask: u8) -> __m512i {
        // A rotation of 32-bit lanes moves the bits within their byte; the mask removes those of other bytes.
        isa!({
            let moved = _mm512_rolv_epi32(x, _mm512_set1_epi32(to as i32 - from as i32));
            _mm512_and_si512(moved, _mm512_set1_epi8((mask << to) as i8))
        })
    }
    #[inline(always)]
    fn with_bits(self, low: __m512i, x: __m512i, from: usize, to: usize, mask: u8) -> __m512i {
        // The truth table 0xF8 is a | (b & c).
        isa!({
            let moved = _mm512_rolv_epi32(x, _mm512_set1_epi32(to as i32 - from as i32));
            _mm512_ternarylogic_epi32::<0xF8>(low, moved, _mm512_set1_epi8((mask << to) as i8))
        })
    }
    #[inline(always)]
    fn lookup16(self, table: &[u8; 16], x: __m512i) -> __m512i {
        isa!(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), x))
    }
    #[inline(always)]
    fn scale_quants(self, w: __m512i, factor: &[u8; 16]) -> __m512i {
        // Both bytes of a 16-bit lane are multiplied at once: no product reaches the next byte.
        isa!({
            let factor = _mm512_cvtepu8_epi32(_mm_loadu_si128(factor.as_ptr().cast()));
            let factor = _mm512_or_si512(factor, _mm512_slli_epi32::<16>(factor));
            _mm512_mullo_epi16(w, factor)
        })
    }
    #[inline(always)]
    fn acc_init(self, zero: i32, negated_sums: [i32; 2]) -> __m512i {
        self.splat_i32(zero * (negated_sums[0] + negated_sums[1]))
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        isa!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)))
    }
    #[inline(always)]
    fn acc_init_wide(self, negated_sums: [i32; 2]) -> __m512i {
        self.acc_init(128, negated_sums)
    }
    #[inline(always)]
    fn dot_wide(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        self.dot(acc, w, x)
    }
    #[inline(always)]
    fn acc_finish(self, acc: __m512i) -> __m512i {
        acc
    }
    #[inline(always)]
    fn expand_bytes(self, mask: u64, from: &[u8; 64], hole: u8) -> __m512i {
        isa!(expand_bytes(mask, from, _mm512_set1_epi8(hole as i8)))
    }
    #[inline(always)]
    fn expand_words(self, mask: u32, from: &[u8; 64]) -> __m512i {
        isa!(expand_words(mask, from))
    }
    #[inline(always)]
    fn expand_halves<const HIGH: bool>(self, mask: u64, from: &[u8; 64]) -> __m512i {
        let (half, hole) = if HIGH { (0xF0u8, 0x80u8) } else { (0x0F, 0x08) };
        isa!(expand_halves(mask, from, _mm512_set1_epi8(half as i8), _mm512_set1_epi8(hole as i8)))
    }
    #[inline(always)]
    fn expand_nibbles<const HIGH: bool>(self, mask: u64, from: &[u8; 64]) -> __m512i {
        let x = self.expand_halves::<HIGH>(mask, from);
        if HIGH { self.high_nibbles(x) } else { x }
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, w: __m512i, x: u32) -> __m512 {
        // SAFETY: both types are 64 bytes without invalid patterns.
        let bf16 = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        isa!(_mm512_dpbf16_ps(acc, bf16(w), bf16(_mm512_set1_epi32(x as i32))))
    }
    #[inline(always)]
    fn bf16_steps(self, w: __m512i, scale: __m512, offset: __m512) -> [__m512i; 2] {
        isa!({
            let low = _mm512_set1_epi32(255);
            let column = |bytes| _mm512_fmadd_ps(_mm512_cvtepi32_ps(bytes), scale, offset);
            let columns = [
                column(_mm512_and_si512(w, low)),
                column(_mm512_and_si512(_mm512_srli_epi32::<8>(w), low)),
                column(_mm512_and_si512(_mm512_srli_epi32::<16>(w), low)),
                column(_mm512_srli_epi32::<24>(w)),
            ];
            // Words of the first column, then of the second: one of each in turn.
            let mut order = [0u16; 32];
            for (i, order) in order.iter_mut().enumerate() {
                *order = (i / 2 + i % 2 * 16) as u16;
            }
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            [0, 2].map(|c| {
                let both =
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(columns[c + 1], columns[c]));
                _mm512_permutexvar_epi16(order, both)
            })
        })
    }
    #[inline(always)]
    fn acc_init_s8(self, sum: i32) -> __m512i {
        self.splat_i32(sum.wrapping_mul(-128))
    }
    #[inline(always)]
    fn dot_s8(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        self.dot(acc, w, x)
    }
    #[inline(always)]
    fn reduce_add(self, x: __m512) -> f32 {
        isa!({
            let lo = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            crate::arch::avx2::reduce_add_8(lo)
        })
    }
    #[inline(always)]
    fn reduce_max_i32(self, x: __m512i) -> i32 {
        isa!(_mm512_reduce_max_epi32(x))
    }
}
