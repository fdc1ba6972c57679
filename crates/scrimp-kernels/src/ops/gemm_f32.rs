//! Products of dense f32 matrices, for training: `C = A B`. Either factor may be transposed.
//!
//! ```text
//! c[i][j] = (accumulate ? c[i][j] : bias[j]) + a[i][0] b[0][j] + a[i][1] b[1][j] + ...      one fma after another
//!
//! B: panels of [k][NR columns]     A: [k][MR rows], copied unless its rows are consecutive     C: MR x NR in registers
//! ```
//! The inner loop reads both copies in order, for [`STEPS`] of k at a time.
//!
//! Equality: each sum is one chain in the order of k, so every level and number of threads gives the same bits.
//!
//! Limit: arithmetic.

use crate::{
    arch::{Kernel, Level, Scalar, Simd, array},
    exec::{DisjointSliceMut, Exec},
};
use std::ops::Range;

/// A matrix in memory: element (i, j) is `data[i * row + j * col]`.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// From row to row.
    pub row: usize,
    /// From column to column.
    pub col: usize,
}

impl<'a> View<'a> {
    /// Rows one after another, `cols` elements each.
    pub const fn rows(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: cols, col: 1 }
    }

    /// The transpose.
    pub const fn t(self) -> Self {
        Self { data: self.data, row: self.col, col: self.row }
    }

    /// The columns from `col` on.
    pub(super) fn skip_steps(self, col: usize) -> Self {
        Self { data: &self.data[col * self.col..], ..self }
    }
}

/// What happens to the sums.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// They start at 0.
    Zero,
    /// They start at what `c` holds.
    Accumulate,
    /// They start at `bias[j]`; negative results become 0 where `relu`.
    Bias {
        /// One for each column.
        bias: &'a [f32],
        /// Cut off at 0.
        relu: bool,
    },
}

/// Steps of k at a time, for which a panel of B stays in the first-level cache.
pub(super) const STEPS: usize = if cfg!(test) { 50 } else { 256 };

/// Panels, kept from call to call.
#[derive(Debug, Default)]
pub struct GemmScratch {
    a: Vec<f32>,
    b: Vec<f32>,
}

/// Rows and vectors of 16 columns of a tile.
pub(super) const fn tile<S: Simd>() -> (usize, usize) {
    if S::TOKEN_TILE >= 8 { (8, 2) } else { (4, 1) }
}

/// A product `c = a b`.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[m, n, k]`: the sizes of `c`, and the steps of the sums.
    pub shape: [usize; 3],
    /// `[m, k]`
    pub a: View<'a>,
    /// `[k, n]`
    pub b: View<'a>,
    /// The start of the sums, and the activation.
    pub start: Start<'a>,
    /// `[m, n]`, one row after another.
    pub c: &'a mut [f32],
}

/// Computes a product.
///
/// # Panics
/// When sizes do not fit each other.
pub fn gemm(exec: Exec<'_>, scratch: &mut GemmScratch, product: Product<'_>) {
    let Exec { pool, level } = exec;
    let Product { shape: [m, n, k], a, b, start, c } = product;
    assert_eq!(c.len(), m * n);
    if m == 0 || n == 0 {
        return;
    }
    if k > 0 {
        assert!((m - 1) * a.row + (k - 1) * a.col < a.data.len(), "A is smaller than [{m}, {k}]");
        assert!((k - 1) * b.row + (n - 1) * b.col < b.data.len(), "B is smaller than [{k}, {n}]");
    }
    if let Start::Bias { bias, .. } = start {
        assert_eq!(bias.len(), n);
    }
    let (mr, nv) = level.run(TileOf);
    let nr = nv * 16;
    let (m_panels, n_panels) = (m.div_ceil(mr), n.div_ceil(nr));
    let in_rows = a.col == 1;
    let packed_a = if in_rows { 0 } else { m_panels * mr * k };
    grow(&mut scratch.a, packed_a);
    grow(&mut scratch.b, n_panels * nr * k);
    let panels_a = &mut scratch.a[..packed_a];
    let panels_b = &mut scratch.b[..n_panels * nr * k];
    if k > 0 {
        pool.chunks(panels_a, mr * k, |panel, to| pack(a, panel * mr..m, mr, k, to));
        pool.chunks(panels_b, nr * k, |panel, to| pack(b.t(), panel * nr..n, nr, k, to));
    }
    let a = if in_rows { Left::Rows(a) } else { Left::Panels(panels_a) };
    // A task: some panels of A, which stay in the second-level cache, times some of B.
    let (rows, cols) = (64 / mr, n_panels.div_ceil(n_panels.div_ceil(8)));
    let (row_tasks, col_tasks) = (m_panels.div_ceil(rows), n_panels.div_ceil(cols));
    let c = DisjointSliceMut::new(c);
    pool.run(row_tasks * col_tasks, |task, _| {
        let (i, j) = (task / col_tasks, task % col_tasks);
        level.run(Task {
            a,
            b: panels_b,
            m_panels: (i * rows, m_panels.min((i + 1) * rows)),
            n_panels: (j * cols, n_panels.min((j + 1) * cols)),
            size: [m, n, k],
            start,
            c,
        });
    });
}

