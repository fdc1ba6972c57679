//! Packed formats: the tokens of a page share scales, so a page is packed once it is full.
//!
//! Newer tokens are in bf16 pages until then: the recent window of KIVI (Liu et al. 2024, section 4).

use super::{PageGeometry, integer, sparse::Sparse};

/// Which kernel reads a packed page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedKind {
    /// See [`integer`].
    Int8,
    /// See [`integer`].
    Int4,
    /// See [`sparse`](mod@super::sparse).
    Sparse(Sparse),
}

impl PackedKind {
    /// The format of these pages.
    pub fn packing(&self) -> &dyn Packing {
        match self {
            Self::Int8 => integer::INT8,
            Self::Int4 => integer::INT4,
            Self::Sparse(sparse) => sparse,
        }
    }

    /// Whether pages of `g` can be packed so.
    pub fn fits(&self, g: PageGeometry) -> bool {
        match self {
            // Beyond it, the 16-bit factors of sums would have few bits left.
            Self::Int8 | Self::Int4 => g.head_dim <= 4096 && g.page_tokens <= 4096,
            Self::Sparse(_) => Sparse::fits(g),
        }
    }
}

/// A format of packed pages. Pages are byte slices of [`Packing::page_bytes`], aligned to 64 bytes; they are not
/// written to after they were packed.
pub trait Packing: Send + Sync + std::fmt::Debug {
    /// The name that users see.
    fn name(&self) -> &'static str;
    /// Bytes of a page of keys, and of values; multiples of 64.
    fn page_bytes(&self, g: PageGeometry) -> [usize; 2];
    /// Packs the keys of a page, `rows` being `[page_tokens][head_dim]`.
    fn pack_k(&self, g: PageGeometry, rows: &[f32], page: &mut [u8]);
    /// Packs the values of a page, as [`Packing::pack_k`].
    fn pack_v(&self, g: PageGeometry, rows: &[f32], page: &mut [u8]);
    /// Reads the key in `slot` (`[head_dim]`).
    fn read_k(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]);
    /// Reads the value in `slot` (`[head_dim]`).
    fn read_v(&self, g: PageGeometry, page: &[u8], slot: usize, row: &mut [f32]);
    /// Whether kernels stay inside of pages of this content, which may come from a file. True where no number of a page
    /// is an index.
    fn is_valid(&self, _g: PageGeometry, _k: &[u8], _v: &[u8]) -> bool {
        true
    }
}

/// Every packed format, in the order of the documentation.
pub static PACKINGS: [PackedKind; 3] =
    [PackedKind::Int8, PackedKind::Int4, PackedKind::Sparse(Sparse::DEFAULT)];
