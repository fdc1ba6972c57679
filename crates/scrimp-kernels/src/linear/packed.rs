//! Products with the formats of [`crate::quant::packed`], dense and sparse.
//!
//! ```text
//! bf16   acc[row] += w[row][2 columns] · x[2 columns]             f32; x rounded to bf16
//! int8   y[row] = float(sum (q - 128) x) * x.scale * scale[row]   the sum over all columns, exact in i32
//! int4   the float step of `group.rs`, even and odd groups summed separately
//! ```
//! For few tokens (up to three token tiles of 12 with AVX-512, one of 4 elsewhere), a sparse step is expanded in a
//! register and multiplied at once. The limit is the memory bandwidth of the packed weights, or the expansion. For more
//! tokens, a panel is expanded once to memory and multiplied with all tokens.
//!
//! Equality: integer formats give the same bits at every level, and sparse formats the bits of their dense
//! counterparts. `bf16` sums are f32 in column order, in [`Simd::BF16_CHAINS`] interleaved chains of steps that are
//! added at the end. A token's `bf16` result does not depend on the batch, except that AMX starts at 5 tokens. Levels
//! differ by rounding, within 2^-20 of the sum of magnitudes for 4096 columns: AVX-512's `vdpbf16ps` flushes denormals
//! and adds the second product first.

use super::{
    activations::RowScale,
    gemm::{self, PanelGroup},
    gemv,
};
use crate::{
    arch::{L1, Simd, prefetch, prefetch_stream},
    mem::stream::PREFETCH,
    quant::{
        Group, QuantGroup,
        group::{dots, fma_scaled},
        packed::{
            Layout,
            int4::{self, Int4},
        },
    },
};

/// Steps of a panel, one after another.
pub(super) trait Steps<S: Simd> {
    /// The next step's 64 bytes.
    ///
    /// # Safety
    /// There is another step.
    unsafe fn next(&mut self, s: S) -> S::B;

    /// The next two steps.
    ///
    /// # Safety
    /// There are two more steps.
    #[inline(always)]
    unsafe fn next_two(&mut self, s: S) -> [S::B; 2] {
        // SAFETY: the caller guarantees two more steps.
        unsafe { [self.next(s), self.next(s)] }
    }

    /// The next two steps, [`Simd::paired`].
    ///
    /// # Safety
    /// There are two more steps.
    #[inline(always)]
    unsafe fn next_pair(&mut self, s: S) -> [S::B; 2] {
        // SAFETY: the caller guarantees two more steps.
        s.paired(unsafe { [self.next(s), self.next(s)] })
    }

    /// Prefetches what the next steps will need, once in two steps. The hardware's prefetchers lose a quarter of the
    /// bandwidth with values that are consumed in irregular pieces, and on Intel's CPUs with a dense stream of `bf16`,
    /// too.
    #[inline(always)]
    fn prefetch(&self) {}
}

/// Whole steps.
pub(super) struct Dense {
    next: *const [u8; 64],
    /// Bytes from a step to those that are prefetched with it.
    ahead: usize,
    /// Whether the steps are [`Simd::paired`].
    paired: bool,
}
/// Steps of `sparse-bf16`: the bitmap and the values.
pub(super) struct Words(*const [u8; 4], *const u8);
/// Steps of `sparse-int8`.
pub(super) struct Bytes(*const [u8; 8], *const u8);

impl Dense {
    /// Steps that have been expanded and [`Simd::paired`], in memory that is in a cache.
    pub(super) fn expanded(steps: *const [u8; 64]) -> Self {
        Self { next: steps, ahead: 0, paired: true }
    }
}

impl<S: Simd> Steps<S> for Dense {
    #[inline(always)]
    unsafe fn next(&mut self, s: S) -> S::B {
        // SAFETY: the caller guarantees another step, so 64 bytes can be read.
        unsafe {
            let w = s.load_b(&*self.next);
            self.next = self.next.add(1);
            w
        }
    }

