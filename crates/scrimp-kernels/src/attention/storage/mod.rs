//! How keys and values are stored in pages, one file per format.
//!
//! A page holds `page_tokens` tokens of one KV head of one layer: a K page and a V page, apart. `D` is `head_dim`
//! rounded up to a multiple of 16 (the padding is zero), `P` the number of elements that one multiply-add step of the
//! kernel takes from a row (2 for bf16, else 1).
//!
//! ```text
//! K page: [page_tokens/16 tiles][D/P steps][16 tokens][P]     a step is one vector: 16 tokens x P dims
//! V page: [D/16 blocks][page_tokens/P steps][16 dims][P]      a step is one vector: 16 dims x P tokens
//!
//! K, bf16, one tile:   step 0 | t0d0 t0d1  t1d0 t1d1  ...  t15d0 t15d1 |     64 bytes
//!                      step 1 | t0d2 t0d3  t1d2 t1d3  ...  t15d2 t15d3 |
//! V, bf16, one block:  step 0 | t0d0 t1d0  t0d1 t1d1  ...  t0d15 t1d15 |
//!                      step 1 | t2d0 t3d0  t2d1 t3d1  ...  t2d15 t3d15 |
//! ```
//!
//! So scores of 16 tokens and outputs of 16 dims are accumulated lane by lane, with no horizontal sums, and both pages
//! are read strictly in order.

pub mod bfloat16;
pub mod float16;
pub mod float32;
pub mod integer;
pub mod packing;
pub mod sparse;

use bytemuck::Pod;
use std::marker::PhantomData;

/// Tokens of a tile, and elements of a vector.
pub const TILE: usize = 16;

/// Sizes that page layouts depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageGeometry {
    /// Tokens per page, a multiple of 16.
    pub page_tokens: usize,
    /// Elements of a key or value row.
    pub head_dim: usize,
}

impl PageGeometry {
    /// `head_dim` rounded up to whole vectors.
    pub const fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(TILE)
    }
}

/// Which kernel reads the pages of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageKind {
    /// See [`float32`].
    F32,
    /// See [`float16`].
    F16,
    /// See [`bfloat16`].
    Bf16,
}

/// Keys or values that are written to a page.
#[derive(Debug, Clone, Copy)]
pub struct PageRows<'a> {
    /// The slot of the first row.
    pub slot: usize,
    /// How many rows.
    pub n: usize,
    /// Row `i` is `rows[i * stride..][..head_dim]`.
    pub rows: &'a [f32],
    /// Elements from row to row.
    pub stride: usize,
}

/// A storage format of keys and values. Pages are byte slices of [`Storage::page_bytes`], aligned to 64 bytes.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// The name that users see.
    fn name(&self) -> &'static str;
    /// Which kernel reads the pages.
    fn kind(&self) -> StorageKind;
    /// Bytes of a page of keys or of values.
    fn page_bytes(&self, geometry: PageGeometry) -> usize;
    /// Writes keys of a page.
    fn write_k(&self, g: PageGeometry, page: &mut [u8], rows: PageRows<'_>);
    /// Writes values, as [`Storage::write_k`].
    fn write_v(&self, g: PageGeometry, page: &mut [u8], rows: PageRows<'_>);
    /// Reads the key in `slot` (`[head_dim]`).
    fn read_k(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]);
    /// Reads the value in `slot` (`[head_dim]`).
    fn read_v(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]);
    /// Reads the keys of a whole tile, `[head_dim][16 tokens]`: much faster than one by one. Slots that hold no token
    /// may give anything.
    fn read_k_tile(&self, g: PageGeometry, page: &[u8], tile: usize, keys: &mut [[f32; TILE]]);
    /// Copies a key between pages without changing its bits.
    fn copy_k(&self, g: PageGeometry, from: &[u8], from_slot: usize, to: &mut [u8], to_slot: usize);
    /// Copies a value between pages without changing its bits.
    fn copy_v(&self, g: PageGeometry, from: &[u8], from_slot: usize, to: &mut [u8], to_slot: usize);
    /// Zeroes slots `slot..` up to the end of `slot`'s tile: kernels read whole tiles, and weigh unused slots with 0.
    fn clear_tile_from(&self, g: PageGeometry, k_page: &mut [u8], v_page: &mut [u8], slot: usize);
}

/// Every format, in the order of the documentation.
pub static STORAGES: [&dyn Storage; 3] = [float32::STORAGE, float16::STORAGE, bfloat16::STORAGE];

/// The format of this name.
pub fn storage(name: &str) -> Option<&'static dyn Storage> {
    STORAGES.into_iter().find(|s| s.name() == name)
}

/// An element type that is stored without a scale.
pub(crate) trait Element: Send + Sync + std::fmt::Debug {
    type Bits: Pod + Default;
    const NAME: &'static str;
    const KIND: StorageKind;
    fn encode(x: f32) -> Self::Bits;
    fn decode(bits: Self::Bits) -> f32;
    #[inline(always)]
    fn encode_tile(x: &[f32; TILE]) -> [Self::Bits; TILE] {
        // (`map` is a call for each array, and not vectorized.)
        let mut bits = [Self::Bits::default(); TILE];
        bits.iter_mut().zip(x).for_each(|(bits, &x)| *bits = Self::encode(x));
        bits
    }
}

