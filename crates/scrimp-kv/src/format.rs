//! How a cache stores keys and values: every token as it comes, or whole pages packed once they are old enough.

use crate::error::KvError;
use scrimp_kernels::attention::{
    PackedKind, PageGeometry, Scope, Sparse, Storage,
    storage::{STORAGES, bfloat16, packing::PACKINGS, storage},
};
use std::{fmt, str::FromStr};

/// Newest tokens that stay in bf16 beyond those of the page that is being filled. None for integers, as with KIVI's keys:
/// with 64 tokens to a page, 0 to 63 are not packed. Sparse pages lose more, and have a dense tail.
const fn window(packing: PackedKind) -> usize {
    match packing {
        PackedKind::Int8 | PackedKind::Int4 => 0,
        PackedKind::Sparse(_) => 32,
    }
}

/// A storage format, chosen by name (`"int8".parse()`): one of [`KvFormat::names`], where `sparse` may be followed by the
/// shares of keys and values that are dropped and by `page`, if they are the smallest of a page and not of a token
/// (`sparse:0.3,0.5,page`).
///
/// Formats of [`STORAGES`] hold every token alike. With a packed format ([`PACKINGS`]) new tokens go to bf16 pages; a page
/// that is full, and whose tokens are not among the newest [`KvFormat::window`], is replaced by a packed one, when
/// [`Sequence::pack`](crate::Sequence::pack) is called or the layer is compacted.
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

    /// The format of pages that tokens are appended to.
    pub fn storage(&self) -> &'static dyn Storage {
        self.storage
    }

    /// The format of old pages.
    pub fn packing(&self) -> Option<PackedKind> {
        self.packing
    }

    /// Newest tokens that are not packed.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The same format with another window.
    #[must_use]
    pub fn with_window(self, window: usize) -> Self {
        Self { window, ..self }
    }

    /// Every name, in the order of the documentation.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let packed = PACKINGS.into_iter().map(|packing| Self::from(packing).name());
        STORAGES.into_iter().map(Storage::name).chain(packed)
    }

    /// Whether pages of these sizes can be stored so.
    ///
    /// # Errors
    /// When they cannot, with the reason.
    pub fn check(&self, g: PageGeometry) -> Result<(), KvError> {
        if self.packing.is_none_or(|packing| packing.fits(g)) {
            return Ok(());
        }
        Err(KvError::BadInput(format!(
            "the KV format {self} does not take a head dimension of {} (with pages of {} tokens); use bf16",
            g.head_dim, g.page_tokens
        )))
    }

    /// Whether a cache in this format can go on in format `other`: new tokens must be stored alike.
    ///
    /// # Errors
    /// When they would not be.
    pub fn check_switch(&self, other: &Self) -> Result<(), KvError> {
        if self.storage.kind() == other.storage.kind() {
            return Ok(());
        }
        Err(KvError::BadInput(format!(
            "a cache whose new tokens are stored in {} cannot be stored as {other}",
            self.storage.name()
        )))
    }

    /// Full blocks of a head with `len` tokens that are to be packed.
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
            write!(f, ":{k},{v}{}", if sparse.scope() == Scope::Page { ",page" } else { "" })?;
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
                     1, like 0.3,0.5 (or 0.3,0.5,page)"
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

/// `K,V` or `K,V,page`.
fn sparse(shares: &str) -> Option<Sparse> {
    let mut parts = shares.split(',').map(str::trim);
    let (k, v) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let scope = match (parts.next(), parts.next()) {
        (None, None) => Scope::Token,
        (Some("page"), None) => Scope::Page,
        _ => return None,
    };
    Sparse::new(k, v, scope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in KvFormat::names() {
            assert_eq!(name.parse::<KvFormat>().unwrap().name(), name);
        }
        for name in ["int8", "bf16", "sparse:0.3,0.5", "sparse:0,0.125,page"] {
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
            "sparse:0,0,page,",
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
