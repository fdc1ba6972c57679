//! The selective scan of Mamba-2: a state of fixed size for each head, whose decay depends on the token.
//!
//! ```text
//! dt    = softplus(dt + bias)                       decay = exp(-exp(A_log) dt)
//! S     = decay S + B (dt x)^T                      S: [state][head_dim] of each head
//! y     = S^T C + D x
//!
//! state of a head:  S as panels [head_dim / 16][state][16]
//! ```
//! A task has one head of one sequence. A panel stays in the first-level cache for all tokens of a chunk, and a token
//! loads and stores each element once.
//!
//! Equality: a token's operations and their order do not depend on the tokens beside it, so the division of a text into
//! chunks, the level and the number of threads change no bit. All numbers are f32.
//!
//! Limit: a decode step reads and writes the state (32 KiB for a head of 64 with a state of 128).
//!
//! Source: Dao and Gu 2024, "Transformers are SSMs" (arXiv 2405.21060), section 7, in its recurrent form.

use super::state_chunk::{StateChunk, check_chunks, each_head};
use crate::{
    arch::{Kernel, Level, Simd},
    exec::{DisjointSliceMut, Exec},
};
use std::ops::Range;

/// The shape of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanShape {
    /// Heads.
    pub heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_dim: usize,
    /// Groups of consecutive heads with the same B and C; `heads` is a multiple.
    pub groups: usize,
    /// Rows of the state of a head, and elements of B and of C of a group. An even number.
    pub state: usize,
}

impl ScanShape {
    /// Elements of all heads of a token.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of the inputs of a token: x, B and C of all groups, in this order.
    pub fn inputs(&self) -> usize {
        self.width() + 2 * self.groups * self.state
    }

    /// Elements of the states of all heads of a sequence. They begin with zeros.
    pub fn state_len(&self) -> usize {
        self.width() * self.state
    }
}

/// The weights of a layer, one number per head.
#[derive(Debug, Clone)]
pub struct ScanWeights {
    /// `-exp(A_log)`.
    pub decay: Vec<f32>,
    /// Added to dt.
    pub dt_bias: Vec<f32>,
    /// The factor on x in the output.
    pub skip: Vec<f32>,
}

/// Writes the outputs of the tokens of all chunks, `[tokens][heads * head_dim]`, and updates the states. `x` has the
/// inputs of the tokens, `[tokens][inputs]`, and `dt` their steps, `[tokens][heads]`.
///
/// # Panics
/// When sizes do not fit each other, or rows of chunks overlap.
pub fn selective_scan(
    exec: Exec<'_>,
    shape: ScanShape,
    weights: &ScanWeights,
    [x, dt]: [&[f32]; 2],
    chunks: &mut [StateChunk<'_>],
    out: &mut [f32],
) {
    check(shape, weights, [x, dt], chunks, out.len());
    let out = DisjointSliceMut::new(out);
    each_head(exec.pool, chunks, shape.head_dim * shape.state, |rows, head, state| {
        exec.level.run(&mut Head { shape, weights, x, dt, rows, head, state, out: &out });
    });
}

fn check(shape: ScanShape, w: &ScanWeights, [x, dt]: [&[f32]; 2], chunks: &[StateChunk<'_>], out: usize) {
    let ScanShape { heads, head_dim, groups, state } = shape;
    assert!(groups > 0 && heads > 0 && heads.is_multiple_of(groups), "groups of heads");
    assert!(head_dim.is_multiple_of(16) && state.is_multiple_of(2) && head_dim * state > 0, "sizes of heads");
    assert!([&w.decay, &w.dt_bias, &w.skip].iter().all(|of_heads| of_heads.len() == heads), "weights");
    let rows = check_chunks(chunks, shape.state_len());
    assert!(x.len() >= rows * shape.inputs() && dt.len() >= rows * heads, "inputs");
    assert!(out >= rows * shape.width(), "outputs");
}

/// A head of a chunk.
struct Head<'a> {
    shape: ScanShape,
    weights: &'a ScanWeights,
    x: &'a [f32],
    dt: &'a [f32],
    rows: Range<usize>,
    head: usize,
    state: &'a mut [f32],
    out: &'a DisjointSliceMut<'a, f32>,
}

impl Kernel for &mut Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        let Head { shape, weights: w, x, dt, rows, head, state, out } = self;
        let ScanShape { heads, head_dim, groups, state: size } = *shape;
        let (n, inputs, width) = (rows.len(), shape.inputs(), shape.width());
        let group = *head / (heads / groups);
        let (mut steps, mut decays) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for row in rows.clone() {
            let x = dt[row * heads + *head] + w.dt_bias[*head];
            let step = if x > 20.0 { x } else { x.exp().ln_1p() };
            steps.push(step);
            decays.push((w.decay[*head] * step).exp());
        }
        let of_b = width + group * size;
        let of_c = of_b + groups * size;
        for (panel, state) in state.as_chunks_mut::<16>().0.chunks_exact_mut(size).enumerate() {
            let column = *head * head_dim + 16 * panel;
            for (t, row) in rows.clone().enumerate() {
                let token = &x[row * inputs..(row + 1) * inputs];
                let value: &[f32; 16] = token[column..column + 16].try_into().expect("16 columns");
                let value = s.load(value);
                let factors = (&token[of_b..of_b + size], &token[of_c..of_c + size]);
                let added = s.mul(s.splat(steps[t]), value);
                let y = update_and_product(s, state, (s.splat(decays[t]), added), factors);
                let at = row * width + column;
                // SAFETY: `check` found that rows of chunks do not overlap, and one task has this head of its rows.
                let out = unsafe { out.slice(at..at + 16) };
                let out: &mut [f32; 16] = out.try_into().expect("16 columns");
                s.store(s.fma(s.splat(w.skip[*head]), value, y), out);
            }
        }
    }
}