/// Lengthens `v` to at least `len`.
fn grow(v: &mut Vec<f32>, len: usize) {
    if v.len() < len {
        v.resize(len, 0.0);
    }
}

/// `to[step * width + i] = x(rows.start + i, step)`, 0 beyond `rows`.
pub(super) fn pack(x: View<'_>, rows: Range<usize>, width: usize, k: usize, to: &mut [f32]) {
    let (first, there) = (rows.start, width.min(rows.len()));
    match width {
        _ if x.row != 1 || there < width => {}
        32 => return pack_columns::<32>(x, first, to),
        16 => return pack_columns::<16>(x, first, to),
        8 => return pack_columns::<8>(x, first, to),
        4 => return pack_columns::<4>(x, first, to),
        _ => {}
    }
    if there < width {
        to.fill(0.0);
    }
    for i in 0..there {
        let from = &x.data[(first + i) * x.row..];
        let to = to[i..].iter_mut().step_by(width);
        if x.col == 1 {
            to.zip(&from[..k]).for_each(|(to, &x)| *to = x);
        } else {
            to.zip(from.iter().step_by(x.col)).for_each(|(to, &x)| *to = x);
        }
    }
}

/// [`pack`] of `W` values that lie side by side.
fn pack_columns<const W: usize>(x: View<'_>, first: usize, to: &mut [f32]) {
    for (step, to) in to.as_chunks_mut::<W>().0.iter_mut().enumerate() {
        *to = *x.data[first + step * x.col..].first_chunk().expect("columns inside the matrix");
    }
}

/// Where the rows of A are.
#[derive(Clone, Copy)]
enum Left<'a> {
    /// In panels.
    Panels(&'a [f32]),
    /// Where they were.
    Rows(View<'a>),
}

struct TileOf;

impl Kernel for TileOf {
    type Output = (usize, usize);
    #[inline(always)]
    fn run<S: Level>(self, _: S) -> (usize, usize) {
        tile::<S>()
    }
}

struct Task<'a> {
    a: Left<'a>,
    b: &'a [f32],
    m_panels: (usize, usize),
    n_panels: (usize, usize),
    size: [usize; 3],
    start: Start<'a>,
    c: DisjointSliceMut<'a, f32>,
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        if const { tile::<S>().0 == 8 } { self.tiles::<S, 8, 2>(s) } else { self.tiles::<S, 4, 1>(s) }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        let [_, _, k] = self.size;
        for jp in self.n_panels.0..self.n_panels.1 {
            // Without steps, tiles still start and end.
            for from in (0..k.max(1)).step_by(STEPS) {
                for ip in self.m_panels.0..self.m_panels.1 {
                    self.tile::<S, MR, NV>(s, ip, jp, from..k.min(from + STEPS));
                }
            }
        }
    }

    /// Steps `steps` of k of one tile.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        ip: usize,
        jp: usize,
        steps: Range<usize>,
    ) {
        let [m, n, k] = self.size;
        let nr = NV * 16;
        let (columns, rows) = (nr.min(n - jp * nr), MR.min(m - ip * MR));
        let c = |r: usize| {
            let at = (ip * MR + r) * n + jp * nr;
            // SAFETY: tiles of different tasks do not overlap, and this is the only reference.
            unsafe { self.c.slice(at..at + columns) }
        };
        let mut acc = [[s.splat(0.0); NV]; MR];
        match self.start {
            Start::Bias { bias, .. } if steps.start == 0 => {
                acc = [load(s, &bias[jp * nr..][..columns]); MR];
            }
            Start::Zero if steps.start == 0 => {}
            _ => {
                for r in 0..rows {
                    acc[r] = load(s, c(r));
                }
            }
        }
        let b = &self.b[jp * nr * k..][nr * steps.start..nr * steps.end];
        let b = b.as_chunks::<16>().0.as_chunks::<NV>().0;
        match self.a {
            _ if steps.is_empty() => {}
            Left::Panels(a) => {
                let a = &a.as_chunks::<MR>().0[ip * k..][steps.clone()];
                acc = product::<S, MR, NV>(s, acc, |step| a[step], b);
            }
            Left::Rows(a) => {
                // Rows beyond the last one are that one again; nobody stores what comes of them.
                let rows: [&[f32]; MR] =
                    array(|r| &a.data[(ip * MR + r).min(m - 1) * a.row + steps.start..][..b.len()]);
                acc = product::<S, MR, NV>(s, acc, |step| array(|r| rows[r][step]), b);
            }
        }
        if steps.end == k && matches!(self.start, Start::Bias { relu: true, .. }) {
            // The second operand is what is left of a NaN.
            for r in 0..MR {
                for v in 0..NV {
                    acc[r][v] = s.max(s.splat(0.0), acc[r][v]);
                }
            }
        }
        for r in 0..rows {
            store(s, acc[r], c(r));
        }
    }
}

