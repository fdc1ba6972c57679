//! `sparse`: bf16 elements that are large, and a bitmap that says where they were (SparAMX, arXiv 2502.12444, section 5).
//!
//! ```text
//! page: starts   [units] u16    kept elements before each unit of 16 by 16 elements
//!       bitmaps  [steps] u32    bit i: element i of the step is kept
//!       values   [kept] bf16    in the order of the bits
//! ```
//! each part padded to a multiple of 64 bytes, and 64 bytes behind the values, so that kernels may load whole vectors. Steps
//! of 32 elements, and units of 8 steps, stand in the order of bf16 pages (see [`storage`](super)). Every token keeps as
//! many elements (those of the largest magnitude; of equal ones the first), or every page does, so a page has one size.
//!
//! With 64 tokens to a page, sparsity `s` takes `16 (1 - s) + 1 + 1/16` bits for each element.

use super::{PageGeometry, TILE, packing::Packing};
use half::bf16;

/// What is kept of keys and of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sparse {
    /// Thousandths of the elements of keys that are dropped.
    k: u16,
    /// The same of values.
    v: u16,
    scope: Scope,
}

/// Among which elements the largest are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Those of a token (of one KV head).
    Token,
    /// Those of all tokens of a page (of one KV head).
    Page,
}

/// Elements of a step and of a unit.
const STEP: usize = 32;
const UNIT: usize = TILE * TILE;

/// Where the parts of a page begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) bitmaps: usize,
    pub(crate) values: usize,
    bytes: usize,
}

impl Layout {
    pub(crate) const fn new(g: PageGeometry, kept: usize) -> Self {
        let elements = g.page_tokens * g.padded_dim();
        let bitmaps = (elements / UNIT * 2).next_multiple_of(64);
        let values = bitmaps + (elements / STEP * 4).next_multiple_of(64);
        Self { bitmaps, values, bytes: values + (kept * 2).next_multiple_of(64) + 64 }
    }
}

impl Sparse {
    /// The usual one: 30% of keys and 50% of values are dropped.
    pub const DEFAULT: Self = Self { k: 300, v: 500, scope: Scope::Token };

    /// These shares of keys and values are dropped, from 0 to below 1; `None` for any other number.
    pub fn new(k: f64, v: f64, scope: Scope) -> Option<Self> {
        let thousandths = |share: f64| (0.0..0.9995).contains(&share).then(|| (share * 1000.0).round() as u16);
        Some(Self { k: thousandths(k)?, v: thousandths(v)?, scope })
    }

    /// The shares that are dropped of keys and of values.
    pub fn shares(self) -> [f64; 2] {
        [self.k, self.v].map(|x| f64::from(x) / 1000.0)
    }

    /// Among which elements the largest are kept.
    pub fn scope(self) -> Scope {
        self.scope
    }

    /// Whether pages of `g` can be stored: their kept elements are counted in 16 bits.
    pub(crate) fn fits(g: PageGeometry) -> bool {
        g.page_tokens.saturating_mul(g.padded_dim()) <= 1 << 16
    }

    /// Elements that a token keeps of `head_dim`.
    fn kept(dropped: u16, head_dim: usize) -> usize {
        (head_dim * (1000 - usize::from(dropped)) + 500) / 1000
    }

    /// Packs rows; the bf16 element of dim `d` of token `t` has the index `place(t, d)`.
    fn pack(
        self,
        g: PageGeometry,
        dropped: u16,
        rows: &[f32],
        page: &mut [u8],
        place: impl Fn(usize, usize) -> usize,
    ) {
        let dim = g.head_dim;
        assert!(rows.len() == g.page_tokens * dim && Self::fits(g));
        let kept = Self::kept(dropped, dim);
        let mut elements: Vec<Option<u16>> = vec![None; g.page_tokens * g.padded_dim()];
        let bits: Vec<u16> = rows.iter().map(|&x| super::bfloat16::round_to_bf16(x)).collect();
        let (group, kept_of_group) = match self.scope {
            Scope::Token => (dim, kept),
            Scope::Page => (bits.len(), kept * g.page_tokens),
        };
        let mut order: Vec<u32> = Vec::with_capacity(group);
        for (first, bits) in bits.chunks_exact(group).enumerate().map(|(i, bits)| (i * group, bits)) {
            order.clear();
            order.extend(0..group as u32);
            // Magnitudes of bf16 are ordered like their bits, NaN the largest.
            let key = |&i: &u32| (std::cmp::Reverse(bits[i as usize] & 0x7fff), i);
            if kept_of_group > 0 && kept_of_group < group {
                order.select_nth_unstable_by_key(kept_of_group - 1, key);
            }
            for &i in &order[..kept_of_group] {
                let at = first + i as usize;
                elements[place(at / dim, at % dim)] = Some(bits[i as usize]);
            }
        }
        let layout = Layout::new(g, kept * g.page_tokens);
        page[..layout.bytes].fill(0);
        let mut n = 0;
        for (step, elements) in elements.chunks_exact(STEP).enumerate() {
            if step.is_multiple_of(UNIT / STEP) {
                put(page, step / (UNIT / STEP) * 2, &(n as u16).to_le_bytes());
            }
            let mut bitmap = 0_u32;
            for (i, bits) in elements.iter().enumerate() {
                if let Some(bits) = bits {
                    bitmap |= 1 << i;
                    put(page, layout.values + 2 * n, &bits.to_le_bytes());
                    n += 1;
                }
            }
            put(page, layout.bitmaps + 4 * step, &bitmap.to_le_bytes());
        }
    }

    /// The element with this index of a page.
    fn element(page: &[u8], layout: Layout, at: usize) -> f32 {
        let bitmap = |step: usize| {
            let at = layout.bitmaps + 4 * step;
            u32::from_le_bytes(page[at..at + 4].try_into().unwrap_or_default())
        };
        let (step, bit) = (at / STEP, at % STEP);
        let map = bitmap(step);
        if map >> bit & 1 == 0 {
            return 0.0;
        }
        let unit = at / UNIT;
        let start = usize::from(u16::from_le_bytes([page[2 * unit], page[2 * unit + 1]]));
        let before: u32 = (unit * UNIT / STEP..step).map(|s| bitmap(s).count_ones()).sum();
        let n = start + (before + (map & ((1 << bit) - 1)).count_ones()) as usize;
        let at = layout.values + 2 * n;
        bf16::from_bits(u16::from_le_bytes([page[at], page[at + 1]])).to_f32()
    }
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
        self.pack(g, self.k, rows, page, |t, d| k_place(g, t, d));
    }

    fn pack_v(&self, g: PageGeometry, rows: &[f32], page: &mut [u8]) {
        self.pack(g, self.v, rows, page, |t, d| v_place(g, t, d));
    }

    fn read_k(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        let layout = Layout::new(g, 0);
        row[..g.head_dim]
            .iter_mut()
            .enumerate()
            .for_each(|(d, x)| *x = Self::element(page, layout, k_place(g, slot, d)));
    }

    fn read_v(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]) {
        let layout = Layout::new(g, 0);
        row[..g.head_dim]
            .iter_mut()
            .enumerate()
            .for_each(|(d, x)| *x = Self::element(page, layout, v_place(g, slot, d)));
    }
}
