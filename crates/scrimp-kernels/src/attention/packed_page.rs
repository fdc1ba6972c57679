//! Arguments of the kernels over packed pages ([`codes`](super::codes), [`sparse`](super::sparse)).

/// A packed page, and the tiles of it that a block of rows is computed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedPage {
    /// The page.
    pub(crate) page: *const u8,
    /// The page that is read next, and need not be there.
    pub(crate) ahead: *const u8,
    /// Tokens of a page.
    pub(crate) page_tokens: usize,
    /// Blocks of 16 dims.
    pub(crate) dim_blocks: usize,
    /// Where bitmaps, center and values of a sparse page begin.
    pub(crate) bitmaps: usize,
    pub(crate) center: usize,
    pub(crate) values: usize,
    /// First tile, and how many.
    pub(crate) first: usize,
    pub(crate) tiles: usize,
    /// Room for `R` times 8 pairs for each block of dims or tile of a page.
    pub(crate) work: *mut i32,
}

/// A page of keys and the queries that it is scored against.
#[derive(Clone, Copy)]
pub(crate) struct PackedQkArgs<'a> {
    pub(crate) page: &'a PackedPage,
    /// Queries: `[R][dims]` f32 for codes, elements as bf16 pages take them for sparse pages.
    pub(crate) q: *const f32,
    /// Scores, `[tiles][R][16]`.
    pub(crate) out: *mut f32,
}

/// A page of values, its probabilities and the outputs that they are added to.
#[derive(Clone, Copy)]
pub(crate) struct PackedPvArgs<'a> {
    pub(crate) page: &'a PackedPage,
    /// Probabilities, `[tiles][R][16]`, as bf16 pages take them.
    pub(crate) p: *const f32,
    /// Outputs, `[dim_blocks][R][16]`.
    pub(crate) acc: *mut f32,
}
