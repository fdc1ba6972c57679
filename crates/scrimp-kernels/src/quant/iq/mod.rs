//! The types `IQ1_*`, `IQ2_*`, `IQ3_*` and `IQ4_XS`, decoded to integers.
//!
//! ```text
//! w[c] = d factor scale[c / 16] q[c]               q: at most 16 different values in each type
//!
//! IQ4_XS    q = an entry of IQ4_NL's values
//! IQ3_*     q = a magnitude from a grid of vectors of 4, with a sign         {4, 12, ..., 62}, {1, 3, ..., 15}
//! IQ2_*     q = a magnitude from a grid of vectors of 8, with a sign         {8, 25, 43}
//! IQ1_*     q = 8 g + delta: g in {-1, 0, 1} from a grid of vectors of 8, delta = 1 or -1 for 8 or 32 columns
//! ```
//! Where signs take 7 bits for 8 columns, the eighth makes the number of minus signs even.
//!
//! Bytes of a block, with the offset of each field:
//!
//! | type | fields |
//! |---|---|
//! | `IQ4_XS` | 0: f16 d; 2: u16, the upper 2 bits of 8 scales; 4: nibbles of scales; 8: 128 bytes, for each 32 columns as in `IQ4_NL` |
//! | `IQ3_S` | 0: f16 d; 2: 64 indexes; 66: their ninth bits; 74: a byte of signs for 8 columns; 106: nibbles of scales |
//! | `IQ3_XXS` | 0: f16 d; 2: 64 indexes; 66: for 32 columns a u32: four times 7 bits of signs, 4 bits of scale |
//! | `IQ2_S` | 0: f16 d; 2: 32 indexes; 34: a byte of signs for 8 columns; 66: 2 upper bits of indexes; 74: nibbles of scales |
//! | `IQ2_XS` | 0: f16 d; 2: 32 u16: 9 bits of index, 7 bits of signs; 66: nibbles of scales |
//! | `IQ2_XXS` | 0: f16 d; 2: for 32 columns four indexes, then a u32 as in `IQ3_XXS` |
//! | `IQ1_M` | 0: 32 indexes; 32: nibbles: 3 upper bits of an index, sign of delta; 48: 4 u16: four 3-bit scales, a quarter of the f16 d |
//! | `IQ1_S` | 0: f16 d; 2: 32 indexes; 34: for 32 columns a u16: 3 upper bits of four indexes, 3 bits of scale, sign of delta |
//!
//! The grids are data of llama.cpp (`iq2xxs_grid` and others in `ggml-common.h`; see NOTICE), which
//! `testdata/formats/grids.py` extracts.

use super::iq4_nl;
use crate::DType;

/// The integers of a block of 256 columns.
pub(crate) struct Codes {
    pub(crate) q: [i8; 256],
    /// For each 16 columns.
    pub(crate) scale: [i8; 16],
    /// The bits of an f16.
    pub(crate) d: u16,
}

/// The grids as little-endian u16, one after another: vectors of 8 with 2 bits for each element, vectors of 4 with 3
/// bits, the first element in the lowest bits.
static GRIDS: &[u8; 2 * 4608] = include_bytes!("grids.bin");

/// A grid's first vector in [`GRIDS`], and the values of its elements.
struct Grid {
    first: usize,
    values: &'static [i8],
}

const MAGNITUDES_IQ2: &[i8] = &[8, 25, 43];
const GRID_IQ2_XXS: Grid = Grid { first: 0, values: MAGNITUDES_IQ2 };
const GRID_IQ2_XS: Grid = Grid { first: 256, values: MAGNITUDES_IQ2 };
const GRID_IQ2_S: Grid = Grid { first: 768, values: MAGNITUDES_IQ2 };
/// Eight times the values, to which the delta is added.
const GRID_IQ1: Grid = Grid { first: 1792, values: &[-8, 0, 8] };
const GRID_IQ3_XXS: Grid = Grid { first: 3840, values: &[4, 12, 20, 28, 36, 44, 52, 62] };
const GRID_IQ3_S: Grid = Grid { first: 4096, values: &[1, 3, 5, 7, 9, 11, 13, 15] };

impl Grid {
    /// The `N` elements of vector `index`.
    fn vector<const N: usize>(&self, index: usize) -> [i8; N] {
        let at = 2 * (self.first + index);
        let (bits, width) = (u16::from_le_bytes([GRIDS[at], GRIDS[at + 1]]), if N == 8 { 2 } else { 3 });
        std::array::from_fn(|i| self.values[usize::from(bits >> (width * i)) & ((1 << width) - 1)])
    }
}

/// The factor on `d`.
pub(crate) fn factor(dtype: DType) -> f32 {
    match dtype {
        DType::IQ4_XS | DType::IQ3_S => 1.0,
        DType::IQ3_XXS => 0.25,
        _ => 0.125,
    }
}