    #[inline(always)]
    unsafe fn next_two(&mut self, s: S) -> [S::B; 2] {
        // SAFETY: the caller guarantees two more steps.
        let steps = unsafe { [self.next(s), self.next(s)] };
        if self.paired { s.unpaired(steps) } else { steps }
    }

    #[inline(always)]
    unsafe fn next_pair(&mut self, s: S) -> [S::B; 2] {
        // SAFETY: the caller guarantees two more steps.
        let steps = unsafe { [self.next(s), self.next(s)] };
        if self.paired { steps } else { s.paired(steps) }
    }

    #[inline(always)]
    fn prefetch(&self) {
        prefetch_stream::<L1>(self.next.cast::<u8>().wrapping_add(self.ahead), 2);
    }
}

impl<S: Simd> Steps<S> for Words {
    #[inline(always)]
    unsafe fn next(&mut self, s: S) -> S::B {
        // SAFETY: the caller guarantees another step; `PackedView::new` has checked that the panel holds as many
        // values as its bitmap says, and 64 bytes behind them.
        unsafe {
            let mask = u32::from_le_bytes(*self.0);
            let w = s.expand_words(mask, &*self.1.cast::<[u8; 64]>());
            *self = Self(self.0.add(1), self.1.add(2 * s.expanded(u64::from(mask))));
            w
        }
    }

    #[inline(always)]
    fn prefetch(&self) {
        prefetch::<L1>(self.1.wrapping_add(PREFETCH));
    }
}

impl<S: Simd> Steps<S> for Bytes {
    #[inline(always)]
    unsafe fn next(&mut self, s: S) -> S::B {
        // SAFETY: the caller guarantees another step; `PackedView::new` has checked that the panel holds as many
        // values as its bitmap says, and 64 bytes behind them.
        unsafe {
            let mask = u64::from_le_bytes(*self.0);
            let w = s.expand_bytes(mask, &*self.1.cast::<[u8; 64]>(), 128);
            *self = Self(self.0.add(1), self.1.add(s.expanded(mask)));
            w
        }
    }

    #[inline(always)]
    fn prefetch(&self) {
        prefetch::<L1>(self.1.wrapping_add(PREFETCH));
    }
}

/// The next four steps.
///
/// # Safety
/// There are four more steps.
#[inline(always)]
unsafe fn next_four<S: Simd, W: Steps<S>>(s: S, steps: &mut W) -> [S::B; 4] {
    // SAFETY: the caller guarantees four more steps.
    unsafe {
        steps.prefetch();
        let [w0, w1] = steps.next_two(s);
        steps.prefetch();
        let [w2, w3] = steps.next_two(s);
        [w0, w1, w2, w3]
    }
}

/// Calls `f` for each pair of `T` tokens with its two steps, of which `x0` and `x1` are those of all tokens.
#[inline(always)]
fn for_pairs<S: Simd, const T: usize>(s: S, x0: &[i32; T], x1: &[i32; T], mut f: impl FnMut(usize, S::Two)) {
    let ((fours0, rest0), (fours1, rest1)) = (x0.as_chunks::<4>(), x1.as_chunks::<4>());
    for (i, (x0, x1)) in fours0.iter().zip(fours1).enumerate() {
        for (k, x) in s.four_tokens(x0, x1).into_iter().enumerate() {
            f(2 * i + k, x);
        }
    }
    if let ([x0], [x1]) = (rest0.as_chunks::<2>().0, rest1.as_chunks::<2>().0) {
        f(T / 2 - 1, s.two_steps(x0, x1));
    }
}

