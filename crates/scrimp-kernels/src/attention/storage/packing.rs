//! Formats that store whole pages only, and smaller: tokens share scales, so a page is packed once it is full.
//!
//! Newer tokens stand in bf16 pages until then (the recent window of KIVI, Liu et al. 2024, section 4).

use super::PageGeometry;

/// Which kernel reads a packed page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedKind {
    /// See [`integer`](super::integer).
    Int8,
    /// See [`integer`](super::integer).
    Int4,
}

/// A format of packed pages. Pages are byte slices of [`Packing::page_bytes`], aligned to 64 bytes; they are not written
/// to after they were packed.
pub trait Packing: Send + Sync + std::fmt::Debug {
    /// The name that users see.
    fn name(&self) -> &'static str;
    /// Which kernel reads the pages.
    fn kind(&self) -> PackedKind;
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
}

/// Every packed format, in the order of the documentation.
pub static PACKINGS: [&dyn Packing; 2] = [super::integer::INT8, super::integer::INT4];

/// The packed format of this name.
pub fn packing(name: &str) -> Option<&'static dyn Packing> {
    PACKINGS.into_iter().find(|p| p.name() == name)
}

/// The format of pages of this kind.
pub(crate) fn of(kind: PackedKind) -> &'static dyn Packing {
    match kind {
        PackedKind::Int8 => super::integer::INT8,
        PackedKind::Int4 => super::integer::INT4,
    }
}