/// The values of the quants. Types with 6 of them have 8 here, so that 3 bits index them.
pub(crate) fn values(dtype: DType) -> [i8; 16] {
    let few = |values: [i8; 6]| std::array::from_fn(|i| values[i.min(5)]);
    let signed =
        |grid: Grid| std::array::from_fn(|i| if i < 8 { -grid.values[7 - i] } else { grid.values[i - 8] });
    match dtype {
        DType::IQ4_XS => iq4_nl::VALUES,
        DType::IQ3_S => signed(GRID_IQ3_S),
        DType::IQ3_XXS => signed(GRID_IQ3_XXS),
        DType::IQ1_S | DType::IQ1_M => few([-9, -7, -1, 1, 7, 9]),
        _ => few([-43, -25, -8, 8, 25, 43]),
    }
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The `i`-th nibble from byte `at` on, the low one of each byte first.
fn nibble(b: &[u8], at: usize, i: usize) -> u8 {
    b[at + i / 2] >> (4 * (i % 2)) & 15
}

/// The bits of the f16 scale of a block of `IQ1_M`.
pub(crate) fn iq1_m_scale(b: &[u8]) -> u16 {
    (0..4).fold(0, |d, i| d | u16_at(b, 48 + 2 * i) >> 12 << (4 * i))
}

/// The signs of 8 columns from 7 bits.
fn even_signs(bits: u32) -> u8 {
    let bits = (bits & 127) as u8;
    bits | ((bits.count_ones() & 1) as u8) << 7
}

/// Writes magnitudes with a minus sign where `signs` has a bit.
fn put(q: &mut [i8], magnitudes: &[i8], signs: u8) {
    for (i, (q, &m)) in q.iter_mut().zip(magnitudes).enumerate() {
        *q = if signs >> i & 1 == 0 { m } else { -m };
    }
}

/// Decodes a block of 256 columns.
///
/// # Panics
/// When `dtype` is none of these types, or `b` is shorter than its blocks.
pub(crate) fn decode(dtype: DType, b: &[u8]) -> Codes {
    let d = if dtype == DType::IQ1_M { iq1_m_scale(b) } else { u16_at(b, 0) };
    let mut codes = Codes { q: [0; 256], scale: [0; 16], d };
    let eights = codes.q.as_chunks_mut::<8>().0.iter_mut().enumerate();
    match dtype {
        DType::IQ4_XS => iq4_xs(b, &mut codes.q),
        DType::IQ3_S => eights.for_each(|(i, q)| {
            for (half, q) in q.chunks_exact_mut(4).enumerate() {
                let (e, signs) = (2 * i + half, b[74 + i] >> (4 * half));
                let ninth = usize::from(b[66 + e / 8] >> (e % 8) & 1) << 8;
                put(q, &GRID_IQ3_S.vector::<4>(usize::from(b[2 + e]) | ninth), signs);
            }
        }),
        DType::IQ3_XXS => eights.for_each(|(i, q)| {
            let signs = even_signs(u32_at(b, 66 + 4 * (i / 4)) >> (7 * (i % 4)));
            for (half, q) in q.chunks_exact_mut(4).enumerate() {
                let index = usize::from(b[2 + 2 * i + half]);
                put(q, &GRID_IQ3_XXS.vector::<4>(index), signs >> (4 * half));
            }
        }),
        DType::IQ2_S => eights.for_each(|(i, q)| {
            let upper = usize::from(b[66 + i / 4] >> (2 * (i % 4)) & 3) << 8;
            put(q, &GRID_IQ2_S.vector::<8>(usize::from(b[2 + i]) | upper), b[34 + i]);
        }),
        DType::IQ2_XS => eights.for_each(|(i, q)| {
            let both = u16_at(b, 2 + 2 * i);
            put(q, &GRID_IQ2_XS.vector::<8>(usize::from(both & 511)), even_signs(u32::from(both >> 9)));
        }),
        DType::IQ2_XXS => eights.for_each(|(i, q)| {
            let (at, j) = (2 + 8 * (i / 4), i % 4);
            let signs = even_signs(u32_at(b, at + 4) >> (7 * j));
            put(q, &GRID_IQ2_XXS.vector::<8>(usize::from(b[at + j])), signs);
        }),
        DType::IQ1_M => eights.for_each(|(i, q)| {
            let upper = nibble(b, 32, i);
            *q = ternary(usize::from(b[i]) | usize::from(upper & 7) << 8, upper & 8 != 0);
        }),
        DType::IQ1_S => eights.for_each(|(i, q)| {
            let both = u16_at(b, 34 + 2 * (i / 4));
            let upper = usize::from(both >> (3 * (i % 4)) & 7) << 8;
            *q = ternary(usize::from(b[2 + i]) | upper, both & 0x8000 != 0);
        }),
        _ => unreachable!("{dtype} has no codes"),
    }
    for (i, to) in codes.scale.iter_mut().enumerate() {
        *to = scale(dtype, b, i);
    }
    codes
}

fn iq4_xs(b: &[u8], q: &mut [i8; 256]) {
    for (c, q) in q.iter_mut().enumerate() {
        let byte = b[8 + 16 * (c / 32) + c % 16];
        *q = iq4_nl::VALUES[usize::from(if c % 32 < 16 { byte & 15 } else { byte >> 4 })];
    }
}

/// 8 columns of `IQ1_*`.
fn ternary(index: usize, minus: bool) -> [i8; 8] {
    GRID_IQ1.vector::<8>(index).map(|g| if minus { g - 1 } else { g + 1 })
}

/// The integer scale of the `i`-th 16 columns.
fn scale(dtype: DType, b: &[u8], i: usize) -> i8 {
    let stored = match dtype {
        DType::IQ4_XS => {
            let upper = (u16_at(b, 2) >> (2 * (i / 2)) & 3) as u8;
            return (nibble(b, 4, i / 2) | upper << 4) as i8 - 32;
        }
        DType::IQ3_S => nibble(b, 106, i / 2),
        DType::IQ3_XXS => (u32_at(b, 66 + 4 * (i / 2)) >> 28) as u8,
        DType::IQ2_S => nibble(b, 74, i),
        DType::IQ2_XS => nibble(b, 66, i),
        DType::IQ2_XXS => (u32_at(b, 6 + 8 * (i / 2)) >> 28) as u8,
        DType::IQ1_M => (u16_at(b, 48 + 2 * (i / 4)) >> (3 * (i % 4)) & 7) as u8,
        _ => (u16_at(b, 34 + 2 * (i / 2)) >> 12 & 7) as u8,
    };
    2 * stored as i8 + 1
}
