//! The order by keys (scrimp): locality-sensitive hashing with random hyperplanes (Charikar 2002).
//!
//! Tokens on the same side of all hyperplanes through the mean of the dropped keys come together. A query gives
//! similar scores to them, so one representative estimates their attention well. This order has the least error of
//! those measured.
//!
//! ```text
//! code[t] = bits b of  sign[b] . (k[t] - mean k) > 0          sign[b]: a vector of random +-1
//! order   = by code, then by attention (highest first), then by position
//! ```
//! The key of a page is the mean of its tokens' keys, summed over KV heads.

use super::order::{Dropped, Items, Order};
use crate::policy::{LayerView, Needs, Policy, position_weight};
use scrimp_base::random::mix;
use std::ops::Range;

/// Hyperplanes.
const BITS: usize = 6;

/// The products of a key with the normal vectors of the hyperplanes.
type Products = [f32; BITS];

/// By the directions of keys, then by attention.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyOrder;

impl Order for KeyOrder {
    fn name(&self) -> &'static str {
        "keys"
    }

    fn about(&self) -> &'static str {
        "By the directions of their keys"
    }

    fn needs(&self, _policy: &dyn Policy) -> Needs {
        Needs { sum: true, recent: Some(position_weight::WINDOW), ..Needs::NONE }
    }

    fn sorted(&self, dropped: &Dropped<'_>) -> Vec<u32> {
        let products = match dropped.items {
            Items::Tokens { kv_head } => products(dropped.view, kv_head),
            Items::Pages(pages) => products_of_pages(dropped.view, pages),
        };
        sorted_by_code(dropped.indices, &products, dropped.attention)
    }
}

fn products_of_pages(view: &LayerView<'_>, pages: &[Range<usize>]) -> Vec<Products> {
    let mut sums = vec![[0.0; BITS]; pages.len()];
    for head in 0..view.n_kv_heads() {
        let products = products(view, head);
        for (sum, page) in sums.iter_mut().zip(pages) {
            for product in &products[page.clone()] {
                sum.iter_mut().zip(product).for_each(|(sum, x)| *sum += x / page.len() as f32);
            }
        }
    }
    sums
}

/// `items` in order; `products` and `attention` are indexed by item.
fn sorted_by_code(items: &[u32], products: &[Products], attention: &[f32]) -> Vec<u32> {
    let products = |i: u32| products[i as usize];
    let mut mean = [0.0_f32; BITS];
    for &i in items {
        mean.iter_mut().zip(products(i)).for_each(|(mean, x)| *mean += x / items.len() as f32);
    }
    let code = |i: u32| -> u32 {
        products(i).iter().zip(&mean).enumerate().map(|(b, (x, mean))| u32::from(x > mean) << b).sum()
    };
    // Sorting integers is faster: the code in the high half, the attention in the low half, inverted so that more
    // comes first.
    let descending = |x: f32| {
        let bits = x.to_bits();
        !(if bits >> 31 == 0 { bits | 1 << 31 } else { !bits })
    };
    let key = |i: u32| u64::from(code(i)) << 32 | u64::from(descending(attention[i as usize]));
    let mut keys: Vec<(u64, u32)> = items.iter().map(|&i| (key(i), i)).collect();
    keys.sort_unstable();
    keys.into_iter().map(|(_, i)| i).collect()
}

/// The products of all tokens of a KV head.
fn products(view: &LayerView<'_>, kv_head: usize) -> Vec<Products> {
    let (dim, n) = (view.head_dim(), view.n_tokens(kv_head));
    let side = |i: usize| if mix(view.seed(0) ^ i as u64) & 1 == 1 { 1.0 } else { -1.0 };
    let mut keys = vec![[0.0; 16]; dim];
    let planes: Vec<[f32; BITS]> = (0..dim).map(|d| std::array::from_fn(|b| side(d * 8 + b))).collect();
    let mut products = Vec::with_capacity(n.next_multiple_of(16));
    for tile in 0..n.div_ceil(16) {
        view.read_key_tile(kv_head, tile, &mut keys);
        for half in 0..2 {
            // Eight tokens at a time keep all sums in registers.
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