/// Dot products of a panel of `bf16` with `T` tokens.
///
/// # Safety
/// There are as many steps as `x` has.
#[inline(always)]
pub(super) unsafe fn bf16_panel<S: Simd, W: Steps<S>, const T: usize>(
    s: S,
    mut steps: W,
    x: &[u32],
) -> [S::F; T] {
    if const { S::TWO_TOKENS && T.is_multiple_of(2) } {
        let mut acc = [s.splat(0.0); T];
        for [x0, x1] in bytemuck::cast_slice::<u32, i32>(x).as_chunks::<T>().0.as_chunks::<2>().0 {
            steps.prefetch();
            // SAFETY: the caller guarantees as many steps as `x` has, which come in pairs.
            let w = unsafe { steps.next_pair(s) };
            for_pairs::<S, T>(s, x0, x1, |i, x| {
                let acc = &mut acc.as_chunks_mut::<2>().0[i];
                *acc = s.dot_two_bf16(*acc, w, x);
            });
        }
        for acc in acc.as_chunks_mut::<2>().0 {
            *acc = s.split(acc.map(|acc| s.bits(acc))).map(|bits| s.of_bits(bits));
        }
        return acc;
    }
    if const { S::FOUR_STEPS && T == 1 } {
        let mut acc = s.splat(0.0);
        for x in x.as_chunks::<4>().0 {
            // SAFETY: the caller guarantees as many steps as `x` has, a multiple of 16.
            acc = s.dot_four_bf16(acc, unsafe { next_four(s, &mut steps) }, x);
        }
        return [acc; T];
    }
    let mut acc = [[s.splat(0.0); T]; 2];
    // Steps come in blocks of 16.
    for [x0, x1] in x.as_chunks::<T>().0.as_chunks::<2>().0 {
        steps.prefetch();
        // SAFETY: the caller guarantees as many steps as `x` has, which come in pairs.
        let w = unsafe { steps.next(s) };
        for t in 0..T {
            acc[0][t] = s.dot_bf16(acc[0][t], w, x0[t]);
        }
        let chain = S::BF16_CHAINS - 1;
        // SAFETY: the caller guarantees as many steps as `x` has, which come in pairs.
        let w = unsafe { steps.next(s) };
        for t in 0..T {
            acc[chain][t] = s.dot_bf16(acc[chain][t], w, x1[t]);
        }
    }
    let mut y = acc[0];
    if S::BF16_CHAINS == 2 {
        for t in 0..T {
            y[t] = s.add(y[t], acc[1][t]);
        }
    }
    y
}

/// Dot products of a panel of `int8` with `T` tokens.
///
/// # Safety
/// There are as many steps as `x` has.
#[inline(always)]
pub(super) unsafe fn int8_panel<S: Simd, W: Steps<S>, const T: usize>(
    s: S,
    mut steps: W,
    scale: &[f32; 16],
    (x, rows): (&[i32], &[RowScale]),
) -> [S::F; T] {
    let mut sums = [s.splat_i32(0); T];
    for t in 0..T {
        sums[t] = s.acc_init_s8(rows[t].sum);
    }
    let mut others = [s.splat_i32(0); T];
    if const { S::TWO_TOKENS && T.is_multiple_of(2) } {
        for sums in sums.as_chunks_mut::<2>().0 {
            *sums = s.join(*sums);
        }
        for [x0, x1] in x.as_chunks::<T>().0.as_chunks::<2>().0 {
            steps.prefetch();
            // SAFETY: the caller guarantees as many steps as `x` has, which come in pairs.
            let w = unsafe { steps.next_pair(s) };
            for_pairs::<S, T>(s, x0, x1, |i, x| {
                let sums = &mut sums.as_chunks_mut::<2>().0[i];
                *sums = s.dot_two(*sums, w, x);
            });
        }
        for sums in sums.as_chunks_mut::<2>().0 {
            *sums = s.split(*sums);
        }
        return int8_results(s, sums, scale, rows);
    }
    if const { S::FOUR_STEPS && T == 1 } {
        for x in x.as_chunks::<4>().0 {
            // SAFETY: the caller guarantees as many steps as `x` has, a multiple of 16.
            sums[0] = s.dot_four_s8(sums[0], unsafe { next_four(s, &mut steps) }, x);
        }
        return int8_results(s, sums, scale, rows);
    }
    for [x0, x1] in x.as_chunks::<T>().0.as_chunks::<2>().0 {
        steps.prefetch();
        // SAFETY: the caller guarantees as many steps as `x` has, which come in pairs.
        let w = unsafe { steps.next(s) };
        for t in 0..T {
            sums[t] = s.dot_s8(sums[t], w, x0[t]);
        }
        // SAFETY: the caller guarantees as many steps as `x` has, which come in pairs.
        let w = unsafe { steps.next(s) };
        for t in 0..T {
            if T <= 2 {
                others[t] = s.dot_s8(others[t], w, x1[t]);
            } else {
                sums[t] = s.dot_s8(sums[t], w, x1[t]);
            }
        }
    }
    for t in 0..T {
        sums[t] = s.add_i32(sums[t], others[t]);
    }
    int8_results(s, sums, scale, rows)
}

