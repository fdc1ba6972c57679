//! Attention of every token of a text to every other one, as encoders compute it.
//!
//! ```text
//! p[i][j] = exp(scale q[i] . k[j] - max)     for |i - j| < window, or all j
//! out[i]  = sum over j of p[i][j] v[j] / sum over j of p[i][j]
//! ```
//! Rows of queries, keys and values are `[tokens][heads * head_dim]`. A task has one head of one text: its keys are
//! transposed once, so that 16 keys are one vector; four queries share each load. All numbers are f32, and sums have a
//! fixed order: every level and number of threads gives the same bits.
//!
//! Limit: arithmetic. `4 n^2 head_dim` operations per head, 5% of a layer of MiniLM with 128 tokens.
//!
//! Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2; Devlin et al. 2018 (arXiv 1810.04805), section 3.

use crate::{
    arch::{Kernel, Level, Simd},
    exec::{DisjointSliceMut, Exec},
};
use std::ops::Range;

/// Queries that share each load of keys and values.
const QUERIES: usize = 4;

/// The shape of attention in an encoder.
#[derive(Debug, Clone, Copy)]
pub struct BidirectionalShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads, of which `n_heads` is a multiple.
    pub n_kv_heads: usize,
    /// Elements per head, a multiple of 16.
    pub head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// Tokens at this distance and further are invisible; `None`: all are visible.
    pub window: Option<usize>,
}

/// Queries, keys and values of all texts, one row per token.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'a> {
    /// `[tokens][n_heads * head_dim]`
    pub q: &'a [f32],
    /// `[tokens][n_kv_heads * head_dim]`
    pub k: &'a [f32],
    /// `[tokens][n_kv_heads * head_dim]`
    pub v: &'a [f32],
}

/// Writes the attention of the tokens of each text (a range of rows) to each other, `[tokens][n_heads * head_dim]`.
///
/// # Panics
/// When sizes do not fit each other, or `head_dim` is not a multiple of 16.
pub fn bidirectional(
    exec: Exec<'_>,
    shape: BidirectionalShape,
    texts: &[Range<usize>],
    qkv: Qkv<'_>,
    out: &mut [f32],
) {
    let BidirectionalShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    let rows = texts.iter().map(|text| text.end).max().unwrap_or(0);
    assert!(
        head_dim > 0 && head_dim.is_multiple_of(16) && n_heads.is_multiple_of(n_kv_heads),
        "shape of the heads"
    );
    assert!(qkv.q.len() >= rows * n_heads * head_dim && out.len() >= rows * n_heads * head_dim, "queries");
    assert!(qkv.k.len().min(qkv.v.len()) >= rows * n_kv_heads * head_dim, "keys and values");
    let out = DisjointSliceMut::new(out);
    exec.pool.run(texts.len() * n_heads, |task, _| {
        let (text, head) = (texts[task / n_heads].clone(), task % n_heads);
        exec.level.run(Head { shape, text, head, qkv, out: &out });
    });
}

/// One head of one text.
struct Head<'a> {
    shape: BidirectionalShape,
    text: Range<usize>,
    head: usize,
    qkv: Qkv<'a>,
    out: &'a DisjointSliceMut<'a, f32>,
}

impl Head<'_> {
    /// The elements of this head in row `row` of queries and outputs.
    fn at(&self, row: usize) -> Range<usize> {
        let d = self.shape.head_dim;
        let start = (row * self.shape.n_heads + self.head) * d;
        start..start + d
    }

    /// The elements of its key and value head.
    fn kv_at(&self, row: usize) -> Range<usize> {
        let BidirectionalShape { n_heads, n_kv_heads, head_dim: d, .. } = self.shape;
        let start = (row * n_kv_heads + self.head / (n_heads / n_kv_heads)) * d;
        start..start + d
    }

    /// The visible keys of query `i` of the text.
    fn visible(&self, i: usize) -> Range<usize> {
        match self.shape.window {
            Some(window) => (i + 1).saturating_sub(window)..(i + window).min(self.text.len()),
            None => 0..self.text.len(),
        }
    }
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let (n, d) = (self.text.len(), self.shape.head_dim);
        let padded = n.next_multiple_of(16);
        let mut keys = vec![0.0; d * padded];
        for (j, row) in self.text.clone().enumerate() {
            for (c, &k) in self.qkv.k[self.kv_at(row)].iter().enumerate() {
                keys[c * padded + j] = k;
            }
        }
        let mut p = vec![0.0; QUERIES * padded];
        for first in (0..n).step_by(QUERIES) {
            // The last queries are repeated, so that there are always as many.
            let mut queries = [0; QUERIES];
            for r in 0..QUERIES {
                queries[r] = (first + r).min(n - 1);
            }
            scores(s, &self, &keys, queries, &mut p);
            let mut sums = [0.0; QUERIES];
            for (r, p) in p.chunks_exact_mut(padded).enumerate() {
                sums[r] = softmax(s, self.shape.scale, self.visible(queries[r]), p);
            }
            values(s, &self, queries, &p, sums);
        }
    }
}

