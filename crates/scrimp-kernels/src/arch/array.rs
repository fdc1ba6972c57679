//! Arrays for kernels.

/// The array of `f(0)` to `f(N - 1)`.
///
/// It gives the machine code of [`std::array::from_fn`] from a tenth of the intermediate code. Kernels build thousands
/// of arrays, once per level, format and width: with the standard function, a sixth of the code that the compiler has
/// to optimize is the bookkeeping for panics between two elements.
#[inline(always)]
pub(crate) fn array<T: Copy, const N: usize>(mut f: impl FnMut(usize) -> T) -> [T; N] {
    const { assert!(N > 0) };
    let mut elements = [f(0); N];
    let mut i = 1;
    while i < N {
        elements[i] = f(i);
        i += 1;
    }
    elements
}