/// The sums of `T` tokens, scaled.
#[inline(always)]
fn int8_results<S: Simd, const T: usize>(
    s: S,
    sums: [S::I; T],
    scale: &[f32; 16],
    rows: &[RowScale],
) -> [S::F; T] {
    let scale = s.load(scale);
    let mut y = [s.splat(0.0); T];
    for t in 0..T {
        y[t] = s.mul(s.mul(s.to_f32(sums[t]), s.splat(rows[t].scale)), scale);
    }
    y
}

/// Groups of `int4`, an even and an odd one at a time.
pub(super) trait Groups<S: Simd> {
    /// The next even group; the odd one behind it must be taken before the next even one.
    ///
    /// # Safety
    /// There is another group.
    unsafe fn even(&mut self, s: S) -> Group<S>;
    /// The next odd group.
    ///
    /// # Safety
    /// There is another group.
    unsafe fn odd(&mut self, s: S) -> Group<S>;

    /// Adds the next even group's products with one token.
    ///
    /// # Safety
    /// There is another group.
    #[inline(always)]
    unsafe fn add_even(&mut self, s: S, x: &QuantGroup, acc: S::F) -> S::F {
        // SAFETY: the caller guarantees another group.
        gemv::accumulate::<S, Int4>(s, &unsafe { self.even(s) }, x, acc)
    }
    /// Adds the next odd group's products with one token.
    ///
    /// # Safety
    /// There is another group.
    #[inline(always)]
    unsafe fn add_odd(&mut self, s: S, x: &QuantGroup, acc: S::F) -> S::F {
        // SAFETY: the caller guarantees another group.
        gemv::accumulate::<S, Int4>(s, &unsafe { self.odd(s) }, x, acc)
    }
}

/// Whole groups.
#[derive(Clone, Copy)]
pub(super) struct DenseGroups(*const int4::Block);
/// Groups of `sparse-int4`: their indexes, the values of even groups, and the values of odd groups.
#[derive(Clone, Copy)]
pub(super) struct SparseGroups(*const int4::Index, *const u8, *const u8);

impl<S: Simd> Groups<S> for DenseGroups {
    #[inline(always)]
    unsafe fn even(&mut self, s: S) -> Group<S> {
        // SAFETY: the caller guarantees another group, so a block can be read.
        unsafe {
            let group = int4::dense(s, &*self.0);
            self.0 = self.0.add(1);
            group
        }
    }
    #[inline(always)]
    unsafe fn odd(&mut self, s: S) -> Group<S> {
        // SAFETY: the caller guarantees another group, so a block can be read.
        unsafe { self.even(s) }
    }
}

