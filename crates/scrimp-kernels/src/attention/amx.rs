//! Prompts with AMX: scores and values of 32 query rows over bf16 pages.
//!
//! ```text
//! scores   A: 16 rows x 32 dims of q     B: 16 keys x 32 dims of the page      C: [16 rows][16 keys], scores
//! values   A: 16 rows x 32 keys of p     B: 32 keys x 16 dims of the page      C: [16 rows][16 dims], outputs
//! ```
//! Pages already have the layout of B tiles ([`storage`](super::storage)), and scores and outputs that of C tiles
//! ([`qk_pv`](super::qk_pv)). Queries and probabilities are stored in the layout of A tiles
//! ([`Bf16`](super::format::Bf16) with `IN_TILES`). Two blocks of 16 rows are multiplied with two key tiles or two
//! blocks of dims: 4 loads for 4 products of 16 x 16 x 32. Outputs stay in tile registers for [`RUN_PAGES`] pages.
//!
//! Error: sums are f32. `tdpbf16ps` adds even and odd elements separately and flushes denormals, so results differ from
//! those of AVX-512 by rounding.

use super::{
    PageGeometry,
    qk_pv::{PvArgs, QkArgs},
    storage::TILE,
};
use crate::arch::{
    SimdLevel,
    amx::{A, Amx, B, Configured, Shape, TILE_BYTES, TILE_STEPS, Tile, clear},
};

/// Query rows of a block.
pub(super) const ROWS: usize = 32;
/// Pages whose values are added while outputs stay in registers; their probabilities stay in the first-level cache.
pub(super) const RUN_PAGES: usize = 4;
/// Floats of a C tile; that of block `r` of rows and tile `t` of keys (or block of dims) is register `2 r + t`.
const FLOATS: usize = TILE_BYTES / 4;
/// Floats of a tile of keys: scores of all rows.
const STRIDE: usize = ROWS * TILE;

/// Whether keys and values come in whole B tiles.
pub(super) fn fits(g: PageGeometry) -> bool {
    g.padded_dim().is_multiple_of(2 * TILE_STEPS) && g.page_tokens.is_multiple_of(2 * TILE)
}

/// The CPU's tile registers in the shape of these kernels, for the duration of a task.
///
/// # Panics
/// In a level without AMX.
pub(super) fn registers(level: SimdLevel) -> Configured<Amx> {
    let mut registers = Configured::new(Amx::of(level).expect("a level with AMX"));
    registers.shaped(Shape::whole(TILE));
    registers
}

/// [`qk`] with the CPU's tile registers.
///
/// # Safety
/// As [`qk`]; the thread has called [`registers`].
pub(super) unsafe fn qk_entry(args: QkArgs) {
    // SAFETY: `registers` has checked that the CPU has tile registers, and configured them; the caller guarantees the
    // rest.
    unsafe { qk(&mut Amx::assume(), args) }
}

/// [`pv`] with the CPU's tile registers.
///
/// # Safety
/// As [`pv`]; the thread has called [`registers`].
pub(super) unsafe fn pv_entry(args: PvArgs<'_>) {
    // SAFETY: `registers` has checked that the CPU has tile registers, and configured them; the caller guarantees the
    // rest.
    unsafe { pv(&mut Amx::assume(), args) }
}

/// Scores of [`ROWS`] rows against `tiles` tiles of keys, `[tile][ROWS][16]`.
///
/// # Safety
/// `k` has `tiles` tiles of `steps` steps, a multiple of 16; `q` has `[steps / 16][ROWS][16]` elements, `out` room for
/// the scores.
#[inline(always)]
pub(super) unsafe fn qk<X: Tile>(x: &mut X, QkArgs { k, tiles, steps, q, out, .. }: QkArgs) {
    let tile_bytes = steps * 64;
    for tile in (0..tiles).step_by(2) {
        let (k, out) = (k.wrapping_add(tile * tile_bytes), out.wrapping_add(tile * STRIDE));
        // SAFETY: `tile` and `tile + 1`, where it is used, are below `tiles`, for which the caller guarantees keys
        // and room.
        unsafe {
            if tile + 1 < tiles {
                qk_tiles::<X, 2>(x, k, tile_bytes, q, out);
            } else {
                qk_tiles::<X, 1>(x, k, tile_bytes, q, out);
            }
        }
    }
}

/// One tile of keys, or two.
///
/// # Safety
/// As for [`qk`].
#[inline(always)]
unsafe fn qk_tiles<X: Tile, const NB: usize>(
    x: &mut X,
    k: *const u8,
    tile_bytes: usize,
    q: *const f32,
    out: *mut f32,
) {
    clear::<X, 2, NB>(x);
    for at in (0..tile_bytes).step_by(TILE_BYTES) {
        let q = q.wrapping_add(at / TILE_STEPS / 4 * ROWS);
        // SAFETY: `at` is inside a tile of keys, which the caller guarantees: a block of steps is a B tile of `k`,
        // and two A tiles of `q`.
        unsafe { products::<X, NB>(x, q.cast(), k.wrapping_add(at), tile_bytes) };
    }
    // SAFETY: the caller guarantees room for the scores of `NB` tiles.
    unsafe { store::<X, NB>(x, out, STRIDE) };
}