/// Plain elements, `P` of a row to a step.
#[derive(Debug)]
pub(crate) struct Plain<E, const P: usize>(PhantomData<E>);

impl<E: Element, const P: usize> Plain<E, P> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Up to 16 elements as they are stored, then zeros.
    #[inline(always)]
    fn encode(x: &[f32]) -> [E::Bits; TILE] {
        if let Some(x) = x.as_array::<TILE>() {
            return E::encode_tile(x);
        }
        let mut bits = [E::Bits::default(); TILE];
        bits.iter_mut().zip(x).for_each(|(bits, &x)| *bits = E::encode(x));
        bits
    }

    /// Index of dim 0 of a key; dim `d` is at `d / P * 16 * P + d % P` from there.
    #[inline(always)]
    fn k_base(g: PageGeometry, slot: usize) -> usize {
        slot / TILE * g.padded_dim() * TILE + slot % TILE * P
    }

    /// Index of dim 0 of a value; dim `d` is at `d / 16 * page_tokens * 16 + d % 16 * P` from there.
    #[inline(always)]
    fn v_base(slot: usize) -> usize {
        slot / P * TILE * P + slot % P
    }
}

impl<E: Element, const P: usize> Storage for Plain<E, P> {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn kind(&self) -> StorageKind {
        E::KIND
    }

    fn page_bytes(&self, g: PageGeometry) -> usize {
        g.page_tokens.saturating_mul(g.padded_dim()).saturating_mul(size_of::<E::Bits>())
    }

    fn write_k(&self, g: PageGeometry, page: &mut [u8], rows: PageRows<'_>) {
        let PageRows { slot, n, rows, stride } = rows;
        assert!(slot + n <= g.page_tokens);
        let page: &mut [E::Bits] = bytemuck::cast_slice_mut(page);
        for i in 0..n {
            let base = Self::k_base(g, slot + i);
            for (block, x) in rows[i * stride..][..g.head_dim].chunks(TILE).enumerate() {
                let x = Self::encode(x);
                let to = &mut page[base + block * TILE * TILE..];
                for step in 0..TILE / P {
                    // The padding of a last block is zero already, and so is `x` there.
                    to[step * TILE * P..][..P].copy_from_slice(&x[step * P..][..P]);
                }
            }
        }
    }

    fn write_v(&self, g: PageGeometry, page: &mut [u8], rows: PageRows<'_>) {
        let PageRows { slot, n, rows, stride } = rows;
        assert!(slot + n <= g.page_tokens);
        let page: &mut [E::Bits] = bytemuck::cast_slice_mut(page);
        let mut i = 0;
        while i < n {
            // The tokens of a step together, where all of them are here.
            let whole = (slot + i).is_multiple_of(P) && i + P <= n;
            let base = Self::v_base(slot + i);
            for (block, dims) in (0..g.head_dim).step_by(TILE).enumerate() {
                let dims = dims..(dims + TILE).min(g.head_dim);
                let to = &mut page[base + block * g.page_tokens * TILE..];
                if whole {
                    let x: [[E::Bits; TILE]; P] =
                        std::array::from_fn(|t| Self::encode(&rows[(i + t) * stride..][dims.clone()]));
                    for (lane, to) in to[..TILE * P].chunks_exact_mut(P).enumerate() {
                        to.iter_mut().zip(&x).for_each(|(to, x)| *to = x[lane]);
                    }
                } else {
                    let x = Self::encode(&rows[i * stride..][dims]);
                    to.iter_mut().step_by(P).zip(x).for_each(|(to, x)| *to = x);
                }
            }
            i += if whole { P } else { 1 };
        }
    }

    fn read_k(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        assert!(slot < g.page_tokens);
        let page: &[E::Bits] = bytemuck::cast_slice(page);
        let base = Self::k_base(g, slot);
        for (d, x) in row[..g.head_dim].iter_mut().enumerate() {
            *x = E::decode(page[base + d / P * TILE * P + d % P]);
        }
    }

    fn read_v(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        assert!(slot < g.page_tokens);
        let page: &[E::Bits] = bytemuck::cast_slice(page);
        let base = Self::v_base(slot);
        for (d, x) in row[..g.head_dim].iter_mut().enumerate() {
            *x = E::decode(page[base + d / TILE * g.page_tokens * TILE + d % TILE * P]);
        }
    }

    fn read_k_tile(&self, g: PageGeometry, page: &[u8], tile: usize, keys: &mut [[f32; TILE]]) {
        let page: &[E::Bits] = bytemuck::cast_slice(page);
        let tile = &page[Self::k_base(g, tile * TILE)..][..g.padded_dim() * TILE];
        for (step, keys) in tile.chunks_exact(TILE * P).zip(keys[..g.head_dim].chunks_mut(P)) {
            for (p, key) in keys.iter_mut().enumerate() {
                *key = std::array::from_fn(|t| E::decode(step[t * P + p]));
            }
        }
    }