impl<S: Simd> Groups<S> for SparseGroups {
    #[inline(always)]
    unsafe fn even(&mut self, s: S) -> Group<S> {
        prefetch::<L1>(self.1.wrapping_add(PREFETCH));
        prefetch::<L1>(self.1.wrapping_add(PREFETCH + 64));
        // SAFETY: the caller guarantees another group; `PackedView::new` has checked that its values are there, and
        // 64 bytes behind them.
        unsafe {
            let (group, end) = int4::sparse::<S, false>(s, &*self.0, self.1);
            (self.0, self.1) = (self.0.add(1), end);
            group
        }
    }
    #[inline(always)]
    unsafe fn odd(&mut self, s: S) -> Group<S> {
        prefetch::<L1>(self.1.wrapping_add(PREFETCH + 64));
        // SAFETY: the caller guarantees another group; `PackedView::new` has checked that its values are there, and
        // 64 bytes behind them.
        unsafe {
            let (group, end) = int4::sparse::<S, true>(s, &*self.0, self.2);
            (self.0, self.2) = (self.0.add(1), end);
            group
        }
    }
    #[inline(always)]
    unsafe fn add_even(&mut self, s: S, x: &QuantGroup, acc: S::F) -> S::F {
        // SAFETY: the caller guarantees another group; `PackedView::new` has checked that its values are there, and
        // 64 bytes behind them.
        unsafe {
            if !wide::<S>() {
                return gemv::accumulate::<S, Int4>(s, &self.even(s), x, acc);
            }
            // Four lines for each pair of groups, which is what half of 1024 weights take.
            prefetch::<L1>(self.1.wrapping_add(PREFETCH));
            prefetch::<L1>(self.1.wrapping_add(PREFETCH + 64));
            let (acc, end) = int4::add_sparse::<S, false>(s, &*self.0, self.1, x, acc);
            (self.0, self.1) = (self.0.add(1), end);
            acc
        }
    }
    #[inline(always)]
    unsafe fn add_odd(&mut self, s: S, x: &QuantGroup, acc: S::F) -> S::F {
        // SAFETY: the caller guarantees another group; `PackedView::new` has checked that its values are there, and
        // 64 bytes behind them.
        unsafe {
            if !wide::<S>() {
                return gemv::accumulate::<S, Int4>(s, &self.odd(s), x, acc);
            }
            prefetch::<L1>(self.2.wrapping_add(PREFETCH + 128));
            prefetch::<L1>(self.2.wrapping_add(PREFETCH + 192));
            let (acc, end) = int4::add_sparse::<S, true>(s, &*self.0, self.2, x, acc);
            (self.0, self.2) = (self.0.add(1), end);
            acc
        }
    }
}

impl super::amx_bf16::Rows for DenseGroups {
    type Quants = Int4;
    const CHAINS: usize = 2;

    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self, s: S) -> Group<S> {
        // SAFETY: the caller guarantees another group.
        unsafe { self.even(s) }
    }

    #[inline(always)]
    fn prefetch(&self) {
        // SAFETY: there is a next group.
        gemv::prefetch_part(unsafe { &*self.0 }, 0, 1);
    }
}

/// Sparse groups one after another.
#[derive(Clone, Copy)]
pub(super) struct InTurn {
    pub(super) groups: SparseGroups,
    pub(super) odd: bool,
}

impl super::amx_bf16::Rows for InTurn {
    type Quants = Int4;
    const CHAINS: usize = 2;

    #[inline(always)]
    unsafe fn next<S: Simd>(&mut self, s: S) -> Group<S> {
        self.odd = !self.odd;
        // SAFETY: the caller guarantees another group.
        unsafe { if self.odd { self.groups.even(s) } else { self.groups.odd(s) } }
    }
}

/// Whether the level adds up products in 32 bits.
const fn wide<S: Simd>() -> bool {
    S::ACCUMULATOR_MAX > i16::MAX as usize
}

/// Adds the products of one group with `T` tokens.
#[inline(always)]
fn int4_group<S: Simd, const T: usize>(s: S, acc: &mut [S::F; T], group: &Group<S>, x: &[QuantGroup; T]) {
    let mut panel = PanelGroup::ZERO;
    panel.fill(s, *group);
    let sums = dots::<S, Int4, T, 0, 8>(s, panel.quants(), x);
    for t in 0..T {
        acc[t] = fma_scaled(s, acc[t], sums[t], x[t].scale, group.scale);
    }
}

