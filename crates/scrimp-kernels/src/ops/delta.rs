//! The gated delta rule: linear attention with a state of fixed size for each head.
//!
//! ```text
//! q, k, v  = silu(causal convolution of the projections)       q, k scaled to length 1, q divided by sqrt(key_dim)
//! decay    = exp(-exp(A_log) softplus(alpha + dt_bias))        beta = sigmoid(b)
//! delta    = beta (v - decay S^T k)                            S: [key_dim][value_dim] of each value head
//! o        = (decay S + k delta^T)^T q                         computed as  decay S^T q + (q . k) delta
//! S        = decay S + k delta^T
//! out      = o / sqrt(mean(o^2) + eps) * w * silu(z)
//!
//! state of a key head:  its value heads' S as panels [value_dim / 16][key_dim][16] | last inputs of q, k and v's convolution
//! ```
//! A task has one key head of one sequence and its value heads. A panel stays in the first-level cache for [`BLOCK`]
//! tokens. The update by a token and the products with the next one share each load, so a token loads and stores each
//! element of the state once.
//!
//! Equality: a token's operations and their order do not depend on the tokens beside it, so the division of a text into
//! chunks, the level and the number of threads change no bit. All numbers are f32.
//!
//! Limit: a decode step reads and writes the state (64 KiB for a head of 128 x 128); longer chunks take `8 key_dim` operations
//! per element of `v`.
//!
//! Source: Yang et al. 2024, "Gated Delta Networks" (arXiv 2412.06464), section 3; the convolution and the output gate are
//! those of Qwen3-Next.

use super::state_chunk::{StateChunk, check_chunks, each_head};
use crate::{
    arch::{Kernel, Level, Simd},
    exec::{DisjointSliceMut, Exec},
};
use std::ops::Range;

/// Tokens that pass a panel of the state together.
const BLOCK: usize = 64;
/// Added to the squared length of queries and keys.
const LENGTH_EPS: f32 = 1e-6;

/// The shape of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaShape {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Elements of a query or key, a multiple of 16.
    pub key_dim: usize,
    /// Elements of a value, a multiple of 16.
    pub value_dim: usize,
    /// Tokens that the convolution sees, at least 1.
    pub kernel: usize,
    /// Value head `v` reads key head `v % key_heads` (GGUF); otherwise `v / (value_heads / key_heads)`.
    pub tiled: bool,
}

impl DeltaShape {
    /// Elements of all queries, or of all keys, of a token.
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Elements of all values of a token.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Elements of the state of a sequence. It begins with zeros.
    pub fn state_len(&self) -> usize {
        self.key_heads * self.head_state_len()
    }

    fn group(&self) -> usize {
        self.value_heads / self.key_heads
    }

    fn head_state_len(&self) -> usize {
        let history = (self.kernel - 1) * (2 * self.key_dim + self.group() * self.value_dim);
        self.group() * self.key_dim * self.value_dim + history
    }

    fn value_head(&self, key_head: usize, member: usize) -> usize {
        if self.tiled { member * self.key_heads + key_head } else { key_head * self.group() + member }
    }
}

/// The weights of a layer beside its projections.
#[derive(Debug, Clone)]
pub struct DeltaWeights {
    /// Convolution of queries, `[kernel][key_heads * key_dim]`; the last row belongs to the newest token.
    pub conv_q: Vec<f32>,
    /// Convolution of keys, as `conv_q`.
    pub conv_k: Vec<f32>,
    /// Convolution of values, `[kernel][value_heads * value_dim]`.
    pub conv_v: Vec<f32>,
    /// `-exp(A_log)`, one per value head.
    pub decay: Vec<f32>,
    /// Added to alpha, one per value head.
    pub dt_bias: Vec<f32>,
    /// Of the norm of a value head's output, `[value_dim]`.
    pub norm: Vec<f32>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// The projections of all tokens, one row per token.
#[derive(Debug, Clone, Copy)]
pub struct DeltaInputs<'a> {
    /// `[tokens][key_heads * key_dim]`
    pub q: &'a [f32],
    /// `[tokens][key_heads * key_dim]`
    pub k: &'a [f32],
    /// `[tokens][value_heads * value_dim]`
    pub v: &'a [f32],
    /// The gate of the output, `[tokens][value_heads * value_dim]`.
    pub z: &'a [f32],
    /// `[tokens][value_heads]`
    pub beta: &'a [f32],
    /// `[tokens][value_heads]`
    pub alpha: &'a [f32],
}

