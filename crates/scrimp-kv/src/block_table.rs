//! The block table of one KV head of one layer.

use crate::{cache::Shared, error::KvError, format::KvFormat, policy::Kept};
use scrimp_kernels::{
    attention::{PackedKind, PageView},
    mem::Page,
};
use std::{ops::Range, sync::Arc};

/// A K page, a V page, and what is added to the scores of their tokens (`[page_tokens]`).
#[derive(Debug, Clone)]
pub(crate) struct Block {
    k: Arc<Page>,
    v: Arc<Page>,
    bias: Option<Arc<[f32]>>,
    /// How the pages are packed, where they are. Nothing is appended to packed pages.
    packed: Option<PackedKind>,
}

/// Positions of the kept tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Positions {
    /// `first`, `first + 1`, ...
    Run(u32),
    /// One by one, increasing.
    List(Vec<u32>),
}

/// Rotates a key (`[head_dim]`) by so many positions.
pub type Turn<'a> = &'a (dyn Fn(&mut [f32], u32) + Sync);

/// The kept tokens of one KV head: token `i` is in block `i / page_tokens`.
#[derive(Debug, Clone)]
pub(crate) struct HeadTable {
    blocks: Vec<Block>,
    len: usize,
    positions: Positions,
    /// By how many positions the keys of the first tokens were turned beyond their own; those behind its end were not.
    turned: Vec<u32>,
    /// Some block has a bias.
    biased: bool,
    /// Slots behind `len` in its tile may hold what was truncated.
    stale_tail: bool,
}

/// One block's part of an append: which rows go where.
pub(crate) struct WriteTask<'a> {
    pub(crate) head: usize,
    k: &'a mut [u8],
    v: &'a mut [u8],
    slot: usize,
    n: usize,
    first_row: usize,
    clear_tail: bool,
}

