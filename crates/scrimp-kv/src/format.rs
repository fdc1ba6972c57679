//! Storage formats of a cache: element formats for all tokens, and packed formats for old pages.

use crate::error::KvError;
use scrimp_kernels::attention::{
    PackedKind, PageGeometry, Sparse, Storage,
    storage::{STORAGES, bfloat16, packing::PACKINGS, storage},
};
use std::{fmt, str::FromStr};

/// Newest tokens that stay in bf16 beyond those of the last, partly filled page. Integers need none, as with KIVI's
/// keys: with 64 tokens per page, 0 to 63 tokens are not packed. Sparse pages lose more precision and keep a dense
/// tail.
const fn window(packing: PackedKind) -> usize {
    match packing {
        PackedKind::Int8 | PackedKind::Int4 => 0,
        PackedKind::Sparse(_) => 32,
    }
}

/// A storage format, parsed from one of [`KvFormat::names`] (`"int8".parse()`). `sparse` may be followed by the
/// shares of the elements of keys and values that are dropped, the smallest ones of each token (`sparse:0.3,0.5`).
///
/// An element format ([`STORAGES`]) stores all tokens alike. With a packed format ([`PACKINGS`]) new tokens go to
/// bf16 pages. [`Sequence::pack`](crate::Sequence::pack) and compaction replace a full page by a packed one once its
/// tokens are older than the newest [`KvFormat::window`].
#[derive(Debug, Clone, Copy)]
pub struct KvFormat {
    storage: &'static dyn Storage,
    packing: Option<PackedKind>,
    window: usize,
}

impl KvFormat {
    /// The name that users see.
    pub fn name(&self) -> &'static str {
        match &self.packing {
            Some(PackedKind::Int8) => "int8",
            Some(PackedKind::Int4) => "int4",
            Some(PackedKind::Sparse(_)) => "sparse",
            None => self.storage.name(),
        }
    }

    /// One line for lists of formats.
    pub fn about(&self) -> &'static str {
        match self.name() {
            "f32" => "32-bit floats: exact, twice the memory",
            "f16" => "16-bit floats",
            "bf16" => "bfloat16",
            "int8" => "8 bits with shared scales (KIVI), newest tokens in bf16",
            "int4" => "4 bits, likewise",
            _ => "bfloat16 without the smallest elements, newest tokens whole",
        }
    }

    /// The format of the pages that tokens are appended to.
    pub fn storage(&self) -> &'static dyn Storage {
        self.storage
    }

    /// The format of old pages, where they are packed.
    pub fn packing(&self) -> Option<PackedKind> {
        self.packing
    }

    /// The number of newest tokens that are not packed.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The same format with another window.
    #[must_use]
    pub fn with_window(self, window: usize) -> Self {
        Self { window, ..self }
    }

    /// All names, in the order of the documentation.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let packed = PACKINGS.into_iter().map(|packing| Self::from(packing).name());
        STORAGES.into_iter().map(Storage::name).chain(packed)
    }

    /// Checks that the format supports pages of this geometry.
    ///
    /// # Errors
    /// When it does not, with the reason.
    pub fn check(&self, g: PageGeometry) -> Result<(), KvError> {
        if self.packing.is_none_or(|packing| packing.fits(g)) {
            return Ok(());
        }
        Err(KvError::BadInput(format!(
            "the KV format {self} does not take a head dimension of {} (with pages of {} tokens); use bf16",
            g.head_dim, g.page_tokens
        )))
    }

    /// Checks that a cache in this format can continue in format `other`: both must store new tokens alike.
    ///
    /// # Errors
    /// When they do not.
    pub fn check_switch(&self, other: &Self) -> Result<(), KvError> {
        if self.storage.kind() == other.storage.kind() {
            return Ok(());
        }
        Err(KvError::BadInput(format!(
            "a cache whose new tokens are stored in {} cannot be stored as {other}",
            self.storage.name()
        )))
    }

    /// Blocks of a head with `len` tokens that are old enough to be packed.
    pub(crate) fn old_blocks(&self, g: PageGeometry, len: usize) -> usize {
        if self.packing.is_some() { len.saturating_sub(self.window) / g.page_tokens } else { 0 }
    }
}

impl From<&'static dyn Storage> for KvFormat {
    fn from(storage: &'static dyn Storage) -> Self {
        Self { storage, packing: None, window: 0 }
    }
}

impl From<PackedKind> for KvFormat {
    fn from(packing: PackedKind) -> Self {
        Self { storage: bfloat16::STORAGE, packing: Some(packing), window: window(packing) }
    }
}

impl Default for KvFormat {
    fn default() -> Self {
        bfloat16::STORAGE.into()
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if let Some(PackedKind::Sparse(sparse)) = self.packing {
            let [k, v] = sparse.shares();
            write!(f, ":{k},{v}")?;
        }
        Ok(())
    }
}

impl FromStr for KvFormat {
    type Err = KvError;

    fn from_str(name: &str) -> Result<Self, KvError> {
        if let Some(shares) = name.strip_prefix("sparse:") {
            return sparse(shares).map(|sparse| PackedKind::Sparse(sparse).into()).ok_or_else(|| {
                KvError::BadInput(format!(
                    "KV sparsity `{shares}`: give the shares of keys and of values that are dropped, each from 0 to below \
                     1, like 0.3,0.5"
                ))
            });
        }
        let packed = || PACKINGS.into_iter().map(Self::from).find(|format| format.name() == name);
        storage(name).map(Self::from).or_else(packed).ok_or_else(|| {
            let known: Vec<_> = Self::names().collect();
            KvError::BadInput(format!("KV format `{name}` is unknown; there are {}", known.join(", ")))
        })
    }
}

/// The shares `K,V`.
fn sparse(shares: &str) -> Option<Sparse> {
    let (k, v) = shares.split_once(',')?;
    Sparse::new(k.trim().parse().ok()?, v.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in KvFormat::names() {
            assert_eq!(name.parse::<KvFormat>().unwrap().name(), name);
        }
        for name in ["int8", "bf16", "sparse:0.3,0.5", "sparse:0,0.125"] {
            assert_eq!(name.parse::<KvFormat>().unwrap().to_string(), name);
        }
        assert_eq!("sparse".parse::<KvFormat>().unwrap().to_string(), "sparse:0.3,0.5");
        for name in [
            "sparse:",
            "sparse:1,0",
            "sparse:-0.1,0",
            "sparse:0.5",
            "sparse:NaN,0",
            "sparse:0,0,row",
            "sparse:0,0,page",
        ] {
            assert!(name.parse::<KvFormat>().unwrap_err().to_string().contains("0.3,0.5"), "{name}");
        }
        let error = "int3".parse::<KvFormat>().unwrap_err().to_string();
        assert_eq!(error, "KV format `int3` is unknown; there are f32, f16, bf16, int8, int4, sparse");
    }

    #[test]
    fn head_dimensions_that_do_not_fit_are_refused() {
        let g = |head_dim| PageGeometry { page_tokens: 64, head_dim };
        let check = |name: &str, head_dim| name.parse::<KvFormat>().unwrap().check(g(head_dim));
        assert!(check("int8", 4096).is_ok() && check("sparse", 1024).is_ok() && check("bf16", 8192).is_ok());
        assert!(check("int4", 4097).is_err());
        let error = check("sparse:0.5,0.5", 1025).unwrap_err().to_string();
        assert!(error.contains("sparse:0.5,0.5") && error.contains("1025"), "{error}");
    }
}