/// Writes the outputs of the tokens of all chunks, `[tokens][value_heads * value_dim]`, and updates the states.
///
/// # Panics
/// When sizes do not fit each other, or rows of chunks overlap.
pub fn gated_delta(
    exec: Exec<'_>,
    shape: DeltaShape,
    weights: &DeltaWeights,
    inputs: DeltaInputs<'_>,
    chunks: &mut [StateChunk<'_>],
    out: &mut [f32],
) {
    check(shape, weights, inputs, chunks, out.len());
    let out = DisjointSliceMut::new(out);
    each_head(exec.pool, chunks, shape.head_state_len(), |rows, key_head, state| {
        exec.level.run(&mut Head { shape, weights, inputs, rows, key_head, state, out: &out });
    });
}

fn check(shape: DeltaShape, w: &DeltaWeights, x: DeltaInputs<'_>, chunks: &[StateChunk<'_>], out: usize) {
    let DeltaShape { key_heads, value_heads, key_dim, value_dim, kernel, .. } = shape;
    assert!(key_heads > 0 && value_heads.is_multiple_of(key_heads) && kernel > 0, "shape of the heads");
    assert!(key_dim.is_multiple_of(16) && value_dim.is_multiple_of(16) && key_dim > 0, "sizes of the heads");
    let (keys, values) = (shape.keys(), shape.values());
    assert!(w.conv_q.len() == kernel * keys && w.conv_k.len() == kernel * keys, "convolution of keys");
    assert!(w.conv_v.len() == kernel * values && w.norm.len() == value_dim, "convolution of values, norm");
    assert!(w.decay.len() == value_heads && w.dt_bias.len() == value_heads, "decays");
    let rows = check_chunks(chunks, shape.state_len());
    assert!(x.q.len().min(x.k.len()) >= rows * keys && x.v.len().min(x.z.len()) >= rows * values, "inputs");
    assert!(x.beta.len().min(x.alpha.len()) >= rows * value_heads && out >= rows * values, "inputs, outputs");
}

/// A key head of a chunk, with its value heads.
struct Head<'a> {
    shape: DeltaShape,
    weights: &'a DeltaWeights,
    inputs: DeltaInputs<'a>,
    rows: Range<usize>,
    key_head: usize,
    state: &'a mut [f32],
    out: &'a DisjointSliceMut<'a, f32>,
}

/// The convolution of one head's columns.
#[derive(Clone, Copy)]
struct Convolution<'a> {
    /// The inputs of all tokens, and the columns of a token.
    x: &'a [f32],
    stride: usize,
    /// The first column of the head, and their number.
    column: usize,
    width: usize,
    /// `[kernel][stride]`
    weight: &'a [f32],
    kernel: usize,
    /// The first row of the chunk.
    start: usize,
}

