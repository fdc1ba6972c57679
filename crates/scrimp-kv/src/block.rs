//! A block: the pages with keys and values of up to `page_tokens` tokens of one KV head.

use crate::{cache::Pages, error::KvError};
use scrimp_kernels::{
    attention::{PackedKind, PageRows, PageView},
    mem::Page,
};
use std::sync::Arc;

/// A K page, a V page and the biases of their tokens (`[page_tokens]`).
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) k: Arc<Page>,
    pub(crate) v: Arc<Page>,
    pub(crate) bias: Option<Arc<[f32]>>,
    /// The packed format of the pages; `None` for the format that tokens are appended in. Packed pages are immutable.
    pub(crate) packed: Option<PackedKind>,
}

impl Block {
    pub(crate) fn view(&self) -> PageView<'_> {
        PageView { k: &self.k, v: &self.v, bias: self.bias.as_deref(), packed: self.packed }
    }

    /// Bytes of both pages.
    pub(crate) fn page_bytes(&self) -> usize {
        self.k.len() + self.v.len()
    }

    pub(crate) fn bias_bytes(&self) -> usize {
        self.bias.as_ref().map_or(0, |bias| size_of_val(&**bias))
    }

    /// Block tables that share the block (vLLM's `ref_cnt`).
    pub(crate) fn ref_cnt(&self) -> usize {
        Arc::strong_count(&self.k)
    }

    /// Whether tokens can be appended in place.
    pub(crate) fn is_writable(&self) -> bool {
        self.packed.is_none() && Arc::strong_count(&self.k) == 1 && Arc::strong_count(&self.v) == 1
    }

    /// Reads the key in `slot` (`[head_dim]`).
    pub(crate) fn read_key(&self, pages: Pages<'_>, slot: usize, k: &mut [f32]) {
        let g = pages.geometry;
        match &self.packed {
            Some(kind) => kind.packing().read_k(g, &self.k, slot, k),
            None => pages.storage.read_k(g, &self.k, slot, k),
        }
    }

    /// Reads the value in `slot` (`[head_dim]`).
    pub(crate) fn read_value(&self, pages: Pages<'_>, slot: usize, v: &mut [f32]) {
        let g = pages.geometry;
        match &self.packed {
            Some(kind) => kind.packing().read_v(g, &self.v, slot, v),
            None => pages.storage.read_v(g, &self.v, slot, v),
        }
    }

    /// A writable copy with the first `used` tokens. `tokens` is the number of tokens that the error message names.
    pub(crate) fn writable_copy(
        &self,
        pages: Pages<'_>,
        used: usize,
        tokens: usize,
    ) -> Result<Self, KvError> {
        let (g, storage) = (pages.geometry, pages.storage);
        let [mut k, mut v] = open_pages(pages, tokens)?;
        let (to_k, to_v) = (bytes_of_new(&mut k), bytes_of_new(&mut v));
        if self.packed.is_none() {
            to_k.copy_from_slice(&self.k);
            to_v.copy_from_slice(&self.v);
        } else {
            let (mut row_k, mut row_v) = (vec![0.0; g.head_dim], vec![0.0; g.head_dim]);
            for slot in 0..used {
                self.read_key(pages, slot, &mut row_k);
                self.read_value(pages, slot, &mut row_v);
                storage.write_k(g, to_k, PageRows { slot, n: 1, rows: &row_k, stride: g.head_dim });
                storage.write_v(g, to_v, PageRows { slot, n: 1, rows: &row_v, stride: g.head_dim });
            }
            if !used.is_multiple_of(16) {
                storage.clear_tile_from(g, to_k, to_v, used);
            }
        }
        Ok(Self { k, v, bias: self.bias.clone(), packed: None })
    }
}

/// New K and V pages in the format that tokens are appended in.
pub(crate) fn open_pages(pages: Pages<'_>, tokens: usize) -> Result<[Arc<Page>; 2], KvError> {
    let alloc = || pages.pool.alloc(pages.open_bytes(), tokens);
    Ok([alloc()?, alloc()?])
}

/// The bytes of a page that was just allocated.
pub(crate) fn bytes_of_new(page: &mut Arc<Page>) -> &mut [u8] {
    let Some(page) = Arc::get_mut(page) else { unreachable!("a new page has one owner") };
    page
}