/// `q . k` of four queries and all keys.
#[inline(always)]
fn scores<S: Simd>(s: S, head: &Head<'_>, keys: &[f32], queries: [usize; QUERIES], p: &mut [f32]) {
    let padded = p.len() / QUERIES;
    let q = queries.map(|i| &head.qkv.q[head.at(head.text.start + i)]);
    for j in (0..padded).step_by(16) {
        let mut acc = [s.splat(0.0); QUERIES];
        for (c, keys) in keys.chunks_exact(padded).enumerate() {
            let keys = s.load(keys[j..j + 16].first_chunk().expect("16 keys"));
            for r in 0..QUERIES {
                acc[r] = s.fma(s.splat(q[r][c]), keys, acc[r]);
            }
        }
        for r in 0..QUERIES {
            let at = r * padded + j;
            s.store(acc[r], p[at..at + 16].first_chunk_mut().expect("16 scores"));
        }
    }
}

/// Replaces scores by `exp(scale score - max)`, 0 where a key is invisible, and returns their sum.
#[inline(always)]
fn softmax<S: Simd>(s: S, scale: f32, visible: Range<usize>, p: &mut [f32]) -> f32 {
    let largest = p[visible.clone()].iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    let (scale, largest) = (s.splat(scale), s.splat(largest));
    for x in p.as_chunks_mut::<16>().0 {
        let shifted = s.mul(s.sub(s.load(x), largest), scale);
        s.store(s.exp(shifted), x);
    }
    p[..visible.start].fill(0.0);
    p[visible.end..].fill(0.0);
    let mut sum = s.splat(0.0);
    for x in p.as_chunks::<16>().0 {
        sum = s.add(sum, s.load(x));
    }
    s.reduce_add(sum)
}

/// The weighted means of the values for four queries.
#[inline(always)]
fn values<S: Simd>(s: S, head: &Head<'_>, queries: [usize; QUERIES], p: &[f32], sums: [f32; QUERIES]) {
    let padded = p.len() / QUERIES;
    let visible = head.visible(queries[0]).start..head.visible(queries[QUERIES - 1]).end;
    for c in (0..head.shape.head_dim).step_by(16) {
        let mut acc = [s.splat(0.0); QUERIES];
        for j in visible.clone() {
            let at = head.kv_at(head.text.start + j).start + c;
            let v = s.load(head.qkv.v[at..at + 16].first_chunk().expect("16 values"));
            for r in 0..QUERIES {
                acc[r] = s.fma(s.splat(p[r * padded + j]), v, acc[r]);
            }
        }
        for r in 0..QUERIES {
            let at = head.at(head.text.start + queries[r]).start + c;
            // SAFETY: a task owns the elements of its head in the rows of its text; `slice` checks the bounds.
            let out = unsafe { head.out.slice(at..at + 16) };
            s.store(s.div(acc[r], s.splat(sums[r])), out.first_chunk_mut().expect("16 outputs"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SimdLevel, exec::Pool};
    use proptest::prelude::*;
    use scrimp_base::SplitMix64;

    fn reference(shape: BidirectionalShape, texts: &[Range<usize>], qkv: Qkv<'_>) -> Vec<f64> {
        let BidirectionalShape { n_heads, n_kv_heads, head_dim: d, scale, window } = shape;
        let mut out = vec![0.0; qkv.q.len()];
        for text in texts {
            for (i, head) in text.clone().flat_map(|i| (0..n_heads).map(move |head| (i, head))) {
                let q = &qkv.q[(i * n_heads + head) * d..][..d];
                let kv = head / (n_heads / n_kv_heads);
                let near = |j: &usize| window.is_none_or(|window| i.abs_diff(*j) < window);
                let dot = |j: usize| {
                    let k = &qkv.k[(j * n_kv_heads + kv) * d..][..d];
                    q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                        * f64::from(scale)
                };
                let visible: Vec<usize> = text.clone().filter(near).collect();
                let p: Vec<f64> = visible.iter().map(|&j| dot(j).exp()).collect();
                let sum: f64 = p.iter().sum();
                for (p, &j) in p.iter().zip(&visible) {
                    for c in 0..d {
                        out[(i * n_heads + head) * d + c] +=
                            p / sum * f64::from(qkv.v[(j * n_kv_heads + kv) * d + c]);
                    }
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn levels_agree_with_f64_and_each_other(
            first in 1usize..40, second in 1usize..40, kv in 1usize..3, group in 1usize..3, vectors in 1usize..4,
            window in proptest::option::of(1usize..50), seed: u64,
        ) {
            let shape = BidirectionalShape {
                n_heads: kv * group, n_kv_heads: kv, head_dim: 16 * vectors, scale: 0.25, window,
            };
            let texts = [0..first, first..first + second];
            let mut random = SplitMix64::new(seed);
            let mut rows = |width: usize| -> Vec<f32> {
                (0..(first + second) * width).map(|_| random.next_f32() * 4.0 - 2.0).collect()
            };
            let (q, k, v) = (rows(kv * group * shape.head_dim), rows(kv * shape.head_dim), rows(kv * shape.head_dim));
            let qkv = Qkv { q: &q, k: &k, v: &v };
            let want = reference(shape, &texts, qkv);
            let mut before: Option<Vec<f32>> = None;
            for level in SimdLevel::supported() {
                let pool = Pool::new(2).unwrap();
                let mut out = vec![f32::NAN; q.len()];
                bidirectional(Exec { pool: &pool, level }, shape, &texts, qkv, &mut out);
                for (got, want) in out.iter().zip(&want) {
                    prop_assert!((f64::from(*got) - want).abs() < 1e-5, "{} {} {}", level, got, want);
                }
                if let Some(before) = &before {
                    prop_assert_eq!(before, &out);
                }
                before = Some(out);
            }
        }
    }
}