impl HeadTable {
    pub(crate) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            len: 0,
            positions: Positions::Run(0),
            turned: Vec::new(),
            biased: false,
            stale_tail: false,
        }
    }

    /// Kept tokens.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the pages, and of what is added to the scores of their tokens.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.k.len() + block.v.len()).sum::<usize>() + self.bias_bytes()
    }

    pub(crate) fn bias_bytes(&self) -> usize {
        self.blocks.iter().filter_map(|block| block.bias.as_ref()).map(|bias| size_of_val(&**bias)).sum()
    }

    pub(crate) fn ref_cnt(&self, block: usize) -> usize {
        self.blocks.get(block).map_or(0, |b| Arc::strong_count(&b.k))
    }

    pub(crate) fn page(&self, index: usize) -> PageView<'_> {
        let block = &self.blocks[index];
        PageView { k: &block.k, v: &block.v, bias: block.bias.as_deref(), packed: block.packed }
    }

    pub(crate) fn has_bias(&self) -> bool {
        self.biased
    }

    pub(crate) fn position(&self, index: usize) -> u32 {
        match &self.positions {
            Positions::Run(first) => first + index as u32,
            Positions::List(list) => list[index],
        }
    }

    pub(crate) fn bias(&self, page_tokens: usize, index: usize) -> f32 {
        self.blocks[index / page_tokens].bias.as_ref().map_or(0.0, |b| b[index % page_tokens])
    }

    /// The first kept token at `position` or later.
    pub(crate) fn index_from(&self, position: u32) -> usize {
        match &self.positions {
            Positions::Run(first) => (position.saturating_sub(*first) as usize).min(self.len),
            Positions::List(list) => list.partition_point(|&p| p < position),
        }
    }

    /// Blocks that [`HeadTable::prepare`] gets for `n` tokens.
    pub(crate) fn growth(&self, page_tokens: usize, n: usize) -> usize {
        let new = (self.len + n).div_ceil(page_tokens) - self.blocks.len();
        let copied = n > 0
            && !self.len.is_multiple_of(page_tokens)
            && self.blocks.last().is_some_and(|last| {
                last.packed.is_some() || Arc::strong_count(&last.k) > 1 || Arc::strong_count(&last.v) > 1
            });
        new + usize::from(copied)
    }

    /// The pages that an append of `n` tokens needs: a copy of the last block, if that is partly filled and shared or
    /// packed, and new blocks. Nothing changes yet.
    pub(crate) fn prepare(&self, shared: &Shared, n: usize) -> Result<Growth, KvError> {
        let page_tokens = shared.geometry.page_tokens;
        let mut growth = Growth { replace_last: None, new: Vec::new() };
        if n == 0 {
            return Ok(growth);
        }
        let used = self.len % page_tokens;
        if used > 0
            && let Some(last) = self.blocks.last()
        {
            if last.packed.is_some() {
                growth.replace_last = Some(last.unpacked(shared, used, n)?);
            } else if Arc::strong_count(&last.k) > 1 || Arc::strong_count(&last.v) > 1 {
                let (k, v) = (copy_page(shared, &last.k, n)?, copy_page(shared, &last.v, n)?);
                growth.replace_last = Some(Block { k, v, bias: last.bias.clone(), packed: None });
            }
        }
        let blocks = (self.len + n).div_ceil(page_tokens) - self.blocks.len();
        // Keys first, then values: attention reads many pages of one kind in a row, and memory delivers long runs faster.
        let alloc =
            || (0..blocks).map(|_| shared.pool.alloc(shared.open_bytes(), n)).collect::<Result<Vec<_>, _>>();
        let (k, v) = (alloc()?, alloc()?);
        growth.new.extend(k.into_iter().zip(v).map(|(k, v)| Block { k, v, bias: None, packed: None }));
        Ok(growth)
    }

    /// Adds `n` tokens from `position` on and pushes what has to be written where.
    pub(crate) fn grow<'a>(
        &'a mut self,
        shared: &Shared,
        head: usize,
        growth: Growth,
        n: usize,
        position: u32,
        tasks: &mut Vec<WriteTask<'a>>,
    ) {
        let page_tokens = shared.geometry.page_tokens;
        if let (Some(block), Some(last)) = (growth.replace_last, self.blocks.last_mut()) {
            *last = block;
        }
        self.blocks.extend(growth.new);
        match &mut self.positions {
            Positions::Run(first) if self.len == 0 => *first = position,
            Positions::Run(first) if *first as usize + self.len == position as usize => {}
            Positions::Run(first) => {
                let kept = *first..*first + self.len as u32;
                self.positions = Positions::List(kept.chain(position..position + n as u32).collect());
            }
            Positions::List(list) => list.extend(position..position + n as u32),
        }
        let start = self.len;
        let stale = std::mem::take(&mut self.stale_tail);
        self.len += n;
        let mut row = 0;
        for block in &mut self.blocks[start / page_tokens..] {
            let slot = (start + row) % page_tokens;
            let count = (page_tokens - slot).min(n - row);
            // Whole tiles are read, so the tail of a tile that was begun here (or holds old tokens) becomes zero.
            let end = slot + count;
            let clear_tail = !end.is_multiple_of(16) && (end / 16 * 16 >= slot || stale);
            let (Some(k), Some(v)) = (Arc::get_mut(&mut block.k), Arc::get_mut(&mut block.v)) else {
                unreachable!("blocks that are written have one owner: `prepare` copies shared ones");
            };
            tasks.push(WriteTask { head, k, v, slot, n: count, first_row: row, clear_tail });
            row += count;
        }
    }

    /// Forgets the tokens from `position` on.
    pub(crate) fn truncate(&mut self, page_tokens: usize, position: u32) {
        let len = self.index_from(position);
        if len == self.len {
            return;
        }
        self.len = len;
        self.turned.truncate(len);
        self.blocks.truncate(len.div_ceil(page_tokens));
        self.stale_tail = !len.is_multiple_of(16);
        // The slots that are free now must not pass their bias on to what is appended next.
        let free = len % page_tokens;
        if free > 0
            && let Some(bias) = self.blocks.last_mut().and_then(|b| b.bias.as_mut())
        {
            let kept = bias.iter().enumerate().map(|(slot, &b)| if slot < free { b } else { 0.0 });
            *bias = kept.collect();
        }
        if let Positions::List(list) = &mut self.positions {
            list.truncate(len);
        }
    }

    /// Drops blocks whose tokens are all before `position`; returns the number of dropped tokens.
    pub(crate) fn drop_before(&mut self, page_tokens: usize, position: u32) -> usize {
        let blocks = self.index_from(position) / page_tokens;
        if blocks == 0 {
            return 0;
        }
        let tokens = blocks * page_tokens;
        self.blocks.drain(..blocks);
        self.len -= tokens;
        self.turned.drain(..tokens.min(self.turned.len()));
        match &mut self.positions {
            Positions::Run(first) => *first += tokens as u32,
            Positions::List(list) => drop(list.drain(..tokens)),
        }
        tokens
    }

    /// A table with the kept tokens only, in new pages, those of old tokens packed; with `turn`, keys are turned until they are
    /// one position apart, the last one before the given position. Nothing changes yet.
    pub(crate) fn compacted(
        &self,
        shared: &Shared,
        format: KvFormat,
        kept: &Kept,
        turn: Option<(Turn<'_>, u32)>,
    ) -> Result<Self, KvError> {
        let g = shared.geometry;
        let len = kept.indices.len();
        let old = format.old_blocks(g, len);
        let mut table = Self { len, ..Self::new() };
        let position = |&i: &u32| self.position(i as usize);
        let turned = |&i: &u32| self.turned.get(i as usize).copied().unwrap_or(0);
        // By how much each key is turned now, and has been then.
        let mut by = Vec::new();
        if let Some((_, next)) = turn {
            let first = next - len as u32;
            let aims = (first..next).zip(&kept.indices);
            table.turned = aims.map(|(aim, i)| aim - position(i)).collect();
            by = table.turned.iter().zip(&kept.indices).map(|(now, i)| now - turned(i)).collect();
        } else if !self.turned.is_empty() {
            table.turned = kept.indices.iter().map(turned).collect();
        }
        for (page, indices) in kept.indices.chunks(g.page_tokens).enumerate() {
            let turn = turn.map(|(turn, _)| (turn, &by[page * g.page_tokens..][..indices.len()]));
            let mut block = match format.packing().filter(|_| page < old) {
                Some(kind) => self.packed_block(shared, kind, indices, turn)?,
                None => self.open_block(shared, indices, turn)?,
            };
            let bias: Vec<f32> = match &kept.bias {
                Some(bias) => bias[page * g.page_tokens..][..indices.len()].to_vec(),
                None => indices.iter().map(|&i| self.bias(g.page_tokens, i as usize)).collect(),
            };
            if bias.iter().any(|&b| b != 0.0) {
                let bias = bias.into_iter().chain(std::iter::repeat(0.0)).take(g.page_tokens);
                block.bias = Some(bias.collect());
                table.biased = true;
            }
            table.blocks.push(block);
        }
        table.positions = Positions::List(kept.indices.iter().map(position).collect());
        Ok(table)
    }

    /// New pages with these tokens, their bits unchanged where they were not packed and are not turned (by so many positions each).
    fn open_block(
        &self,
        shared: &Shared,
        indices: &[u32],
        turn: Option<(Turn<'_>, &[u32])>,
    ) -> Result<Block, KvError> {
        let (g, storage) = (shared.geometry, shared.config.format.storage());
        let alloc = || shared.pool.alloc(shared.open_bytes(), indices.len());
        let (mut k, mut v) = (alloc()?, alloc()?);
        let (to_k, to_v) = (own(&mut k), own(&mut v));
        let (mut row_k, mut row_v) = (vec![0.0; g.head_dim], vec![0.0; g.head_dim]);
        for (slot, &index) in indices.iter().enumerate() {
            let (from, at) = (&self.blocks[index as usize / g.page_tokens], index as usize % g.page_tokens);
            let turn = turn.map(|(turn, by)| (turn, by[slot])).filter(|&(_, by)| by > 0);
            if from.packed.is_some() {
                from.read(shared, at, &mut row_k, &mut row_v);
                storage.write_v(g, to_v, slot, 1, &row_v, g.head_dim);
            } else {
                storage.copy_v(g, &from.v, at, to_v, slot);
            }
            if from.packed.is_none() && turn.is_none() {
                storage.copy_k(g, &from.k, at, to_k, slot);
            } else {
                from.read_key(shared, at, &mut row_k);
                if let Some((turn, by)) = turn {
                    turn(&mut row_k, by);
                }
                storage.write_k(g, to_k, slot, 1, &row_k, g.head_dim);
            }
        }
        if !indices.len().is_multiple_of(16) {
            storage.clear_tile_from(g, to_k, to_v, indices.len());
        }
        Ok(Block { k, v, bias: None, packed: None })
    }

    /// Packed pages with these tokens, which fill them; keys are turned first, by so many positions each.
    fn packed_block(
        &self,
        shared: &Shared,
        kind: PackedKind,
        indices: &[u32],
        turn: Option<(Turn<'_>, &[u32])>,
    ) -> Result<Block, KvError> {
        let g = shared.geometry;
        let packing = kind.packing();
        let [k_bytes, v_bytes] = packing.page_bytes(g);
        let mut k = shared.pool.alloc(k_bytes, indices.len())?;
        let mut v = shared.pool.alloc(v_bytes, indices.len())?;
        let mut rows = [vec![0.0; g.page_tokens * g.head_dim], vec![0.0; g.page_tokens * g.head_dim]];
        for (slot, &index) in indices.iter().enumerate() {
            let (from, at) = (&self.blocks[index as usize / g.page_tokens], index as usize % g.page_tokens);
            let row = slot * g.head_dim..(slot + 1) * g.head_dim;
            let [k, v] = &mut rows;
            from.read(shared, at, &mut k[row.clone()], &mut v[row.clone()]);
            if let Some((turn, by)) = turn
                && by[slot] > 0
            {
                turn(&mut k[row], by[slot]);
            }
        }
        packing.pack_k(g, &rows[0], own(&mut k));
        packing.pack_v(g, &rows[1], own(&mut v));
        Ok(Block { k, v, bias: None, packed: Some(kind) })
    }

    /// Blocks that are old enough to be packed and are not. (What is packed is a prefix: only a last block is unpacked.)
    pub(crate) fn to_pack(&self, shared: &Shared, format: KvFormat) -> Range<usize> {
        let old = format.old_blocks(shared.geometry, self.len);
        let last = self.blocks[..old].iter().rposition(|block| block.packed.is_some());
        last.map_or(0, |i| i + 1)..old
    }

    /// Packed copies of blocks that are full.
    pub(crate) fn pack(
        &self,
        shared: &Shared,
        kind: PackedKind,
        blocks: Range<usize>,
    ) -> Result<Vec<Block>, KvError> {
        let page_tokens = shared.geometry.page_tokens;
        blocks
            .map(|block| {
                let indices: Vec<u32> =
                    (block * page_tokens..(block + 1) * page_tokens).map(|i| i as u32).collect();
                let packed = self.packed_block(shared, kind, &indices, None)?;
                Ok(Block { bias: self.blocks[block].bias.clone(), ..packed })
            })
            .collect()
    }

    /// Puts blocks with the same tokens in the place of those from `first` on.
    pub(crate) fn replace(&mut self, first: usize, blocks: Vec<Block>) {
        self.blocks.splice(first..first + blocks.len(), blocks);
    }

    /// Reads the key of token `index`.
    pub(crate) fn read_key(&self, shared: &Shared, index: usize, k: &mut [f32]) {
        let page_tokens = shared.geometry.page_tokens;
        self.blocks[index / page_tokens].read_key(shared, index % page_tokens, k);
    }

    /// Reads the keys of tokens `16 * tile..`, `[head_dim][16]`; where there are fewer, the last ones are anything.
    pub(crate) fn read_key_tile(&self, shared: &Shared, tile: usize, keys: &mut [[f32; 16]]) {
        let (g, start) = (shared.geometry, tile * 16);
        let (block, slot) = (&self.blocks[start / g.page_tokens], start % g.page_tokens);
        if block.packed.is_none() {
            return shared.config.format.storage().read_k_tile(g, &block.k, slot / 16, keys);
        }
        let mut row = vec![0.0; g.head_dim];
        for t in 0..16.min(self.len - start) {
            block.read_key(shared, slot + t, &mut row);
            keys.iter_mut().zip(&row).for_each(|(key, &x)| key[t] = x);
        }
    }

    /// Reads the key and value of token `index`.
    pub(crate) fn read(&self, shared: &Shared, index: usize, k: &mut [f32], v: &mut [f32]) {
        let page_tokens = shared.geometry.page_tokens;
        self.blocks[index / page_tokens].read(shared, index % page_tokens, k, v);
    }
}

impl Block {
    /// Reads the key in a slot.
    fn read_key(&self, shared: &Shared, slot: usize, k: &mut [f32]) {
        let g = shared.geometry;
        match &self.packed {
            Some(kind) => kind.packing().read_k(g, &self.k, slot, k),
            None => shared.config.format.storage().read_k(g, &self.k, slot, k),
        }
    }

    /// Reads the key and value in a slot.
    fn read(&self, shared: &Shared, slot: usize, k: &mut [f32], v: &mut [f32]) {
        let g = shared.geometry;
        match &self.packed {
            Some(kind) => {
                kind.packing().read_k(g, &self.k, slot, k);
                kind.packing().read_v(g, &self.v, slot, v);
            }
            None => {
                let storage = shared.config.format.storage();
                storage.read_k(g, &self.k, slot, k);
                storage.read_v(g, &self.v, slot, v);
            }
        }
    }

    /// The first `used` tokens in pages that can be written to. `tokens` is for the message where there is no room.
    fn unpacked(&self, shared: &Shared, used: usize, tokens: usize) -> Result<Self, KvError> {
        let (g, storage) = (shared.geometry, shared.config.format.storage());
        let alloc = || shared.pool.alloc(shared.open_bytes(), tokens);
        let (mut k, mut v) = (alloc()?, alloc()?);
        let (to_k, to_v) = (own(&mut k), own(&mut v));
        let (mut row_k, mut row_v) = (vec![0.0; g.head_dim], vec![0.0; g.head_dim]);
        for slot in 0..used {
            self.read(shared, slot, &mut row_k, &mut row_v);
            storage.write_k(g, to_k, slot, 1, &row_k, g.head_dim);
            storage.write_v(g, to_v, slot, 1, &row_v, g.head_dim);
        }
        if !used.is_multiple_of(16) {
            storage.clear_tile_from(g, to_k, to_v, used);
        }
        Ok(Self { k, v, bias: self.bias.clone(), packed: None })
    }
}

/// The bytes of a page that was just allocated.
fn own(page: &mut Arc<Page>) -> &mut [u8] {
    let Some(page) = Arc::get_mut(page) else { unreachable!("a new page has one owner") };
    page
}

/// Blocks that an append has got for itself.
pub(crate) struct Growth {
    replace_last: Option<Block>,
    new: Vec<Block>,
}

fn copy_page(shared: &Shared, page: &Page, tokens: usize) -> Result<Arc<Page>, KvError> {
    let mut copy = shared.pool.alloc(shared.open_bytes(), tokens)?;
    if let Some(copy) = Arc::get_mut(&mut copy) {
        copy.copy_from_slice(page);
    }
    Ok(copy)
}

impl WriteTask<'_> {
    /// Writes the block's part of `k` and `v` (`[n_tokens][n_kv_heads][head_dim]`).
    pub(crate) fn run(&mut self, shared: &Shared, k: &[f32], v: &[f32]) {
        let (g, storage) = (shared.geometry, shared.config.format.storage());
        let stride = shared.config.n_kv_heads * g.head_dim;
        let from = self.first_row * stride + self.head * g.head_dim;
        storage.write_k(g, self.k, self.slot, self.n, &k[from..], stride);
        storage.write_v(g, self.v, self.slot, self.n, &v[from..], stride);
        if self.clear_tail {
            storage.clear_tile_from(g, self.k, self.v, self.slot + self.n);
        }
    }
}