/// Up to `16 NV` numbers, and zeros.
#[inline(always)]
pub(super) fn load<S: Simd, const NV: usize>(s: S, from: &[f32]) -> [S::F; NV] {
    let mut x = [s.splat(0.0); NV];
    if let Some(whole) = from.as_chunks::<16>().0.as_chunks::<NV>().0.first() {
        for v in 0..NV {
            x[v] = s.load(&whole[v]);
        }
    } else {
        let mut padded = [[0.0; 16]; NV];
        padded.as_flattened_mut()[..from.len()].copy_from_slice(from);
        for v in 0..NV {
            x[v] = s.load(&padded[v]);
        }
    }
    x
}

/// As many of the `16 NV` numbers as there is room for.
#[inline(always)]
pub(super) fn store<S: Simd, const NV: usize>(s: S, x: [S::F; NV], to: &mut [f32]) {
    if let Some(whole) = to.as_chunks_mut::<16>().0.as_chunks_mut::<NV>().0.first_mut() {
        for v in 0..NV {
            s.store(x[v], &mut whole[v]);
        }
        return;
    }
    let mut padded = [[0.0; 16]; NV];
    for v in 0..NV {
        s.store(x[v], &mut padded[v]);
    }
    to.copy_from_slice(&padded.as_flattened()[..to.len()]);
}

/// `acc + a b` for one panel of each, `a(step)` being a step of A.
#[inline(always)]
pub(super) fn product<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    mut acc: [[S::F; NV]; MR],
    a: impl Fn(usize) -> [f32; MR],
    b: &[[[f32; 16]; NV]],
) -> [[S::F; NV]; MR] {
    for (step, b) in b.iter().enumerate() {
        let mut columns = [s.splat(0.0); NV];
        for v in 0..NV {
            columns[v] = s.load(&b[v]);
        }
        let a = a(step);
        for r in 0..MR {
            let x = s.splat(a[r]);
            for v in 0..NV {
                acc[r][v] = s.fma(x, columns[v], acc[r][v]);
            }
        }
    }
    acc
}

const _: () = assert!(tile::<Scalar>().0 == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::SimdLevel;
    use crate::{arch::testing::numbers, exec::Pool};

    #[test]
    fn products_of_odd_sizes_are_right_and_the_same_everywhere() {
        for [m, n, k] in [[1, 1, 1], [3, 17, 5], [8, 32, 64], [70, 33, 130], [130, 300, 7], [5, 4, 0]] {
            for transposed in [0, 1, 2] {
                let (a, b, bias) = (numbers(1, m * k), numbers(2, k * n), numbers(3, n));
                let va = if transposed == 1 { View::rows(&a, m).t() } else { View::rows(&a, k) };
                let vb = if transposed == 2 { View::rows(&b, k).t() } else { View::rows(&b, n) };
                let mut reference = None;
                for threads in [1, 3] {
                    let pool = Pool::new(threads).unwrap();
                    for level in SimdLevel::supported() {
                        let mut scratch = GemmScratch::default();
                        let mut c = vec![f32::NAN; m * n];
                        let exec = Exec { pool: &pool, level };
                        let mut product = |start, c: &mut [f32]| {
                            gemm(exec, &mut scratch, Product { shape: [m, n, k], a: va, b: vb, start, c });
                        };
                        product(Start::Bias { bias: &bias, relu: false }, &mut c);
                        let mut d = vec![f32::NAN; m * n];
                        product(Start::Bias { bias: &bias, relu: true }, &mut d);
                        product(Start::Accumulate, &mut c);
                        for i in 0..m {
                            for j in 0..n {
                                let mut sum = 0.0;
                                for step in 0..k {
                                    let x = va.data[i * va.row + step * va.col]
                                        * vb.data[step * vb.row + j * vb.col];
                                    sum += f64::from(x);
                                }
                                let at = i * n + j;
                                let once = f64::from(bias[j]) + sum;
                                assert!((f64::from(c[at]) - once - sum).abs() < 1e-4);
                                assert!((f64::from(d[at]) - once.max(0.0)).abs() < 1e-4);
                            }
                        }
                        assert_eq!(reference.get_or_insert_with(|| c.clone()), &c, "{level} {threads}");
                    }
                }
            }
        }
    }
}
