//! Products of f32 matrices on one thread, into a part of a larger matrix.
//!
//! ```text
//! C = A B,  C += A B  or  C -= A B         all of C, or its diagonal and the elements above
//! ```
//! Both factors are copied into panels, as in [`gemm_f32`](crate::ops::gemm_f32), whose inner loop this is. A sum over
//! up to [`STEPS`] products is one chain in the order of k, so every level gives the same bits.

use super::sized;
use crate::{
    arch::{Kernel, Level, Simd, SimdLevel},
    ops::gemm_f32::{STEPS, View, load, pack, product, store, tile},
};

/// Panels of B that are multiplied by a panel of A before the next one.
const GROUP: usize = 8;

/// What happens to C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Update {
    Set,
    Subtract,
}

/// A product.
pub(super) struct Multiply<'a> {
    /// `[m, n, k]`
    pub(super) shape: [usize; 3],
    /// `[m, k]`
    pub(super) a: View<'a>,
    /// `[k, n]`
    pub(super) b: View<'a>,
    /// `[m][ld]`, of which the first `n` columns are written.
    pub(super) c: &'a mut [f32],
    pub(super) ld: usize,
    pub(super) update: Update,
    /// Only the tiles with elements on or above the diagonal are computed.
    pub(super) upper: bool,
}

/// Panels, kept from call to call.
#[derive(Debug, Default)]
pub(super) struct Panels {
    a: Vec<f32>,
    b: Vec<f32>,
}

/// Computes a product.
pub(super) fn multiply(level: SimdLevel, panels: &mut Panels, product: Multiply<'_>) {
    let [m, n, k] = product.shape;
    if m > 0 && n > 0 {
        assert!(k > 0 && product.c.len() >= (m - 1) * product.ld + n);
        level.run(Run { panels, product });
    }
}

struct Run<'a> {
    panels: &'a mut Panels,
    product: Multiply<'a>,
}

impl Kernel for Run<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Level>(self, s: S) {
        if const { tile::<S>().0 == 8 } { self.tiles::<S, 8, 2>(s) } else { self.tiles::<S, 4, 1>(s) }
    }
}

impl Run<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const MR: usize, const NV: usize>(self, s: S) {
        let Multiply { shape: [m, n, k], a, b, c, ld, update, upper } = self.product;
        let nr = NV * 16;
        let (m_panels, n_panels) = (m.div_ceil(MR), n.div_ceil(nr));
        for from in (0..k).step_by(STEPS) {
            let steps = STEPS.min(k - from);
            let panels_a = sized(&mut self.panels.a, m_panels * MR * steps);
            let panels_b = sized(&mut self.panels.b, n_panels * nr * steps);
            let (a, b) = (a.skip_steps(from), b.t().skip_steps(from));
            for (panel, to) in panels_a.chunks_exact_mut(MR * steps).enumerate() {
                pack(a, panel * MR..m, MR, steps, to);
            }
            for (panel, to) in panels_b.chunks_exact_mut(nr * steps).enumerate() {
                pack(b, panel * nr..n, nr, steps, to);
            }
            for group in (0..n_panels).step_by(GROUP) {
                for ip in 0..m_panels {
                    let a = &panels_a.as_chunks::<MR>().0[ip * steps..][..steps];
                    let rows = MR.min(m - ip * MR);
                    for jp in group..n_panels.min(group + GROUP) {
                        if upper && (jp + 1) * nr <= ip * MR {
                            continue;
                        }
                        let b = &panels_b[jp * nr * steps..][..nr * steps];
                        let b = b.as_chunks::<16>().0.as_chunks::<NV>().0;
                        let acc = product::<S, MR, NV>(s, [[s.splat(0.0); NV]; MR], |step| a[step], b);
                        let columns = nr.min(n - jp * nr);
                        for r in 0..rows {
                            let c = &mut c[(ip * MR + r) * ld + jp * nr..][..columns];
                            let mut sum = acc[r];
                            if from > 0 || update == Update::Subtract {
                                let old = load::<S, NV>(s, c);
                                for v in 0..NV {
                                    sum[v] = match update {
                                        Update::Set => s.add(old[v], acc[r][v]),
                                        Update::Subtract => s.sub(old[v], acc[r][v]),
                                    };
                                }
                            }
                            store(s, sum, c);
                        }
                    }
                }
            }
        }
    }
}