/// `C += A B` for two A tiles, one behind the other, and one or two B tiles.
///
/// # Safety
/// The tiles can be read: A at `a`, B at `b` and `b_stride` bytes on.
#[inline(always)]
unsafe fn products<X: Tile, const NB: usize>(x: &mut X, a: *const u8, b: *const u8, b_stride: usize) {
    // SAFETY: the caller guarantees two A tiles at `a`, and `NB` B tiles at `b`.
    unsafe {
        x.load::<{ B[0] }>(b, 64);
        x.load::<{ A[0] }>(a, 64);
        x.dot_bf16::<0, { A[0] }, { B[0] }>();
        if NB == 2 {
            x.load::<{ B[1] }>(b.wrapping_add(b_stride), 64);
            x.dot_bf16::<1, { A[0] }, { B[1] }>();
        }
        x.load::<{ A[1] }>(a.wrapping_add(TILE_BYTES), 64);
    }
    x.dot_bf16::<2, { A[1] }, { B[0] }>();
    if NB == 2 {
        x.dot_bf16::<3, { A[1] }, { B[1] }>();
    }
}

/// Stores the C tiles; `stride` floats from the tiles of one column of tiles to those of the next.
///
/// # Safety
/// They can be written.
#[inline(always)]
unsafe fn store<X: Tile, const NB: usize>(x: &mut X, out: *mut f32, stride: usize) {
    // SAFETY: the caller guarantees that `NB` columns of two C tiles can be written.
    unsafe {
        x.store::<0>(out.cast(), 64);
        x.store::<2>(out.wrapping_add(FLOATS).cast(), 64);
        if NB == 2 {
            let out = out.wrapping_add(stride);
            x.store::<1>(out.cast(), 64);
            x.store::<3>(out.wrapping_add(FLOATS).cast(), 64);
        }
    }
}

