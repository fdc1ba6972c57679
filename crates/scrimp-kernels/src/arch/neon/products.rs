//! Products of bytes and of bf16: the instructions in which the NEON levels differ.
//!
//! | | 16 products of bytes | two products of bf16 in 4 lanes | batches |
//! |---|---|---|---|
//! | [`Multiply`] | `smull`, `smull2`, `addp`, `sadalp` | `fmla` twice | |
//! | [`Dotprod`] | `sdot` | `fmla` twice | |
//! | [`I8mm`] | `usdot` | `bfdot` | `usmmla`, `bfmmla`: 2 rows × 2 tokens × 8 or 4 columns |
//!
//! `usdot` and `usmmla` take unsigned weights; the others take weights less 128. `bfdot` rounds products to odd, adds
//! them rounded to odd, and flushes denormals; `bfmmla` gives the bits of two `bfdot` (Arm Architecture Reference
//! Manual, `BFDotAdd`). The intrinsics of these instructions are not stable, so these are the instructions themselves.

use std::arch::{aarch64::*, asm};

/// Wraps an instruction that adds to its first operand, of four lanes of 32 bits.
macro_rules! instruction {
    ($name:ident, $feature:literal, $text:literal, $acc:ty, $w:ty, $x:ty) => {
        #[inline]
        #[target_feature(enable = "neon")]
        #[target_feature(enable = $feature)]
        fn $name(mut acc: $acc, w: $w, x: $x) -> $acc {
            // SAFETY: this function requires the instruction, which accesses these registers only.
            unsafe {
                asm!($text, acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags));
            }
            acc
        }
    };
}

instruction!(sdot, "dotprod", "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b", int32x4_t, int8x16_t, int8x16_t);
instruction!(usdot, "i8mm", "usdot {acc:v}.4s, {w:v}.16b, {x:v}.16b", int32x4_t, uint8x16_t, int8x16_t);
instruction!(usmmla, "i8mm", "usmmla {acc:v}.4s, {w:v}.16b, {x:v}.16b", int32x4_t, uint8x16_t, int8x16_t);
instruction!(bfdot, "bf16", "bfdot {acc:v}.4s, {w:v}.8h, {x:v}.8h", float32x4_t, uint32x4_t, uint32x4_t);
instruction!(bfmmla, "bf16", "bfmmla {acc:v}.4s, {w:v}.8h, {x:v}.8h", float32x4_t, uint32x4_t, uint32x4_t);

/// The same with one of the four elements of `x`, of 32 bits.
macro_rules! by_element {
    ($name:ident, $feature:literal, $text:literal, $acc:ty, $w:ty, $x:ty) => {
        #[inline]
        #[target_feature(enable = "neon")]
        #[target_feature(enable = $feature)]
        fn $name<const ELEMENT: usize>(mut acc: $acc, w: $w, x: $x) -> $acc {
            // SAFETY: this function requires the instruction, which accesses these registers only.
            unsafe {
                asm!(concat!($text, "[{element}]"), acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
                    element = const ELEMENT, options(pure, nomem, nostack, preserves_flags));
            }
            acc
        }
    };
}

by_element!(sdot_by, "dotprod", "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b", int32x4_t, int8x16_t, int8x16_t);
by_element!(usdot_by, "i8mm", "usdot {acc:v}.4s, {w:v}.16b, {x:v}.4b", int32x4_t, uint8x16_t, int8x16_t);
by_element!(bfdot_by, "bf16", "bfdot {acc:v}.4s, {w:v}.8h, {x:v}.2h", float32x4_t, uint32x4_t, uint32x4_t);

/// The sum `$acc` after the expression for each of four constants `$k`.
macro_rules! elements {
    ($k:ident => $acc:ident, $next:expr) => {{
        let mut $acc = $acc;
        {
            const $k: usize = 0;
            $acc = $next;
        }
        {
            const $k: usize = 1;
            $acc = $next;
        }
        {
            const $k: usize = 2;
            $acc = $next;
        }
        {
            const $k: usize = 3;
            $acc = $next;
        }
        $acc
    }};
}

