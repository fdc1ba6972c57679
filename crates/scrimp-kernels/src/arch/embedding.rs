//! What embedding bags need of a level beyond [`Simd`]: sums of bytes in 16 bits, signs by a mask, and stores past the
//! caches.

use super::Simd;

/// 32 lanes of i16, sums of at most 256 bytes each.
pub(crate) trait EmbeddingSimd: Simd {
    /// Whether frequent kinds of lookups have a path of their own.
    const FAST_LOOKUPS: bool = true;
    /// 32 × i16.
    type W: Copy;
    fn splat_i16(self, x: i16) -> Self::W;
    /// `sum + x`.
    fn add_i8(self, sum: Self::W, x: &[i8; 32]) -> Self::W;
    /// `-x` in the lanes whose bit of `mask` is set.
    fn negate(self, x: Self::F, mask: u16) -> Self::F;
    /// Lanes 0 to 15 and 16 to 31.
    fn floats(self, x: Self::W) -> [Self::F; 2];
    /// Stores past the caches, where the level can and `to` starts at a cache line. [`EmbeddingSimd::fence`] must
    /// follow before another thread reads.
    #[inline(always)]
    fn stream(self, x: Self::F, to: &mut [f32; 16]) {
        self.store(x, to);
    }
    /// Orders streamed stores before all that follow.
    #[inline(always)]
    fn fence(self) {}
}
