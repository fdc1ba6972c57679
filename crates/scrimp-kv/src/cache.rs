//! The cache: shapes, storage format and memory that all sequences of a model share.

use crate::{block_pool::BlockPool, error::KvError, format::KvFormat, sequence::Sequence};
use scrimp_kernels::attention::{PageGeometry, Storage};
use std::sync::Arc;

/// The KV heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvHeads {
    /// KV heads.
    pub count: usize,
    /// Elements of a key or value row.
    pub dim: usize,
}

/// Shapes and options of a cache.
#[derive(Debug, Clone)]
pub struct KvConfig {
    /// Elements of a key or value row.
    pub head_dim: usize,
    /// KV heads of each layer.
    pub n_kv_heads: usize,
    /// The heads of layers with a sliding window, where they differ from those of the others.
    pub window_heads: Option<KvHeads>,
    /// For each layer with keys and values, the sliding window in tokens, the query's own token included; `None`: full attention.
    pub windows: Vec<Option<usize>>,
    /// For each layer with a recurrent state instead of keys and values, the numbers of its state.
    pub states: Vec<usize>,
    /// Storage format of keys and values. A sequence may change its own ([`Sequence::set_format`]).
    pub format: KvFormat,
    /// Tokens per page, a multiple of 16. 64 works well.
    pub page_tokens: usize,
    /// Limit on the bytes of the pages of all sequences together.
    pub limit: Option<usize>,
    /// Tokens that sliding-window layers keep beyond their window, so that [`Sequence::truncate`] can remove as many.
    pub rewind: usize,
}

impl KvConfig {
    /// A cache for the layers of `windows`: bf16, 64 tokens per page, no limit, nothing kept beyond the windows.
    pub fn new(head_dim: usize, n_kv_heads: usize, windows: Vec<Option<usize>>) -> Self {
        let format = KvFormat::default();
        Self {
            head_dim,
            n_kv_heads,
            window_heads: None,
            windows,
            states: Vec::new(),
            format,
            page_tokens: 64,
            limit: None,
            rewind: 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: KvConfig,
    pub(crate) pool: BlockPool,
}

/// The pages of a layer: their shape, their format, and their memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pages<'a> {
    pub(crate) pool: &'a BlockPool,
    /// The format that tokens are appended in.
    pub(crate) storage: &'static dyn Storage,
    pub(crate) geometry: PageGeometry,
    pub(crate) n_kv_heads: usize,
}

impl Pages<'_> {
    /// Bytes of a page in the format that tokens are appended in.
    pub(crate) fn open_bytes(&self) -> usize {
        self.storage.page_bytes(self.geometry)
    }
}

impl KvConfig {
    /// The heads of layers with full attention, or with a window.
    fn heads(&self, windowed: bool) -> KvHeads {
        let full = KvHeads { count: self.n_kv_heads, dim: self.head_dim };
        self.window_heads.filter(|_| windowed).unwrap_or(full)
    }

    /// The pages of such layers.
    fn geometry(&self, windowed: bool) -> PageGeometry {
        PageGeometry { page_tokens: self.page_tokens, head_dim: self.heads(windowed).dim }
    }

    /// Checks that the pages of all layers can have `format`.
    ///
    /// # Errors
    /// They cannot.
    pub(crate) fn check_format(&self, format: &KvFormat) -> Result<(), KvError> {
        [false, true].into_iter().try_for_each(|windowed| format.check(self.geometry(windowed)))
    }
}

impl Shared {
    /// The pages of layer `layer`.
    pub(crate) fn pages(&self, layer: usize) -> Pages<'_> {
        self.pages_of(self.config.windows[layer].is_some())
    }

    /// The pages of layers with full attention.
    pub(crate) fn full_pages(&self) -> Pages<'_> {
        self.pages_of(false)
    }

    fn pages_of(&self, windowed: bool) -> Pages<'_> {
        Pages {
            pool: &self.pool,
            storage: self.config.format.storage(),
            geometry: self.config.geometry(windowed),
            n_kv_heads: self.config.heads(windowed).count,
        }
    }
}

/// Shapes, format and memory that sequences share. A clone is a handle to the same cache.
#[derive(Debug, Clone)]
pub struct KvCache {
    shared: Arc<Shared>,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// When a size is 0 or too large, `page_tokens` is not a multiple of 16, or the format does not support `head_dim`.
    pub fn new(config: KvConfig) -> Result<Self, KvError> {
        let bad = |what: String| Err(KvError::BadInput(what));
        let heads = [config.heads(false), config.heads(true)];
        if heads.iter().any(|heads| heads.count == 0 || heads.dim == 0) || config.windows.is_empty() {
            return bad("a KV cache needs layers, KV heads and a head dimension above 0".into());
        }
        if config.page_tokens == 0 || !config.page_tokens.is_multiple_of(16) {
            return bad(format!(
                "KV pages of {} tokens: the number must be a multiple of 16",
                config.page_tokens
            ));
        }
        let widest = heads[0].dim.max(heads[1].dim);
        if widest > 1 << 16 || config.page_tokens > 1 << 20 {
            return bad(format!("KV pages of {} x {widest} elements are too large", config.page_tokens));
        }
        if config.states.iter().any(|&state| state > 1 << 28) || config.states.len() > 1 << 16 {
            return bad("recurrent states of this size are too large".into());
        }
        config.check_format(&config.format)?;
        let pool = BlockPool::new(config.limit);
        Ok(Self { shared: Arc::new(Shared { config, pool }) })
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> Sequence {
        Sequence::new(Arc::clone(&self.shared))
    }

    /// The shapes and options.
    pub fn config(&self) -> &KvConfig {
        &self.shared.config
    }

    /// Bytes of pages in use by all sequences; shared pages count once.
    pub fn bytes_in_use(&self) -> usize {
        self.shared.pool.bytes_in_use()
    }

    /// Bytes of memory that is mapped for pages.
    pub fn bytes_mapped(&self) -> usize {
        self.shared.pool.bytes_mapped()
    }
}