/// The products of a level; a value is the proof that the CPU has the instructions.
pub(crate) trait Products: Copy {
    /// # Safety
    /// The CPU must have the instructions.
    unsafe fn new() -> Self;
    /// Subtracted from every weight by the start of the sum; [`Products::dot_wide`] subtracts the rest of 128.
    const WIDE_ZERO: i32;
    /// Adds `sum over j < 4 of w[4 i + j] * x[4 i + j]` to lane `i`; `w` is at most 127, `x` is within ±127.
    fn dot(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t;
    /// The same for any `w`, less `128 - WIDE_ZERO`.
    fn dot_wide(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t;
    /// Adds the products of pairs of bf16; `x` is one pair. By default, the first product is added first, and each sum is
    /// rounded once.
    #[inline(always)]
    fn dot_bf16(self, acc: float32x4_t, w: uint32x4_t, x: u32) -> float32x4_t {
        let (x0, x1) = (f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000));
        isa!({
            let first = vreinterpretq_f32_u32(vshlq_n_u32::<16>(w));
            let second = vreinterpretq_f32_u32(vandq_u32(w, vdupq_n_u32(0xffff_0000)));
            vfmaq_n_f32(vfmaq_n_f32(acc, first, x0), second, x1)
        })
    }

    /// [`Products::dot`] of four steps with the elements of `x`, one after another.
    #[inline(always)]
    fn dot_four(self, acc: int32x4_t, w: [uint8x16_t; 4], x: int8x16_t) -> int32x4_t {
        isa!(elements!(K => acc, self.dot(acc, w[K], element::<K>(x))))
    }
    /// The same with [`Products::dot_wide`].
    #[inline(always)]
    fn dot_four_wide(self, acc: int32x4_t, w: [uint8x16_t; 4], x: int8x16_t) -> int32x4_t {
        isa!(elements!(K => acc, self.dot_wide(acc, w[K], element::<K>(x))))
    }
    /// The same with [`Products::dot_bf16`].
    #[inline(always)]
    fn dot_four_bf16(self, acc: float32x4_t, w: [uint8x16_t; 4], x: uint32x4_t) -> float32x4_t {
        isa!({
            let upper = vdupq_n_u32(0xffff_0000);
            let x0 = vreinterpretq_f32_u32(vshlq_n_u32::<16>(x));
            let x1 = vreinterpretq_f32_u32(vandq_u32(x, upper));
            elements!(K => acc, {
                let w = vreinterpretq_u32_u8(w[K]);
                let first = vreinterpretq_f32_u32(vshlq_n_u32::<16>(w));
                let second = vreinterpretq_f32_u32(vandq_u32(w, upper));
                vfmaq_laneq_f32::<{ K as i32 }>(vfmaq_laneq_f32::<{ K as i32 }>(acc, first, x0), second, x1)
            })
        })
    }

    /// Whether the level has [`Products::matrix`] and [`Products::matrix_bf16`].
    const MATRICES: bool = false;
    /// Adds `sum over j < 8 of w[8 i + j] * x[8 k + j]` to lane `2 i + k`, for `i` and `k` of 0 and 1.
    #[inline(always)]
    fn matrix(self, _acc: int32x4_t, _w: uint8x16_t, _x: int8x16_t) -> int32x4_t {
        unreachable!("no matrix products in this level")
    }
    /// The same for 4 × bf16, with the bits of [`Products::dot_bf16`] for the first and then the second pair.
    #[inline(always)]
    fn matrix_bf16(self, _acc: float32x4_t, _w: uint32x4_t, _x: uint32x4_t) -> float32x4_t {
        unreachable!("no matrix products in this level")
    }
}

/// All lanes of 32 bits are element `K`.
#[inline]
#[target_feature(enable = "neon")]
fn element<const K: usize>(x: int8x16_t) -> int8x16_t {
    let x = vreinterpretq_s32_s8(x);
    vreinterpretq_s8_s32(match K {
        0 => vdupq_laneq_s32::<0>(x),
        1 => vdupq_laneq_s32::<1>(x),
        2 => vdupq_laneq_s32::<2>(x),
        _ => vdupq_laneq_s32::<3>(x),
    })
}

/// Signed weights of unsigned ones: less 128.
#[inline]
#[target_feature(enable = "neon")]
fn less_128(w: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(128)))
}

