//! `sparse`: bf16 elements that are large, and a bitmap that says where they were (SparAMX, arXiv 2502.12444, section
//! 5).
//!
//! ```text
//! page: starts   [units] u16    kept elements before each unit of 16 by 16 elements
//!       bitmaps  [steps] u32    bit i: element i of the step is kept
//!       center   [D] bf16       mean of each dim over the tokens of the page
//!       values   [kept] bf16    what is kept, less the center, in the order of the bits
//! ```
//! A dropped element is read as the center (ours), and magnitudes are distances from it: keys have dims whose mean is
//! far from zero, and dims that RoPE turns slowly are nearly the same for neighbors.
//!
//! each part padded to a multiple of 64 bytes, and 64 bytes behind the values, so that kernels may load whole vectors.
//! Steps of 32 elements, and units of 8 steps, are in the order of bf16 pages (see [`storage`](super)). Every token
//! keeps as many elements: those of the largest magnitude, of equal ones the first. So all pages have one size.
//!
//! With 64 tokens to a page, sparsity `s` takes `16 (1 - s) + 1 + 5/16` bits for each element.

use super::{PageGeometry, TILE, packing::Packing};
use half::bf16;

/// The shares of keys and of values that are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sparse {
    /// Thousandths of the elements of keys that are dropped.
    k: u16,
    /// The same of values.
    v: u16,
}

/// Elements of a step and of a unit.
const STEP: usize = 32;
const UNIT: usize = TILE * TILE;

/// Where the parts of a page begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) bitmaps: usize,
    pub(crate) center: usize,
    pub(crate) values: usize,
    bytes: usize,
}

impl Layout {
    pub(crate) const fn new(g: PageGeometry, kept: usize) -> Self {
        let elements = g.page_tokens * g.padded_dim();
        let bitmaps = (elements / UNIT * 2).next_multiple_of(64);
        let center = bitmaps + (elements / STEP * 4).next_multiple_of(64);
        let values = center + (g.padded_dim() * 2).next_multiple_of(64);
        Self { bitmaps, center, values, bytes: values + (kept * 2).next_multiple_of(64) + 64 }
    }
}

impl Sparse {
    /// The usual one: 30% of keys and 50% of values are dropped.
    pub const DEFAULT: Self = Self { k: 300, v: 500 };

    /// These shares of keys and values are dropped, from 0 to below 1; `None` for any other number.
    pub fn new(k: f64, v: f64) -> Option<Self> {
        let thousandths =
            |share: f64| (0.0..0.9995).contains(&share).then(|| (share * 1000.0).round() as u16);
        Some(Self { k: thousandths(k)?, v: thousandths(v)? })
    }

    /// The shares that are dropped of keys and of values.
    pub fn shares(self) -> [f64; 2] {
        [self.k, self.v].map(|x| f64::from(x) / 1000.0)
    }

    /// The shares in thousandths.
    pub fn thousandths(self) -> [u16; 2] {
        [self.k, self.v]
    }

    /// The inverse of [`Sparse::thousandths`]; `None` for a share of 1 and more.
    pub fn from_thousandths(shares: [u32; 2]) -> Option<Self> {
        let [k, v] = shares.map(|x| u16::try_from(x).ok().filter(|&x| x < 1000));
        Some(Self { k: k?, v: v? })
    }

    /// Whether the starts of a page's units are the sums of the bits before them, and all bits together are the page's
    /// `kept` elements.
    fn counts_agree(g: PageGeometry, kept: usize, page: &[u8]) -> bool {
        let layout = Layout::new(g, kept);
        if page.len() < layout.bytes {
            return false;
        }
        let bitmaps = page[layout.bitmaps..layout.center].as_chunks::<4>().0;
        let units = bitmaps[..g.page_tokens * g.padded_dim() / STEP].chunks_exact(UNIT / STEP);
        let mut before = 0;
        let agree = units.zip(page.as_chunks::<2>().0).all(|(unit, &start)| {
            let agrees = usize::from(u16::from_le_bytes(start)) == before % (1 << 16);
            before += unit.iter().map(|&bits| u32::from_le_bytes(bits).count_ones() as usize).sum::<usize>();
            agrees
        });
        agree && before == kept
    }