/// Dot products of a panel of `int4` with `T` tokens.
///
/// # Safety
/// There are as many groups as `x` has.
#[inline(always)]
pub(super) unsafe fn int4_panel<S: Simd, W: Groups<S>, const T: usize>(
    s: S,
    mut groups: W,
    x: &[QuantGroup],
) -> [S::F; T] {
    let (mut even, mut odd) = ([s.splat(0.0); T], [s.splat(0.0); T]);
    let (pairs, last) = x.as_chunks::<T>().0.as_chunks::<2>();
    for [x0, x1] in pairs {
        if T == 1 {
            // SAFETY: the caller guarantees as many groups as `x` has.
            unsafe {
                even[0] = groups.add_even(s, &x0[0], even[0]);
                odd[0] = groups.add_odd(s, &x1[0], odd[0]);
            }
            continue;
        }
        // SAFETY: the caller guarantees as many groups as `x` has.
        int4_group(s, &mut even, &unsafe { groups.even(s) }, x0);
        // SAFETY: the caller guarantees as many groups as `x` has.
        int4_group(s, &mut odd, &unsafe { groups.odd(s) }, x1);
    }
    for x in last {
        if T == 1 {
            // SAFETY: the caller guarantees as many groups as `x` has.
            even[0] = unsafe { groups.add_even(s, &x[0], even[0]) };
            continue;
        }
        // SAFETY: the caller guarantees as many groups as `x` has.
        int4_group(s, &mut even, &unsafe { groups.even(s) }, x);
    }
    for t in 0..T {
        even[t] = s.add(even[t], odd[t]);
    }
    even
}

/// The same from an expanded panel: even groups first, then odd ones.
#[inline(always)]
pub(super) fn int4_expanded<S: Simd, const T: usize>(
    s: S,
    expanded: &[PanelGroup],
    x: &[QuantGroup],
) -> [S::F; T] {
    let mut y = [[s.splat(0.0); T]; 2];
    for (parity, y) in y.iter_mut().enumerate() {
        let x = x.as_chunks::<T>().0;
        let mut g = parity;
        while g < expanded.len() {
            gemm::symmetric::<S, Int4, T>(s, y, &expanded[g], &x[g]);
            g += 2;
        }
    }
    let [mut even, odd] = y;
    for t in 0..T {
        even[t] = s.add(even[t], odd[t]);
    }
    even
}

/// The packed bytes of one panel.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) layout: &'a Layout,
    pub(super) data: &'a [u8],
    /// Its number.
    pub(super) panel: usize,
}

impl<'a> Panel<'a> {
    pub(super) fn dense(self) -> Dense {
        Dense { next: self.dense_bytes().cast(), ahead: PREFETCH, paired: false }
    }
    /// All steps of a dense panel.
    pub(super) fn dense_bytes(self) -> *const u8 {
        self.data[self.layout.dense_panel(self.panel)].as_ptr()
    }
    fn values(self) -> *const u8 {
        let start = self.data[self.layout.start_of(self.panel)].first_chunk().expect("8 bytes");
        self.data[self.layout.values + u64::from_le_bytes(*start) as usize..].as_ptr()
    }
    fn index(self) -> &'a [u8] {
        &self.data[self.layout.index_of(self.panel)]
    }
    pub(super) fn words(self) -> Words {
        Words(self.index().as_ptr().cast(), self.values())
    }
    pub(super) fn bytes(self) -> Bytes {
        Bytes(self.index().as_ptr().cast(), self.values())
    }
    pub(super) fn dense_groups(self) -> DenseGroups {
        // The cast checks alignment.
        DenseGroups(bytemuck::cast_slice(&self.data[self.layout.dense_panel(self.panel)]).as_ptr())
    }
    pub(super) fn sparse_groups(self) -> SparseGroups {
        let values = self.values();
        SparseGroups(bytemuck::cast_slice(self.index()).as_ptr(), values, values)
    }
    pub(super) fn scale(self) -> &'a [f32; 16] {
        let scales: &[f32] = bytemuck::cast_slice(&self.data[self.layout.scales_of(self.panel)]);
        scales.first_chunk().expect("16 scales")
    }
}
