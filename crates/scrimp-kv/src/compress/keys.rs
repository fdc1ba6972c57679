//! The order of dropped tokens by what their keys have in common (ours): locality-sensitive hashing with random hyperplanes (Charikar
//! 2002). Tokens on the same side of all hyperplanes through the mean of the keys come together, and any query gives
//! similar scores to them.
//!
//! ```text
//! code[t] = bits b of  sign[b] . (k[t] - mean k) > 0          sign[b]: a vector of random +-1
//! order   = by code, then by attention, highest first, then by position
//! ```

use crate::policy::{LayerView, mix};

/// Hyperplanes.
const BITS: usize = 6;

/// `dropped` in that order, given the attention of all tokens of the head.
pub(super) fn sorted(view: &LayerView<'_>, kv_head: usize, dropped: &[u32], attention: &[f32]) -> Vec<u32> {
    let dim = view.head_dim();
    // `[dim][BITS]`, so that all products of a key's element are one vector operation.
    let side = |i: usize| if mix(view.seed(0) ^ i as u64) & 1 == 1 { 1.0 } else { -1.0 };
    let planes: Vec<[f32; 8]> =
        (0..dim).map(|d| std::array::from_fn(|b| if b < BITS { side(d * 8 + b) } else { 0.0 })).collect();
    let mut key = vec![0.0; dim];
    let mut mean = [0.0_f32; 8];
    let mut products: Vec<[f32; 8]> = Vec::with_capacity(dropped.len());
    for &i in dropped {
        view.read_key(kv_head, i as usize, &mut key);
        let mut product = [0.0; 8];
        for (k, plane) in key.iter().zip(&planes) {
            product.iter_mut().zip(plane).for_each(|(sum, side)| *sum += k * side);
        }
        mean.iter_mut().zip(&product).for_each(|(mean, x)| *mean += x / dropped.len() as f32);
        products.push(product);
    }
    let code = |product: &[f32; 8]| -> u32 { (0..BITS).map(|b| u32::from(product[b] > mean[b]) << b).sum() };
    let mut codes: Vec<(u32, u32)> = products.iter().zip(dropped).map(|(p, &i)| (code(p), i)).collect();
    codes.sort_unstable_by(|&(c, x), &(d, y)| {
        c.cmp(&d).then_with(|| attention[y as usize].total_cmp(&attention[x as usize])).then(x.cmp(&y))
    });
    codes.into_iter().map(|(_, i)| i).collect()
}
