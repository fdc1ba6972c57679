//! Dropping tokens and packing pages.

use super::{Sequence, no_layer};
use crate::{
    block_table::{BlockTable, Rotation},
    compress::{Compression, select_layers::select_layers},
    error::KvError,
    policy::Selection,
};
use scrimp_kernels::Pool;
use std::sync::{Mutex, PoisonError};

/// Rotates a key (`[head_dim]`) by a number of positions, with the model's rotary embedding.
pub type ApplyRope<'a> = &'a (dyn Fn(&mut [f32], u32) + Sync);

impl Sequence {
    /// Packs the pages that are full and older than the format's window, if the format packs pages. Call it after an
    /// append, unless the tokens are going to be compressed soon: packing twice loses precision twice.
    ///
    /// # Errors
    /// When pages cannot be allocated. Pages that were packed by then stay packed; no token is lost.
    pub fn pack(&mut self, pool: &Pool) -> Result<(), KvError> {
        let shared = &*self.shared;
        let format = self.format;
        let Some(kind) = format.packing() else { return Ok(()) };
        let tables = self.layers.iter_mut().flat_map(|layer| &mut layer.heads);
        let tasks: Vec<_> = tables
            .filter_map(|table| {
                let blocks = table.to_pack(shared, format);
                (!blocks.is_empty()).then(|| Mutex::new((table, blocks, Ok(()))))
            })
            .collect();
        pool.run(tasks.len(), |task, _| {
            let (table, blocks, result) = &mut *tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
            *result =
                table.pack(shared, kind, blocks.clone()).map(|packed| table.replace(blocks.start, packed));
        });
        tasks.into_iter().try_for_each(|task| task.into_inner().unwrap_or_else(PoisonError::into_inner).2)
    }

    /// Moves the selected tokens of each KV head of a layer to new pages (packed as by [`Sequence::pack`]) and drops
    /// the old pages.
    ///
    /// # Errors
    /// When `selections` does not fit the layer, or pages cannot be allocated; then the layer is unchanged.
    pub fn compact(&mut self, layer: usize, selections: &[Selection]) -> Result<(), KvError> {
        let Some(state) = self.layers.get(layer) else { return Err(no_layer(layer)) };
        if selections.len() != state.heads.len() {
            return Err(KvError::BadInput(format!(
                "{} selections for {} KV heads",
                selections.len(),
                state.heads.len()
            )));
        }
        for (table, selection) in state.heads.iter().zip(selections) {
            selection.check(table.len())?;
        }
        let heads = (0..selections.len()).map(|head| self.compacted(layer, head, &selections[head], None));
        let heads = heads.collect::<Result<_, _>>()?;
        self.replace(layer, heads, selections);
        Ok(())
    }

    /// A head's table with the selected tokens only.
    fn compacted(
        &self,
        layer: usize,
        head: usize,
        selection: &Selection,
        apply_rope: Option<ApplyRope<'_>>,
    ) -> Result<BlockTable, KvError> {
        let state = &self.layers[layer];
        let rotation = apply_rope.map(|apply_rope| Rotation { apply_rope, next: state.next });
        state.heads[head].compacted(&self.shared, self.format, selection, rotation)
    }

    /// Replaces the tables of a layer by tables of the selected tokens.
    fn replace(&mut self, layer: usize, heads: Vec<BlockTable>, selections: &[Selection]) {
        let state = &mut self.layers[layer];
        state.heads = heads;
        state.scores.each_row(selections.len(), |head, row| {
            // A row may be shorter than the head's tokens: the missing scores stay missing.
            let scored = row.len();
            let inside = selections[head].indices.iter().take_while(|&&i| (i as usize) < scored);
            *row = inside.map(|&i| row[i as usize]).collect();
        });
    }

    /// Compacts all layers with full attention to `budget` tokens per KV head (on average, where layers or heads
    /// share a budget). Sliding-window layers are unchanged.
    ///
    /// All threads of `pool` select tokens. Then a few layers at a time are written, so that peak memory is little
    /// more than the old cache.
    ///
    /// # Errors
    /// Those of [`Sequence::compact`]; layers that were compacted by then stay compacted. When `how.rerotate` is set,
    /// which needs [`Sequence::compress_rerotated`].
    pub fn compress(&mut self, how: &Compression, budget: usize, pool: &Pool) -> Result<(), KvError> {
        if how.rerotate {
            return Err(KvError::BadInput("re-rotating keys needs the model's rotary embedding".into()));
        }
        self.compress_rerotated(how, budget, pool, None)
    }

    /// As [`Sequence::compress`]. With `apply_rope`, the kept keys of a head are rotated to consecutive positions
    /// that end before the next token. [`Sequence::position`] still returns positions in the text.
    ///
    /// # Errors
    /// Those of [`Sequence::compact`].
    pub fn compress_rerotated(
        &mut self,
        how: &Compression,
        budget: usize,
        pool: &Pool,
        apply_rope: Option<ApplyRope<'_>>,
    ) -> Result<(), KvError> {
        if how.keeps_everything() {
            return Ok(());
        }
        let layers: Vec<usize> = self.full_layers().collect();
        let selected = select_layers(self, &layers, how, budget, pool);
        let heads = self.n_kv_heads();
        // One layer per thread at a time.
        for (layers, selected) in layers.chunks(pool.threads()).zip(selected.chunks(pool.threads())) {
            let this = &*self;
            let compacted = |task: usize| {
                let (layer, head) = (task / heads, task % heads);
                this.compacted(layers[layer], head, &selected[layer][head], apply_rope)
            };
            let mut tables = pool.map(layers.len() * heads, compacted).into_iter();
            for (&layer, selections) in layers.iter().zip(selected) {
                let tables = tables.by_ref().take(heads).collect::<Result<Vec<_>, _>>()?;
                self.replace(layer, tables, selections);
            }
        }
        Ok(())
    }
}