/// `S = decay S + B added^T`, and then `S^T C`: the sums of even and of odd rows, added.
#[inline(always)]
fn update_and_product<S: Simd>(
    s: S,
    state: &mut [[f32; 16]],
    (decay, added): (S::F, S::F),
    (b, c): (&[f32], &[f32]),
) -> S::F {
    let mut sums = [s.splat(0.0); 2];
    let factors = b.as_chunks::<2>().0.iter().zip(c.as_chunks::<2>().0);
    for (rows, (b, c)) in state.as_chunks_mut::<2>().0.iter_mut().zip(factors) {
        for i in 0..2 {
            let row = s.fma(s.splat(b[i]), added, s.mul(decay, s.load(&rows[i])));
            s.store(row, &mut rows[i]);
            sums[i] = s.fma(row, s.splat(c[i]), sums[i]);
        }
    }
    s.add(sums[0], sums[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arch::SimdLevel, exec::Pool};
    use scrimp_testkit::numbers;

    const SHAPES: [ScanShape; 2] = [
        ScanShape { heads: 6, head_dim: 16, groups: 2, state: 10 },
        ScanShape { heads: 3, head_dim: 48, groups: 1, state: 32 },
    ];

    struct Case {
        shape: ScanShape,
        weights: ScanWeights,
        x: Vec<f32>,
        dt: Vec<f32>,
    }

    impl Case {
        fn new(shape: ScanShape, n: usize) -> Self {
            let weights = ScanWeights {
                decay: numbers(1, shape.heads).iter().map(|x| -0.3 - 0.2 * x).collect(),
                dt_bias: numbers(2, shape.heads),
                skip: numbers(3, shape.heads),
            };
            Self { shape, weights, x: numbers(4, n * shape.inputs()), dt: numbers(5, n * shape.heads) }
        }

        /// Outputs and the state of a sequence of `n` tokens, in chunks of these lengths.
        fn run(&self, level: SimdLevel, threads: usize, chunks: &[usize]) -> (Vec<f32>, Vec<f32>) {
            let (pool, n) = (Pool::new(threads).unwrap(), self.dt.len() / self.shape.heads);
            let (mut out, mut state) = (vec![0.0; n * self.shape.width()], vec![0.0; self.shape.state_len()]);
            let mut at = 0;
            for &len in chunks.iter().cycle() {
                let rows = at..n.min(at + len);
                let mut chunk = [StateChunk { rows: rows.clone(), state: &mut state }];
                let (exec, inputs) = (Exec { pool: &pool, level }, [&self.x[..], &self.dt]);
                selective_scan(exec, self.shape, &self.weights, inputs, &mut chunk, &mut out);
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
            let mut out = vec![0.0; n * c.width()];
            for column in 0..c.width() {
                let head = column / c.head_dim;
                let group = head / (c.heads / c.groups);
                let mut state = vec![0.0_f64; c.state];
                for t in 0..n {
                    let x = |i: usize| f64::from(self.x[t * c.inputs() + i]);
                    let step = f64::from(self.dt[t * c.heads + head]) + f64::from(w.dt_bias[head]);
                    let step = step.exp().ln_1p();
                    let decay = (f64::from(w.decay[head]) * step).exp();
                    let of_b = c.width() + group * c.state;
                    let mut y = f64::from(w.skip[head]) * x(column);
                    for (i, state) in state.iter_mut().enumerate() {
                        *state = decay * *state + x(of_b + i) * step * x(column);
                        y += *state * x(of_b + c.groups * c.state + i);
                    }
                    out[t * c.width() + column] = y;
                }
            }
            out
        }
    }

    // The laws of `gated_delta`'s tests; the two operators share no types.
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
            let n = 75;
            let case = Case::new(shape, n);
            let expected = case.run(SimdLevel::SCALAR, 1, &[n]);
            for level in SimdLevel::supported() {
                for chunks in [&[n][..], &[1], &[2, 1, 33, 3]] {
                    assert!(case.run(level, 2, chunks) == expected, "{shape:?} {level} {chunks:?}");
                }
            }
        }
    }
}