/// NEON without further features.
#[derive(Clone, Copy)]
pub(crate) struct Multiply(());

impl Products for Multiply {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }
    const WIDE_ZERO: i32 = 0;
    #[inline(always)]
    fn dot(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        isa!(multiply(acc, vreinterpretq_s8_u8(w), x))
    }
    #[inline(always)]
    fn dot_wide(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        isa!(multiply(acc, less_128(w), x))
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn multiply(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // The sum of two products is at most 2 · 128 · 127 = 32512, which fits an i16.
    let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(w, x)))
}

/// NEON with `dotprod`.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(());

impl Products for Dotprod {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }
    const WIDE_ZERO: i32 = 0;
    #[inline(always)]
    fn dot(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        isa!(sdot(acc, vreinterpretq_s8_u8(w), x))
    }
    #[inline(always)]
    fn dot_wide(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        isa!(sdot(acc, less_128(w), x))
    }
    #[inline(always)]
    fn dot_four(self, acc: int32x4_t, w: [uint8x16_t; 4], x: int8x16_t) -> int32x4_t {
        isa!(elements!(K => acc, sdot_by::<K>(acc, vreinterpretq_s8_u8(w[K]), x)))
    }
    #[inline(always)]
    fn dot_four_wide(self, acc: int32x4_t, w: [uint8x16_t; 4], x: int8x16_t) -> int32x4_t {
        isa!(elements!(K => acc, sdot_by::<K>(acc, less_128(w[K]), x)))
    }
}

/// NEON with `dotprod`, `i8mm` and `bf16`.
#[derive(Clone, Copy)]
pub(crate) struct I8mm(());

impl Products for I8mm {
    #[inline(always)]
    unsafe fn new() -> Self {
        Self(())
    }
    const WIDE_ZERO: i32 = 128;
    const MATRICES: bool = true;
    #[inline(always)]
    fn dot(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        isa!(usdot(acc, w, x))
    }
    #[inline(always)]
    fn dot_wide(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        isa!(usdot(acc, w, x))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: float32x4_t, w: uint32x4_t, x: u32) -> float32x4_t {
        isa!(bfdot(acc, w, vdupq_n_u32(x)))
    }
    #[inline(always)]
    fn dot_four(self, acc: int32x4_t, w: [uint8x16_t; 4], x: int8x16_t) -> int32x4_t {
        isa!(elements!(K => acc, usdot_by::<K>(acc, w[K], x)))
    }
    #[inline(always)]
    fn dot_four_wide(self, acc: int32x4_t, w: [uint8x16_t; 4], x: int8x16_t) -> int32x4_t {
        self.dot_four(acc, w, x)
    }
    #[inline(always)]
    fn dot_four_bf16(self, acc: float32x4_t, w: [uint8x16_t; 4], x: uint32x4_t) -> float32x4_t {
        isa!(elements!(K => acc, bfdot_by::<K>(acc, vreinterpretq_u32_u8(w[K]), x)))
    }
    #[inline(always)]
    fn matrix(self, acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        isa!(usmmla(acc, w, x))
    }
    #[inline(always)]
    fn matrix_bf16(self, acc: float32x4_t, w: uint32x4_t, x: uint32x4_t) -> float32x4_t {
        isa!(bfmmla(acc, w, x))
    }
}
