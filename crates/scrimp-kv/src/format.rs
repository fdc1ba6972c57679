//! How a cache stores keys and values: every token as it comes, or whole pages packed once they are old enough.

use crate::error::KvError;
use scrimp_kernels::attention::{
    Packing, PageGeometry, Storage,
    storage::{
        STORAGES,
        packing::{PACKINGS, packing},
        storage,
    },
};
use std::{fmt, str::FromStr};

/// Newest tokens of a packed format that stay in bf16.
const WINDOW: usize = 32;
/// Largest head dimension that packed formats take: beyond it, 16-bit factors of their sums would lose precision.
const LARGEST_DIM: usize = 4096;

/// A storage format, chosen by name (`"int8".parse()`).
///
/// Formats of [`STORAGES`] hold every token alike. With a packed format ([`PACKINGS`]) new tokens go to bf16 pages; a page
/// that is full, and whose tokens are not among the newest [`KvFormat::window`], is replaced by a packed one, when
/// [`Sequence::pack`](crate::Sequence::pack) is called or the layer is compacted.
#[derive(Debug, Clone, Copy)]
pub struct KvFormat {
    storage: &'static dyn Storage,
    packing: Option<&'static dyn Packing>,
    window: usize,
}

impl KvFormat {
    /// The name that users see.
    pub fn name(&self) -> &'static str {
        self.packing.map_or(self.storage.name(), Packing::name)
    }

    /// The format of pages that tokens are appended to.
    pub fn storage(&self) -> &'static dyn Storage {
        self.storage
    }

    /// The format of old pages.
    pub fn packing(&self) -> Option<&'static dyn Packing> {
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
        STORAGES.into_iter().map(Storage::name).chain(PACKINGS.into_iter().map(Packing::name))
    }

    /// Whether keys and values of so many elements can be stored so.
    ///
    /// # Errors
    /// When they cannot, with the reason.
    pub fn check(&self, head_dim: usize) -> Result<(), KvError> {
        if self.packing.is_some() && head_dim > LARGEST_DIM {
            return Err(KvError::BadInput(format!(
                "the KV format {} takes head dimensions up to {LARGEST_DIM}, not {head_dim}; use bf16",
                self.name()
            )));
        }
        Ok(())
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

impl From<&'static dyn Packing> for KvFormat {
    fn from(packing: &'static dyn Packing) -> Self {
        let bf16 = scrimp_kernels::attention::storage::bfloat16::STORAGE;
        Self { storage: bf16, packing: Some(packing), window: WINDOW }
    }
}

impl Default for KvFormat {
    fn default() -> Self {
        scrimp_kernels::attention::storage::bfloat16::STORAGE.into()
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = KvError;

    fn from_str(name: &str) -> Result<Self, KvError> {
        let packed = || packing(name).map(Self::from);
        storage(name).map(Self::from).or_else(packed).ok_or_else(|| {
            let known: Vec<_> = Self::names().collect();
            KvError::BadInput(format!("KV format `{name}` is unknown; there are {}", known.join(", ")))
        })
    }
}