    /// Whether pages of `g` can be stored: their kept elements are counted in 16 bits.
    pub(crate) fn fits(g: PageGeometry) -> bool {
        g.page_tokens.saturating_mul(g.padded_dim()) <= 1 << 16
    }

    /// Elements that a token keeps of `head_dim`.
    fn kept(dropped: u16, head_dim: usize) -> usize {
        (head_dim * (1000 - usize::from(dropped)) + 500) / 1000
    }

    /// Packs rows. Lane `i` of a step (0 to 31) holds the dim `dims(i)` of the token `tokens(i)` further than the first
    /// element of the step, and `first(step)` is that one's token and dim.
    fn pack(
        self,
        g: PageGeometry,
        dropped: u16,
        rows: &[f32],
        page: &mut [u8],
        (first, lane): (impl Fn(usize) -> (usize, usize), impl Fn(usize) -> (usize, usize)),
    ) {
        let (dim, padded) = (g.head_dim, g.padded_dim());
        assert!(rows.len() == g.page_tokens * dim && Self::fits(g));
        let kept = Self::kept(dropped, dim);
        let center = center(rows, dim);
        let offsets = center.iter().map(|c| c.to_f32()).cycle();
        let bits: Vec<u16> =
            rows.iter().zip(offsets).map(|(&x, c)| crate::quant::round_to_bf16(x - c)).collect();
        let mut keep = Vec::with_capacity(bits.len());
        let mut sorted = Vec::with_capacity(dim);
        for bits in bits.chunks_exact(dim) {
            mark_largest(bits, kept, &mut sorted, &mut keep);
        }
        // The padding is dropped.
        let lanes: [usize; STEP] = std::array::from_fn(|i| {
            let (token, d) = lane(i);
            token * dim + d
        });
        let layout = Layout::new(g, kept * g.page_tokens);
        page[..layout.bytes].fill(0);
        center.iter().enumerate().for_each(|(d, c)| put(page, layout.center + 2 * d, &c.to_le_bytes()));
        let (head, values) = page.split_at_mut(layout.values);
        let mut n = 0;
        for step in 0..g.page_tokens * padded / STEP {
            if step.is_multiple_of(UNIT / STEP) {
                put(head, step / (UNIT / STEP) * 2, &(n as u16).to_le_bytes());
            }
            let (token, d) = first(step);
            let at = token * dim + d;
            let mut bitmap = 0_u32;
            for (i, offset) in lanes.iter().enumerate() {
                // A dim of the padding would be another token's.
                if d + lane(i).1 < dim {
                    let kept = keep[at + offset];
                    bitmap |= u32::from(kept) << i;
                    // What is not kept is overwritten by the next, or by nothing behind the last.
                    put(values, 2 * n, &(bits[at + offset] * u16::from(kept)).to_le_bytes());
                    n += usize::from(kept);
                }
            }
            put(head, layout.bitmaps + 4 * step, &bitmap.to_le_bytes());
        }
    }

    /// The element with this index of a page, and of this dim.
    fn element(page: &[u8], layout: Layout, at: usize, d: usize) -> f32 {
        let number = |at: usize| bf16::from_bits(u16::from_le_bytes([page[at], page[at + 1]])).to_f32();
        let center = number(layout.center + 2 * d);
        let bitmap = |step: usize| {
            let at = layout.bitmaps + 4 * step;
            u32::from_le_bytes(page[at..at + 4].try_into().unwrap_or_default())
        };
        let (step, bit) = (at / STEP, at % STEP);
        let map = bitmap(step);
        if map >> bit & 1 == 0 {
            return center;
        }
        let unit = at / UNIT;
        let start = usize::from(u16::from_le_bytes([page[2 * unit], page[2 * unit + 1]]));
        let before: u32 = (unit * UNIT / STEP..step).map(|s| bitmap(s).count_ones()).sum();
        let n = start + (before + (map & ((1 << bit) - 1)).count_ones()) as usize;
        center + number(layout.values + 2 * n)
    }
}