impl Convolution<'_> {
    /// The inputs of token `i - kernel + 1` of the chunk: `history` holds those of the last tokens before it.
    #[inline(always)]
    fn input<'b>(&'b self, history: &'b [f32], i: usize) -> &'b [f32] {
        match i.checked_sub(self.kernel - 1) {
            Some(token) => {
                let at = (self.start + token) * self.stride + self.column;
                &self.x[at..at + self.width]
            }
            None => &history[i * self.width..(i + 1) * self.width],
        }
    }

    /// `silu` of the convolution at token `token` of the chunk.
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, history: &[f32], token: usize, out: &mut [f32]) {
        for (vector, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let mut sum = s.splat(0.0);
            for tap in 0..self.kernel {
                let x = &self.input(history, token + tap).as_chunks::<16>().0[vector];
                let at = tap * self.stride + self.column + 16 * vector;
                let w: &[f32; 16] = self.weight[at..at + 16].try_into().expect("16 weights");
                sum = s.fma(s.load(w), s.load(x), sum);
            }
            s.store(s.silu(sum), out);
        }
    }

    /// The convolution of the values of value head `head` instead.
    #[inline(always)]
    fn of_values<'b>(
        &self,
        shape: DeltaShape,
        x: &'b [f32],
        weight: &'b [f32],
        head: usize,
    ) -> Convolution<'b> {
        let (stride, width) = (shape.values(), shape.value_dim);
        Convolution { x, stride, column: head * width, width, weight, kernel: self.kernel, start: self.start }
    }

    /// Replaces `history` by the inputs of the last tokens of a chunk of `n`.
    fn remember(&self, history: &mut [f32], n: usize) {
        for i in 0..self.kernel - 1 {
            // Rows only move towards the front.
            if n + i < self.kernel - 1 {
                history.copy_within((n + i) * self.width..(n + i + 1) * self.width, i * self.width);
            } else {
                let at = (self.start + n + i + 1 - self.kernel) * self.stride + self.column;
                history[i * self.width..(i + 1) * self.width].copy_from_slice(&self.x[at..at + self.width]);
            }
        }
    }
}

/// The numbers of the tokens of a block.
struct Block {
    /// `[tokens][key_dim]`
    q: Vec<f32>,
    /// `[tokens][key_dim]`
    k: Vec<f32>,
    /// `q . k` of each token.
    qk: Vec<f32>,
    /// Values of a value head, and then its outputs, `[tokens][value_dim]`.
    v: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
}

impl Kernel for &mut Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Head { shape, weights: w, inputs, rows, key_head, state, .. } = self;
        let DeltaShape { key_dim, value_dim, kernel, .. } = *shape;
        let (group, n, taps) = (shape.group(), rows.len(), kernel - 1);
        let (matrices, history) = state.split_at_mut(group * key_dim * value_dim);
        let (history_q, history) = history.split_at_mut(taps * key_dim);
        let (history_k, history_v) = history.split_at_mut(taps * key_dim);
        let conv_q = Convolution {
            x: inputs.q,
            stride: shape.keys(),
            column: *key_head * key_dim,
            width: key_dim,
            weight: &w.conv_q,
            kernel,
            start: rows.start,
        };
        let conv_k = Convolution { x: inputs.k, weight: &w.conv_k, ..conv_q };
        let size = BLOCK.min(n);
        let mut block = Block {
            q: vec![0.0; size * key_dim],
            k: vec![0.0; size * key_dim],
            qk: vec![0.0; size],
            v: vec![0.0; size * value_dim],
            decay: vec![0.0; size],
            beta: vec![0.0; size],
        };
        for first in (0..n).step_by(BLOCK) {
            let tokens = first..n.min(first + BLOCK);
            block.keys(s, [(&conv_q, &*history_q), (&conv_k, &*history_k)], tokens.clone());
            for member in 0..group {
                let head = shape.value_head(*key_head, member);
                let history = &history_v[member * taps * value_dim..(member + 1) * taps * value_dim];
                let conv_v = conv_q.of_values(*shape, inputs.v, &w.conv_v, head);
                block.values(s, (&conv_v, history), w, *inputs, head, tokens.clone());
                let state = &mut matrices[member * key_dim * value_dim..(member + 1) * key_dim * value_dim];
                for (panel, state) in state.chunks_exact_mut(16 * key_dim).enumerate() {
                    block.panel(s, state.as_chunks_mut::<16>().0, 16 * panel, tokens.len());
                }
                for (t, o) in block.v.chunks_exact(value_dim).take(tokens.len()).enumerate() {
                    let at = (rows.start + first + t) * shape.values() + head * value_dim;
                    // SAFETY: `check` found that rows of chunks do not overlap, and one task has this head of its rows.
                    let out = unsafe { self.out.slice(at..at + value_dim) };
                    norm_and_gate(s, w, o, &inputs.z[at..at + value_dim], out);
                }
            }
        }
        conv_q.remember(history_q, n);
        conv_k.remember(history_k, n);
        for member in 0..group {
            let head = shape.value_head(*key_head, member);
            let history = &mut history_v[member * taps * value_dim..(member + 1) * taps * value_dim];
            conv_q.of_values(*shape, inputs.v, &w.conv_v, head).remember(history, n);
        }
    }
}

