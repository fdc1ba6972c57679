//! Tables for levels without an expanding instruction: for each 8 bits of a bitmap, the sources of 8 elements.

/// Aligned to a vector.
#[repr(align(16))]
pub(super) struct Aligned<T>(pub(super) T);

/// Sources of the bytes of 8 words; `0x80` marks a hole, which byte shuffles set to 0.
pub(super) static EXPAND_WORDS: [Aligned<[u8; 16]>; 256] = {
    let mut table = [const { Aligned([0x80; 16]) }; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut i, mut n) = (0, 0);
        while i < 8 {
            if mask >> i & 1 != 0 {
                table[mask].0[2 * i] = n;
                table[mask].0[2 * i + 1] = n + 1;
                n += 2;
            }
            i += 1;
        }
        mask += 1;
    }
    table
};

/// Sources of 8 bytes, first byte lowest; `0x80` marks a hole.
pub(super) static EXPAND_BYTES: [u64; 256] = expand_bytes(0);

/// [`EXPAND_BYTES`] from byte `first` on.
pub(super) const fn expand_bytes(first: u64) -> [u64; 256] {
    let mut table = [0; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut i, mut n) = (0, first);
        while i < 8 {
            if mask >> i & 1 != 0 {
                table[mask] |= n << (8 * i);
                n += 1;
            } else {
                table[mask] |= 0x80 << (8 * i);
            }
            i += 1;
        }
        mask += 1;
    }
    table
}