/// Means of the dims of `rows`; 0 for a mean that is not finite, so that one such element affects no other.
fn center(rows: &[f32], dim: usize) -> Vec<bf16> {
    let mut sums = vec![0.0_f32; dim];
    for row in rows.chunks_exact(dim) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    let n = (rows.len() / dim.max(1)) as f32;
    let mean = |sum: f32| Some(bf16::from_f32(sum / n)).filter(|mean| mean.is_finite()).unwrap_or_default();
    sums.into_iter().map(mean).collect()
}

/// Appends to `keep` which `kept` elements of `bits` have the largest magnitudes; of equal ones the first.
fn mark_largest(bits: &[u16], kept: usize, sorted: &mut Vec<u16>, keep: &mut Vec<bool>) {
    if kept == 0 {
        keep.extend(bits.iter().map(|_| false));
        return;
    }
    // Magnitudes of bf16 are ordered like their bits, NaN the largest.
    sorted.clear();
    sorted.extend(bits.iter().map(|&bits| bits & 0x7fff));
    let place = bits.len() - kept;
    let (_, &mut threshold, above) = sorted.select_nth_unstable(place);
    let above = above.iter().filter(|&&x| x > threshold).count();
    let mut ties = kept - above;
    keep.extend(bits.iter().map(|&bits| {
        let magnitude = bits & 0x7fff;
        let tie = magnitude == threshold && ties > 0;
        ties -= usize::from(tie);
        magnitude > threshold || tie
    }));
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The index of an element of a key, as in bf16 pages.
fn k_place(g: PageGeometry, t: usize, d: usize) -> usize {
    t / TILE * g.padded_dim() * TILE + d / 2 * STEP + t % TILE * 2 + d % 2
}

/// The index of an element of a value, as in bf16 pages.
fn v_place(g: PageGeometry, t: usize, d: usize) -> usize {
    d / TILE * g.page_tokens * TILE + t / 2 * STEP + d % TILE * 2 + t % 2
}

impl Packing for Sparse {
    fn name(&self) -> &'static str {
        "sparse"
    }

    fn page_bytes(&self, g: PageGeometry) -> [usize; 2] {
        [self.k, self.v].map(|dropped| Layout::new(g, Self::kept(dropped, g.head_dim) * g.page_tokens).bytes)
    }

    fn pack_k(&self, g: PageGeometry, rows: &[f32], page: &mut [u8]) {
        let steps = g.padded_dim() / 2;
        let first = |step: usize| (step / steps * TILE, step % steps * 2);
        self.pack(g, self.k, rows, page, (first, |i| (i / 2, i % 2)));
    }

    fn pack_v(&self, g: PageGeometry, rows: &[f32], page: &mut [u8]) {
        let steps = g.page_tokens / 2;
        let first = |step: usize| (step % steps * 2, step / steps * TILE);
        self.pack(g, self.v, rows, page, (first, |i| (i % 2, i / 2)));
    }

    fn read_k(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        let layout = Layout::new(g, 0);
        row[..g.head_dim]
            .iter_mut()
            .enumerate()
            .for_each(|(d, x)| *x = Self::element(page, layout, k_place(g, slot, d), d));
    }

    fn read_v(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        let layout = Layout::new(g, 0);
        row[..g.head_dim]
            .iter_mut()
            .enumerate()
            .for_each(|(d, x)| *x = Self::element(page, layout, v_place(g, slot, d), d));
    }

    fn is_valid(&self, g: PageGeometry, k: &[u8], v: &[u8]) -> bool {
        let agree =
            |dropped, page| Self::counts_agree(g, Self::kept(dropped, g.head_dim) * g.page_tokens, page);
        agree(self.k, k) && agree(self.v, v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Elements of `group` neighbors that are kept, chosen by sorting.
    fn pruned(rows: &[f32], group: usize, kept: usize) -> Vec<f32> {
        let mut result = vec![0.0; rows.len()];
        for (first, x) in rows.chunks(group).enumerate().map(|(i, x)| (i * group, x)) {
            let mut order: Vec<usize> = (0..x.len()).collect();
            order.sort_by(|&a, &b| x[b].abs().total_cmp(&x[a].abs()).then(a.cmp(&b)));
            order[..kept].iter().for_each(|&i| result[first + i] = x[i]);
        }
        result
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: scrimp_testkit::cases(64), failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_largest_are_kept_as_they_were(
            tiles in 1_usize..5,
            head_dim in 1_usize..70,
            shares in (0.0..0.99, 0.0..0.99),
            seed in any::<u64>(),
        ) {
            let g = PageGeometry { page_tokens: tiles * 16, head_dim };
            let sparse = Sparse::new(shares.0, shares.1).unwrap();
            let mut seed = seed;
            let noise = |_| bf16::from_f32(super::super::super::tests::noise(&mut seed)).to_f32();
            let rows: Vec<f32> = (0..g.page_tokens * head_dim).map(noise).collect();
            let [mut k, mut v] = sparse.page_bytes(g).map(|bytes| vec![0xa5; bytes]);
            sparse.pack_k(g, &rows, &mut k);
            sparse.pack_v(g, &rows, &mut v);
            // What is kept is the distance from the center, in bf16.
            let center: Vec<f32> = center(&rows, head_dim).iter().map(|c| c.to_f32()).collect();
            let from_center: Vec<f32> = rows
                .iter()
                .zip(center.iter().cycle())
                .map(|(x, c)| bf16::from_f32(x - c).to_f32())
                .collect();
            let want = [shares.0, shares.1].map(|share| {
                let kept = (head_dim as f64 * (1.0 - (share * 1000.0).round() / 1000.0) + 0.5 + 1e-9) as usize;
                let mut rows = pruned(&from_center, head_dim, kept);
                rows.iter_mut().zip(center.iter().cycle()).for_each(|(x, c)| *x += c);
                rows
            });
            let mut row = vec![0.0; head_dim];
            for slot in 0..g.page_tokens {
                let of = slot * head_dim..(slot + 1) * head_dim;
                sparse.read_k(g, &k, slot, &mut row);
                prop_assert_eq!(&row, &want[0][of.clone()]);
                sparse.read_v(g, &v, slot, &mut row);
                prop_assert_eq!(&row, &want[1][of]);
            }
        }
    }

    #[test]
    fn sizes() {
        let g = PageGeometry { page_tokens: 64, head_dim: 128 };
        // 90 and 64 of 128 elements are kept; 32 starts, 256 bitmaps, the center, and 64 bytes of room.
        assert_eq!(
            Sparse::DEFAULT.page_bytes(g),
            [64 + 1024 + 256 + 64 * 90 * 2 + 64, 64 + 1024 + 256 + 64 * 64 * 2 + 64]
        );
    }

    #[test]
    fn a_number_that_is_none_is_kept() {
        let g = PageGeometry { page_tokens: 16, head_dim: 16 };
        let mut rows = vec![1.0; 256];
        rows[100] = f32::NAN;
        let sparse = Sparse::new(0.9, 0.9).unwrap();
        let mut page = vec![0; sparse.page_bytes(g)[0]];
        sparse.pack_k(g, &rows, &mut page);
        let mut row = [0.0; 16];
        sparse.read_k(g, &page, 6, &mut row);
        assert!(row[4].is_nan());
    }
}