impl Block {
    /// Computes the queries and keys of `tokens` of the chunk.
    #[inline(always)]
    fn keys<S: Simd>(&mut self, s: S, [q, k]: [(&Convolution<'_>, &[f32]); 2], tokens: Range<usize>) {
        let dim = q.0.width;
        let scale = 1.0 / (dim as f32).sqrt();
        let rows = self.q.chunks_exact_mut(dim).zip(self.k.chunks_exact_mut(dim)).zip(&mut self.qk);
        for (token, ((to_q, to_k), qk)) in tokens.zip(rows) {
            q.0.apply(s, q.1, token, to_q);
            k.0.apply(s, k.1, token, to_k);
            to_length(s, to_q, scale);
            to_length(s, to_k, 1.0);
            *qk = dot(s, to_q, to_k);
        }
    }

    /// Computes the values, decays and betas of value head `head` for `tokens` of the chunk.
    #[inline(always)]
    fn values<S: Simd>(
        &mut self,
        s: S,
        (conv, history): (&Convolution<'_>, &[f32]),
        w: &DeltaWeights,
        inputs: DeltaInputs<'_>,
        head: usize,
        tokens: Range<usize>,
    ) {
        let heads = w.decay.len();
        let scalars = self.decay.iter_mut().zip(&mut self.beta);
        for (token, (to, (decay, beta))) in tokens.zip(self.v.chunks_exact_mut(conv.width).zip(scalars)) {
            conv.apply(s, history, token, to);
            let at = (conv.start + token) * heads + head;
            let x = inputs.alpha[at] + w.dt_bias[head];
            let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
            *decay = (w.decay[head] * softplus).exp();
            *beta = 1.0 / (1.0 + (-inputs.beta[at]).exp());
        }
    }

    /// Passes `tokens` tokens through 16 columns of the state, which are the columns from `column` on of `v`: values
    /// before, outputs afterwards.
    #[inline(always)]
    fn panel<S: Simd>(&mut self, s: S, state: &mut [[f32; 16]], column: usize, tokens: usize) {
        let dim = state.len();
        let value_dim = self.v.len() / self.qk.len();
        let (mut of_k, mut of_q) = products(s, state, &self.k[..dim], &self.q[..dim]);
        for t in 0..tokens {
            let at = t * value_dim + column;
            let value: &mut [f32; 16] = (&mut self.v[at..at + 16]).try_into().expect("16 columns");
            let decay = s.splat(self.decay[t]);
            let error = s.sub(s.load(value), s.mul(decay, of_k));
            let delta = s.mul(s.splat(self.beta[t]), error);
            s.store(s.fma(s.splat(self.qk[t]), delta, s.mul(decay, of_q)), value);
            let k = &self.k[t * dim..(t + 1) * dim];
            if t + 1 < tokens {
                let next = (t + 1) * dim..(t + 2) * dim;
                let next = (&self.k[next.clone()], &self.q[next]);
                (of_k, of_q) = update_and_products(s, state, k, (decay, delta), next);
            } else {
                update(s, state, k, (decay, delta));
            }
        }
    }
}

/// `S^T k` and `S^T q`: the sums of even and of odd rows, added.
#[inline(always)]
fn products<S: Simd>(s: S, state: &[[f32; 16]], k: &[f32], q: &[f32]) -> (S::F, S::F) {
    let zero = s.splat(0.0);
    let (mut of_k, mut of_q) = ([zero; 2], [zero; 2]);
    let factors = k.as_chunks::<2>().0.iter().zip(q.as_chunks::<2>().0);
    for (rows, (k, q)) in state.as_chunks::<2>().0.iter().zip(factors) {
        for i in 0..2 {
            let row = s.load(&rows[i]);
            of_k[i] = s.fma(row, s.splat(k[i]), of_k[i]);
            of_q[i] = s.fma(row, s.splat(q[i]), of_q[i]);
        }
    }
    (s.add(of_k[0], of_k[1]), s.add(of_q[0], of_q[1]))
}

/// `S = decay S + k delta^T`.
#[inline(always)]
fn update<S: Simd>(s: S, state: &mut [[f32; 16]], k: &[f32], (decay, delta): (S::F, S::F)) {
    for (row, &k) in state.iter_mut().zip(k) {
        s.store(s.fma(s.splat(k), delta, s.mul(decay, s.load(row))), row);
    }
}

/// [`update`], and then [`products`] with the next token's key and query: the same operations in the same order.
#[inline(always)]
fn update_and_products<S: Simd>(
    s: S,
    state: &mut [[f32; 16]],
    k: &[f32],
    (decay, delta): (S::F, S::F),
    (next_k, next_q): (&[f32], &[f32]),
) -> (S::F, S::F) {
    let zero = s.splat(0.0);
    let (mut of_k, mut of_q) = ([zero; 2], [zero; 2]);
    let next = next_k.as_chunks::<2>().0.iter().zip(next_q.as_chunks::<2>().0);
    let rows = state.as_chunks_mut::<2>().0.iter_mut().zip(k.as_chunks::<2>().0);
    for ((rows, k), (next_k, next_q)) in rows.zip(next) {
        for i in 0..2 {
            let row = s.fma(s.splat(k[i]), delta, s.mul(decay, s.load(&rows[i])));
            s.store(row, &mut rows[i]);
            of_k[i] = s.fma(row, s.splat(next_k[i]), of_k[i]);
            of_q[i] = s.fma(row, s.splat(next_q[i]), of_q[i]);
        }
    }
    (s.add(of_k[0], of_k[1]), s.add(of_q[0], of_q[1]))
}

/// `a . b`, of lengths that are multiples of 16.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        sum = s.fma(s.load(a), s.load(b), sum);
    }
    s.reduce_add(sum)
}

/// `x = scale * x / |x|`.
#[inline(always)]
fn to_length<S: Simd>(s: S, x: &mut [f32], scale: f32) {
    let factor = s.splat(scale / (dot(s, x, x) + LENGTH_EPS).sqrt());
    for x in x.as_chunks_mut::<16>().0 {
        s.store(s.mul(s.load(x), factor), x);
    }
}

/// `out = o / sqrt(mean(o^2) + eps) * w * silu(z)`.
#[inline(always)]
fn norm_and_gate<S: Simd>(s: S, w: &DeltaWeights, o: &[f32], z: &[f32], out: &mut [f32]) {
    let factor = s.splat(1.0 / (dot(s, o, o) / o.len() as f32 + w.eps).sqrt());
    let rows = o.as_chunks::<16>().0.iter().zip(z.as_chunks::<16>().0).zip(w.norm.as_chunks::<16>().0);
    for (((o, z), w), out) in rows.zip(out.as_chunks_mut::<16>().0) {
        let normed = s.mul(s.mul(s.load(o), factor), s.load(w));
        s.store(s.mul(normed, s.silu(s.load(z))), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arch::SimdLevel, exec::Pool};
    use scrimp_testkit::numbers;

    const SHAPES: [DeltaShape; 3] = [
        DeltaShape { key_heads: 3, value_heads: 6, key_dim: 32, value_dim: 16, kernel: 4, tiled: false },
        DeltaShape { key_heads: 3, value_heads: 6, key_dim: 16, value_dim: 48, kernel: 3, tiled: true },
        DeltaShape { key_heads: 2, value_heads: 2, key_dim: 128, value_dim: 128, kernel: 1, tiled: false },
    ];

    struct Case {
        shape: DeltaShape,
        weights: DeltaWeights,
        rows: [Vec<f32>; 6],
    }

    impl Case {
        fn new(shape: DeltaShape, n: usize) -> Self {
            let (keys, values, heads) = (shape.keys(), shape.values(), shape.value_heads);
            let weights = DeltaWeights {
                conv_q: numbers(1, shape.kernel * keys),
                conv_k: numbers(2, shape.kernel * keys),
                conv_v: numbers(3, shape.kernel * values),
                decay: numbers(4, heads).iter().map(|x| -0.2 - 0.1 * x).collect(),
                dt_bias: numbers(5, heads),
                norm: numbers(6, shape.value_dim),
                eps: 1e-6,
            };
            let widths = [keys, keys, values, values, heads, heads];
            let rows = std::array::from_fn(|i| numbers(7 + i as u64, n * widths[i]));
            Self { shape, weights, rows }
        }

        fn inputs(&self) -> DeltaInputs<'_> {
            let [q, k, v, z, beta, alpha] = &self.rows;
            DeltaInputs { q, k, v, z, beta, alpha }
        }

        /// Outputs and the state of a sequence of `n` tokens, in chunks of these lengths.
        fn run(&self, level: SimdLevel, threads: usize, chunks: &[usize]) -> (Vec<f32>, Vec<f32>) {
            let pool = Pool::new(threads).unwrap();
            let n = self.rows[4].len() / self.shape.value_heads;
            let (mut out, mut state) =
                (vec![0.0; n * self.shape.values()], vec![0.0; self.shape.state_len()]);
            let mut at = 0;
            for &len in chunks.iter().cycle() {
                let rows = at..n.min(at + len);
                let mut chunk = [StateChunk { rows: rows.clone(), state: &mut state }];
                let exec = Exec { pool: &pool, level };
                gated_delta(exec, self.shape, &self.weights, self.inputs(), &mut chunk, &mut out);
                at = rows.end;
                if at == n {
                    break;
                }
            }
            (out, state)
        }

        /// Outputs by the definition, in f64.
        fn expected(&self, n: usize) -> Vec<f64> {
            let (c, w) = (self.shape, &self.weights);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let conv = |x: &[f32], weight: &[f32], stride: usize, t: usize, column: usize| {
                let taps = (0..c.kernel).filter(|tap| t + tap + 1 >= c.kernel);
                silu(
                    taps.map(|tap| {
                        let x = x[(t + tap + 1 - c.kernel) * stride + column];
                        f64::from(x) * f64::from(weight[tap * stride + column])
                    })
                    .sum(),
                )
            };
            let mut out = vec![0.0; n * c.values()];
            for head in 0..c.value_heads {
                let of_key = |key: usize| (0..2).any(|m| m < c.group() && c.value_head(key, m) == head);
                let key_head = (0..c.key_heads).find(|&key| of_key(key)).unwrap();
                let mut state = vec![vec![0.0; c.value_dim]; c.key_dim];
                for t in 0..n {
                    let vector = |x: &[f32], weight: &[f32]| {
                        let x: Vec<f64> = (0..c.key_dim)
                            .map(|i| conv(x, weight, c.keys(), t, key_head * c.key_dim + i))
                            .collect();
                        let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                        x.iter().map(|x| x / length).collect::<Vec<f64>>()
                    };
                    let (q, k) = (vector(&self.rows[0], &w.conv_q), vector(&self.rows[1], &w.conv_k));
                    let at = t * c.value_heads + head;
                    let x = f64::from(self.rows[5][at]) + f64::from(w.dt_bias[head]);
                    let decay = (f64::from(w.decay[head]) * x.exp().ln_1p()).exp();
                    let beta = 1.0 / (1.0 + (-f64::from(self.rows[4][at])).exp());
                    let mut o = vec![0.0; c.value_dim];
                    for (j, o) in o.iter_mut().enumerate() {
                        let column = head * c.value_dim + j;
                        let v = conv(&self.rows[2], &w.conv_v, c.values(), t, column);
                        let seen: f64 = (0..c.key_dim).map(|i| decay * state[i][j] * k[i]).sum();
                        for i in 0..c.key_dim {
                            state[i][j] = decay * state[i][j] + k[i] * beta * (v - seen);
                            *o += state[i][j] * q[i] / (c.key_dim as f64).sqrt();
                        }
                    }
                    let mean = o.iter().map(|o| o * o).sum::<f64>() / c.value_dim as f64;
                    for (j, o) in o.iter().enumerate() {
                        let column = t * c.values() + head * c.value_dim + j;
                        let gate = silu(f64::from(self.rows[3][column]));
                        out[column] = o / (mean + 1e-6).sqrt() * f64::from(w.norm[j]) * gate;
                    }
                }
            }
            out
        }
    }

    #[test]
    fn outputs_are_those_of_the_definition() {
        for shape in SHAPES {
            let n = 70;
            let case = Case::new(shape, n);
            let (out, _) = case.run(SimdLevel::SCALAR, 1, &[n]);
            for (i, (got, want)) in out.iter().zip(case.expected(n)).enumerate() {
                assert!((f64::from(*got) - want).abs() < 1e-4, "{shape:?} {i}: {got} {want}");
            }
        }
    }

    #[test]
    fn chunks_levels_and_threads_change_no_bit() {
        for shape in SHAPES {
            let n = 150;
            let case = Case::new(shape, n);
            let expected = case.run(SimdLevel::SCALAR, 1, &[n]);
            for level in SimdLevel::supported() {
                for chunks in [&[n][..], &[1], &[64], &[2, 1, 65, 3]] {
                    assert!(case.run(level, 2, chunks) == expected, "{shape:?} {level} {chunks:?}");
                }
            }
        }
    }

    #[test]
    fn sequences_have_the_bits_that_they_have_alone() {
        let shape = SHAPES[0];
        let (n, pool) = (30, Pool::new(2).unwrap());
        let case = Case::new(shape, n);
        let (mut out, mut states) = (vec![0.0; n * shape.values()], vec![vec![0.0; shape.state_len()]; 3]);
        let [first, second, third] = &mut states[..] else { unreachable!() };
        let mut chunks = [
            StateChunk { rows: 0..10, state: first },
            StateChunk { rows: 10..11, state: second },
            StateChunk { rows: 11..n, state: third },
        ];
        let exec = Exec { pool: &pool, level: SimdLevel::SCALAR };
        gated_delta(exec, shape, &case.weights, case.inputs(), &mut chunks, &mut out);
        let widths = [shape.keys(), shape.keys(), shape.values(), shape.values(), 6, 6];
        for (rows, state) in [0..10, 10..11, 11..n].into_iter().zip(&states) {
            let part = |i: usize| case.rows[i][rows.start * widths[i]..rows.end * widths[i]].to_vec();
            let alone = Case { shape, weights: case.weights.clone(), rows: std::array::from_fn(part) };
            let (expected, expected_state) = alone.run(SimdLevel::SCALAR, 1, &[n]);
            assert_eq!(out[rows.start * shape.values()..rows.end * shape.values()], expected);
            assert_eq!(*state, expected_state);
        }
    }
}