/// Adds values, weighed by `p`, to the outputs of [`ROWS`] rows, page after page. All pages but the last have an even
/// number of tiles.
///
/// # Safety
/// As for [`qk_pv::pv`](super::qk_pv::pv), with an even number of blocks; the probabilities of an odd last tile are
/// followed by zeros.
#[inline(always)]
pub(super) unsafe fn pv<X: Tile>(x: &mut X, PvArgs { pages, block_bytes, blocks, p, acc, .. }: PvArgs<'_>) {
    for block in (0..blocks).step_by(2) {
        let acc = acc.wrapping_add(block * STRIDE);
        let mut p = p;
        // SAFETY: `block` and `block + 1` are below `blocks`, which is even; the caller guarantees their values and
        // outputs, and probabilities for the tiles of all pages.
        unsafe {
            x.load::<0>(acc.cast(), 64);
            x.load::<2>(acc.wrapping_add(FLOATS).cast(), 64);
            x.load::<1>(acc.wrapping_add(STRIDE).cast(), 64);
            x.load::<3>(acc.wrapping_add(STRIDE + FLOATS).cast(), 64);
            for page in pages {
                let mut v = page.at.wrapping_add(block * block_bytes);
                for _ in 0..page.tiles / 2 {
                    products::<X, 2>(x, p.cast(), v, block_bytes);
                    v = v.wrapping_add(TILE_BYTES);
                    p = p.wrapping_add(STRIDE);
                }
                if !page.tiles.is_multiple_of(2) {
                    // What stands behind the last tile may be no numbers at all.
                    let mut half = [[0_u8; TILE_BYTES]; 2];
                    for (i, half) in half.iter_mut().enumerate() {
                        v.wrapping_add(i * block_bytes).copy_to(half.as_mut_ptr(), TILE_BYTES / 2);
                    }
                    products::<X, 2>(x, p.cast(), half.as_ptr().cast(), TILE_BYTES);
                }
            }
            store::<X, 2>(x, acc, STRIDE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{qk_pv::Values, storage::bfloat16},
        *,
    };
    use crate::attention::PageRows;
    use crate::{
        arch::amx::{Shape, soft::Soft},
        attention::{storage::Storage, tests::noise},
    };
    use half::bf16;

    /// Pages of noise, and the stored numbers, `[keys][dim]`. Slots without a key are not numbers.
    fn pages(g: PageGeometry, keys: usize, seed: &mut u64) -> ([Vec<Vec<u8>>; 2], [Vec<f32>; 2]) {
        let storage: &dyn Storage = bfloat16::STORAGE;
        let rows: [Vec<f32>; 2] = std::array::from_fn(|_| {
            (0..keys * g.head_dim).map(|_| bf16::from_f32(noise(seed)).to_f32()).collect()
        });
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for first in (0..keys).step_by(g.page_tokens) {
            let n = g.page_tokens.min(keys - first);
            let page = || vec![0xff; storage.page_bytes(g)];
            let [mut k_page, mut v_page] = [page(), page()];
            if n < g.page_tokens {
                storage.clear_tile_from(g, &mut k_page, &mut v_page, n);
            }
            let [k_rows, v_rows] = rows.each_ref().map(|rows| &rows[first * g.head_dim..]);
            storage.write_k(g, &mut k_page, PageRows { slot: 0, n, rows: k_rows, stride: g.head_dim });
            storage.write_v(g, &mut v_page, PageRows { slot: 0, n, rows: v_rows, stride: g.head_dim });
            k.push(k_page);
            v.push(v_page);
        }
        ([k, v], rows)
    }

    /// Close to the sum of the products, relative to their sizes.
    fn close(got: f32, products: impl Iterator<Item = f64> + Clone) {
        let (want, size) = (products.clone().sum::<f64>(), products.map(f64::abs).sum::<f64>());
        assert!((f64::from(got) - want).abs() <= 1e-6 * size + 1e-6, "{got}, should be {want}");
    }

    #[test]
    fn products_in_plain_tiles_are_exact() {
        let mut soft = Soft::new();
        for (page_tokens, head_dim, keys) in [(64, 64, 70), (32, 32, 96), (64, 128, 16), (32, 96, 33)] {
            let g = PageGeometry { page_tokens, head_dim };
            assert!(fits(g));
            let seed = &mut 7;
            let ([k, v], [k_rows, v_rows]) = pages(g, keys, seed);
            let q: Vec<f32> = (0..ROWS * head_dim).map(|_| bf16::from_f32(noise(seed)).to_f32()).collect();
            let tiles = keys.div_ceil(TILE);
            // A tiles of queries: [block of 32 dims][row][32 dims].
            let mut elements = vec![0_u16; ROWS * head_dim];
            for (i, x) in q.iter().enumerate() {
                let (row, dim) = (i / head_dim, i % head_dim);
                elements[(dim / 32 * ROWS + row) * 32 + dim % 32] = bf16::from_f32(*x).to_bits();
            }
            let mut scores = vec![f32::NAN; tiles * STRIDE];
            let tile = &mut &mut soft;
            tile.configure(Shape::whole(TILE));
            for (i, page) in k.iter().enumerate() {
                let before = i * page_tokens / TILE;
                let n = (tiles - before).min(page_tokens / TILE);
                let out = scores[before * STRIDE..][..n * STRIDE].as_mut_ptr();
                let (k, q) = (page.as_ptr(), elements.as_ptr().cast());
                let args = QkArgs { k, tiles: n, steps: head_dim / 2, q, out, ahead: k };
                // SAFETY: the page has these tiles, and `out` room for their scores.
                unsafe { qk(tile, args) };
            }
            for (key, row) in (0..keys).flat_map(|key| (0..ROWS).map(move |row| (key, row))) {
                let (q, k) = (&q[row * head_dim..][..head_dim], &k_rows[key * head_dim..]);
                let products = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k));
                close(scores[key / TILE * STRIDE + row * TILE + key % TILE], products);
            }

            // Probabilities of two tiles side by side; those of keys that are not there are 0.
            let p: Vec<f32> = (0..ROWS * keys).map(|_| bf16::from_f32(noise(seed).abs()).to_f32()).collect();
            let mut bits = vec![0x7fff_u16; 2 * tiles * STRIDE];
            for (key, row) in
                (0..tiles.next_multiple_of(2) * TILE).flat_map(|k| (0..ROWS).map(move |r| (k, r)))
            {
                let p = if key < keys { p[row * keys + key] } else { 0.0 };
                let line = key / TILE / 2 * ROWS + row;
                bits[line * 32 + key % 32] = bf16::from_f32(p).to_bits();
            }
            let mut acc = vec![1.0_f32; head_dim * ROWS];
            let values: Vec<_> = v
                .iter()
                .enumerate()
                .map(|(i, page)| Values {
                    at: page.as_ptr(),
                    tiles: (tiles - i * page_tokens / TILE).min(page_tokens / TILE),
                })
                .collect();
            let (blocks, block_bytes) = (head_dim / TILE, page_tokens / 2 * 64);
            let (p_bits, acc_at) = (bits.as_ptr().cast(), acc.as_mut_ptr());
            let args =
                PvArgs { pages: &values, block_bytes, blocks, p: p_bits, acc: acc_at, ahead: values[0].at };
            // SAFETY: pages, probabilities and outputs have the sizes that are given.
            unsafe { pv(tile, args) };
            for (row, dim) in (0..ROWS).flat_map(|row| (0..head_dim).map(move |dim| (row, dim))) {
                let values = v_rows[dim..].iter().step_by(head_dim);
                let products = p[row * keys..][..keys].iter().zip(values);
                let products = products.map(|(&p, &v)| f64::from(p) * f64::from(v)).chain([1.0]);
                close(acc[dim / TILE * STRIDE + row * TILE + dim % TILE], products);
            }
        }
    }
}
