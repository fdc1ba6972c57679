//! The softmax of the scores, in place, with the sum of squares that the ridge depends on.

use super::ValueFit;
use crate::arch::{Kernel, Level, SimdLevel};

/// The order of the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// A row for each query, `[queries][keys]`.
    Queries,
    /// A row for each key, `[keys][queries]`.
    Keys,
}

/// Turns the products `q . k` in `x`, whose rows are padded to multiples of 16, into attention. The padding becomes 0.
/// Returns the sum of the squares.
pub(super) fn softmax(
    level: SimdLevel,
    fit: &ValueFit<'_>,
    x: &mut [f32],
    layout: Layout,
    [m, n]: [usize; 2],
) -> f64 {
    level.run(Softmax { fit, x, layout, m, n })
}

struct Softmax<'a> {
    fit: &'a ValueFit<'a>,
    x: &'a mut [f32],
    layout: Layout,
    m: usize,
    n: usize,
}

impl Kernel for Softmax<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Level>(self, s: S) -> f64 {
        match self.layout {
            Layout::Queries => self.of_queries(s),
            Layout::Keys => self.of_keys(s),
        }
    }
}

impl Softmax<'_> {
    /// The finished score of products.
    #[inline(always)]
    fn finish<S: Level>(&self, s: S, x: S::F, bias: S::F) -> S::F {
        let mut x = s.mul(x, s.splat(self.fit.scale));
        if let Some(cap) = self.fit.softcap {
            x = s.mul(s.tanh(s.div(x, s.splat(cap))), s.splat(cap));
        }
        s.add(x, bias)
    }

    #[inline(always)]
    fn of_queries<S: Level>(self, s: S) -> f64 {
        let ld = self.n.next_multiple_of(16);
        let mut bias = vec![f32::NEG_INFINITY; ld];
        match self.fit.bias {
            Some(from) => bias[..self.n].copy_from_slice(from),
            None => bias[..self.n].fill(0.0),
        }
        let bias = bias.as_chunks::<16>().0;
        let mut energy = 0.0;
        let x = &mut self.x[..];
        let this = Softmax { x: &mut [], ..self };
        for (i, row) in x.chunks_exact_mut(ld).enumerate() {
            // Columns behind the last key hold anything.
            row[this.n..].fill(0.0);
            let row = row.as_chunks_mut::<16>().0;
            let mut max = s.splat(f32::NEG_INFINITY);
            for (x, bias) in row.iter_mut().zip(bias) {
                let score = this.finish(s, s.load(x), s.load(bias));
                s.store(score, x);
                max = s.max(score, max);
            }
            let largest = largest(s, max);
            let (max, mut sum) = (s.splat(largest), s.splat(0.0));
            for x in &mut *row {
                let e = s.exp(s.sub(s.load(x), max));
                s.store(e, x);
                sum = s.add(sum, e);
            }
            let sink = this.fit.sinks.map_or(0.0, |sinks| (sinks[i] - largest).exp());
            let factor = s.splat((s.reduce_add(sum) + sink).recip());
            let mut squares = s.splat(0.0);
            for x in &mut *row {
                let p = s.mul(s.load(x), factor);
                s.store(p, x);
                squares = s.fma(p, p, squares);
            }
            energy += f64::from(s.reduce_add(squares));
            row.as_flattened_mut()[this.n..].fill(0.0);
        }
        energy
    }

    #[inline(always)]
    fn of_keys<S: Level>(self, s: S) -> f64 {
        let ld = self.m.next_multiple_of(16);
        let x = &mut self.x[..];
        let this = Softmax { x: &mut [], ..self };
        let (mut max, mut sum) = (vec![[f32::NEG_INFINITY; 16]; ld / 16], vec![[0.0; 16]; ld / 16]);
        for (j, row) in x.chunks_exact_mut(ld).enumerate() {
            row[this.m..].fill(0.0);
            let bias = s.splat(this.fit.bias.map_or(0.0, |bias| bias[j]));
            for (x, max) in row.as_chunks_mut::<16>().0.iter_mut().zip(&mut max) {
                let score = this.finish(s, s.load(x), bias);
                s.store(score, x);
                s.store(s.max(score, s.load(max)), max);
            }
        }
        if let Some(sinks) = this.fit.sinks {
            let sums = sum.as_flattened_mut().iter_mut().zip(max.as_flattened());
            sums.zip(sinks).for_each(|((sum, max), sink)| *sum = (sink - max).exp());
        }
        for row in x.chunks_exact_mut(ld) {
            for ((x, max), sum) in row.as_chunks_mut::<16>().0.iter_mut().zip(&max).zip(&mut sum) {
                let e = s.exp(s.sub(s.load(x), s.load(max)));
                s.store(e, x);
                s.store(s.add(s.load(sum), e), sum);
            }
        }
        for sum in &mut sum {
            s.store(s.div(s.splat(1.0), s.load(sum)), sum);
        }
        sum.as_flattened_mut()[this.m..].fill(0.0);
        let mut energy = 0.0;
        for row in x.chunks_exact_mut(ld) {
            let mut squares = s.splat(0.0);
            for (x, factor) in row.as_chunks_mut::<16>().0.iter_mut().zip(&sum) {
                let p = s.mul(s.load(x), s.load(factor));
                s.store(p, x);
                squares = s.fma(p, p, squares);
            }
            energy += f64::from(s.reduce_add(squares));
        }
        energy
    }
}

/// The largest lane.
#[inline(always)]
fn largest<S: Level>(s: S, x: S::F) -> f32 {
    let mut lanes = [0.0; 16];
    s.store(x, &mut lanes);
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}