    fn copy_k(&self, g: PageGeometry, from: &[u8], from_slot: usize, to: &mut [u8], to_slot: usize) {
        assert!(from_slot < g.page_tokens && to_slot < g.page_tokens);
        let (from, to): (&[E::Bits], &mut [E::Bits]) =
            (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
        let (a, b) = (Self::k_base(g, from_slot), Self::k_base(g, to_slot));
        for step in 0..g.padded_dim() / P {
            let at = step * TILE * P;
            to[b + at..][..P].copy_from_slice(&from[a + at..][..P]);
        }
    }

    fn copy_v(&self, g: PageGeometry, from: &[u8], from_slot: usize, to: &mut [u8], to_slot: usize) {
        assert!(from_slot < g.page_tokens && to_slot < g.page_tokens);
        let (from, to): (&[E::Bits], &mut [E::Bits]) =
            (bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
        let (a, b) = (Self::v_base(from_slot), Self::v_base(to_slot));
        for block in 0..g.padded_dim() / TILE {
            let at = block * g.page_tokens * TILE;
            for lane in 0..TILE {
                to[b + at + lane * P] = from[a + at + lane * P];
            }
        }
    }

    fn clear_tile_from(&self, g: PageGeometry, k_page: &mut [u8], v_page: &mut [u8], slot: usize) {
        assert!(slot < g.page_tokens);
        let (k, v): (&mut [E::Bits], &mut [E::Bits]) =
            (bytemuck::cast_slice_mut(k_page), bytemuck::cast_slice_mut(v_page));
        let end = (slot / TILE + 1) * TILE;
        let base = Self::k_base(g, slot);
        for step in 0..g.padded_dim() / P {
            k[base + step * TILE * P..][..(end - slot) * P].fill(E::Bits::default());
        }
        for block in 0..g.padded_dim() / TILE {
            for slot in slot..end {
                let at = Self::v_base(slot) + block * g.page_tokens * TILE;
                v[at..].iter_mut().step_by(P).take(TILE).for_each(|x| *x = E::Bits::default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_and_do_not_touch_others() {
        for storage in STORAGES {
            for (page_tokens, head_dim) in [(16, 16), (64, 64), (48, 80), (32, 20), (16, 7)] {
                let g = PageGeometry { page_tokens, head_dim };
                let bytes = storage.page_bytes(g);
                let (mut k, mut v) = (vec![0_u64; bytes / 8], vec![0_u64; bytes / 8]);
                let (k, v): (&mut [u8], &mut [u8]) =
                    (bytemuck::cast_slice_mut(&mut k), bytemuck::cast_slice_mut(&mut v));
                k.fill(0x11);
                v.fill(0x11);
                for slot in (0..page_tokens).step_by(TILE) {
                    storage.clear_tile_from(g, k, v, slot);
                }
                assert!(k.iter().chain(v.iter()).all(|&b| b == 0));
                // Values that every format stores exactly.
                let stride = head_dim + 3;
                let value = |slot: usize, d: usize| ((slot * 7 + d * 5) % 255) as f32 - 127.0;
                let rows: Vec<f32> =
                    (0..page_tokens * stride).map(|i| value(i / stride, i % stride)).collect();
                storage.write_k(g, k, PageRows { slot: 0, n: 3, rows: &rows, stride });
                storage.write_k(
                    g,
                    k,
                    PageRows { slot: 3, n: page_tokens - 3, rows: &rows[3 * stride..], stride },
                );
                storage.write_v(g, v, PageRows { slot: 0, n: 5, rows: &rows, stride });
                storage.write_v(
                    g,
                    v,
                    PageRows { slot: 5, n: page_tokens - 5, rows: &rows[5 * stride..], stride },
                );
                storage.clear_tile_from(g, k, v, page_tokens - 2);
                let (old_k, old_v) = (k.to_vec(), v.to_vec());
                storage.copy_k(g, &old_k, 3, k, page_tokens - 1);
                storage.copy_v(g, &old_v, 3, v, page_tokens - 1);
                let mut row = vec![0.0; head_dim];
                let mut tile = vec![[0.0; TILE]; head_dim];
                for slot in 0..page_tokens {
                    let expected = |d: usize| match page_tokens - slot {
                        1 => value(3, d),
                        2 => 0.0,
                        _ => value(slot, d),
                    };
                    storage.read_k(g, k, slot, &mut row);
                    assert!(
                        (0..head_dim).all(|d| row[d] == expected(d)),
                        "{} K {slot} of {g:?}",
                        storage.name()
                    );
                    storage.read_k_tile(g, k, slot / TILE, &mut tile);
                    assert!((0..head_dim).all(|d| tile[d][slot % TILE] == expected(d)), "{g:?}");
                    storage.read_v(g, v, slot, &mut row);
                    assert!(
                        (0..head_dim).all(|d| row[d] == expected(d)),
                        "{} V {slot} of {g:?}",
                        storage.name()
                    );
                }
            }
        }
    }
}
