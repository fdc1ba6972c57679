//! The order of dropped tokens by what their keys have in common (ours): locality-sensitive hashing with random hyperplanes (Charikar
//! 2002). Tokens on the same side of all hyperplanes through the mean of the keys come together, and any query gives
//! similar scores to them.
//!
//! ```text
//! code[t] = bits b of  sign[b] . (k[t] - mean k) > 0          sign[b]: a vector of random +-1
//! order   = by code, then by attention, highest first, then by position
//! ```
//! A page of tokens has the mean of their keys, summed over KV heads.

use crate::policy::{LayerView, mix};
use std::ops::Range;

/// Hyperplanes.
const BITS: usize = 6;

/// A key's products with the hyperplanes' vectors.
type Products = [f32; BITS];

/// `dropped` in that order, given the attention of all tokens of the head.
pub(super) fn sorted(view: &LayerView<'_>, kv_head: usize, dropped: &[u32], attention: &[f32]) -> Vec<u32> {
    let products = products(view, kv_head);
    sorted_by_code(dropped, |i| products[i as usize], |i| attention[i as usize])
}

/// Dropped `pages` (runs of tokens that all KV heads hold) in that order, given the attention of a page.
pub(super) fn sorted_pages(
    view: &LayerView<'_>,
    pages: &[Range<usize>],
    dropped: &[u32],
    attention: impl Fn(u32) -> f32,
) -> Vec<u32> {
    let mut sums = vec![[0.0; BITS]; pages.len()];
    for head in 0..view.n_kv_heads() {
        let products = products(view, head);
        for (sum, page) in sums.iter_mut().zip(pages) {
            for product in &products[page.clone()] {
                sum.iter_mut().zip(product).for_each(|(sum, x)| *sum += x / page.len() as f32);
            }
        }
    }
    sorted_by_code(dropped, |page| sums[page as usize], attention)
}

fn sorted_by_code(
    items: &[u32],
    products: impl Fn(u32) -> Products,
    attention: impl Fn(u32) -> f32,
) -> Vec<u32> {
    let mut mean = [0.0_f32; BITS];
    for &i in items {
        mean.iter_mut().zip(products(i)).for_each(|(mean, x)| *mean += x / items.len() as f32);
    }
    let code = |i: u32| -> u32 {
        products(i).iter().zip(&mean).enumerate().map(|(b, (x, mean))| u32::from(x > mean) << b).sum()
    };
    // Whole numbers are sorted faster: the code above the attention, of which more comes first.
    let descending = |x: f32| {
        let bits = x.to_bits();
        !(if bits >> 31 == 0 { bits | 1 << 31 } else { !bits })
    };
    let key = |i: u32| u64::from(code(i)) << 32 | u64::from(descending(attention(i)));
    let mut keys: Vec<(u64, u32)> = items.iter().map(|&i| (key(i), i)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|(_, i)| i).collect()
}

/// Those of all tokens of a KV head.
fn products(view: &LayerView<'_>, kv_head: usize) -> Vec<Products> {
    let (dim, n) = (view.head_dim(), view.n_tokens(kv_head));
    let side = |i: usize| if mix(view.seed(0) ^ i as u64) & 1 == 1 { 1.0 } else { -1.0 };
    let mut keys = vec![[0.0; 16]; dim];
    let planes: Vec<[f32; BITS]> = (0..dim).map(|d| std::array::from_fn(|b| side(d * 8 + b))).collect();
    let mut products = Vec::with_capacity(n.next_multiple_of(16));
    for tile in 0..n.div_ceil(16) {
        view.read_key_tile(kv_head, tile, &mut keys);
        for half in 0..2 {
            // Eight tokens at a time, so that all sums stay in registers.
            let mut sums = [[0.0_f32; 8]; BITS];
            for (key, plane) in keys.iter().zip(&planes) {
                let key: [f32; 8] = std::array::from_fn(|t| key[8 * half + t]);
                for (sums, side) in sums.iter_mut().zip(plane) {
                    sums.iter_mut().zip(key).for_each(|(sum, k)| *sum += k * side);
                }
            }
            products.extend((0..8).map(|t| -> Products { std::array::from_fn(|b| sums[b][t]) }));
        }
    }
    products.truncate(n);
    products
}
