//! Dropping tokens and packing pages.

use super::{Sequence, no_layer};
use crate::{
    block_table::{BlockTable, Rotation},
    compress::{Compression, FutureQueries, fit::HeadFit, select_layers::select_layers},
    error::KvError,
    policy::Selection,
};
use scrimp_kernels::{Exec, Pool, SimdLevel, ops::fit::FitScratch};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Rotates a key (`[head_dim]`) by a number of positions, with the model's rotary embedding.
pub type ApplyRope<'a> = &'a (dyn Fn(&mut [f32], u32) + Sync);

/// The inputs of a compression beside its settings.
#[derive(Clone, Copy)]
pub struct Compressing<'a> {
    /// The threads and instructions.
    pub exec: Exec<'a>,
    /// The model's rotary embedding, to rotate kept keys with.
    pub apply_rope: Option<ApplyRope<'a>>,
    /// The queries that values are fitted to.
    pub queries: Option<&'a FutureQueries>,
}

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
        let layers = self.layers.iter_mut().enumerate();
        let tables = layers.flat_map(|(layer, state)| {
            let pages = shared.pages(layer);
            state.heads.iter_mut().map(move |table| (pages, table))
        });
        let tasks: Vec<_> = tables
            .filter_map(|(pages, table)| {
                let blocks = table.to_pack(pages, format);
                (!blocks.is_empty()).then(|| Mutex::new((pages, table, blocks, Ok(()))))
            })
            .collect();
        pool.run(tasks.len(), |task, _| {
            let (pages, table, blocks, result) =
                &mut *tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
            *result =
                table.pack(*pages, kind, blocks.clone()).map(|packed| table.replace(blocks.start, packed));
        });
        tasks.into_iter().try_for_each(|task| task.into_inner().unwrap_or_else(PoisonError::into_inner).3)
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
        state.heads[head].compacted(self.shared.pages(layer), self.format, selection, rotation)
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
    /// which needs [`Sequence::compress_with`].
    pub fn compress(&mut self, how: &Compression, budget: usize, pool: &Pool) -> Result<(), KvError> {
        if how.rerotate {
            return Err(KvError::BadInput("re-rotating keys needs the model's rotary embedding".into()));
        }
        let exec = Exec { pool, level: SimdLevel::SCALAR };
        self.compress_with(how, budget, Compressing { exec, apply_rope: None, queries: None })
    }

    /// As [`Sequence::compress`]. With [`Compressing::apply_rope`], the kept keys of a head are rotated to consecutive
    /// positions that end before the next token; [`Sequence::position`] still returns positions in the text. With
    /// [`Compressing::queries`], and if `how.fit` is set, the values of kept tokens are fitted.
    ///
    /// # Errors
    /// Those of [`Sequence::compact`], and when the queries do not fit the cache.
    pub fn compress_with(
        &mut self,
        how: &Compression,
        budget: usize,
        with: Compressing<'_>,
    ) -> Result<(), KvError> {
        if how.keeps_everything() {
            return Ok(());
        }
        let Compressing { exec: Exec { pool, level }, apply_rope, queries } = with;
        let queries = queries.filter(|_| how.fit);
        queries.map_or(Ok(()), |queries| queries.check(self.n_kv_heads(), self.head_dim()))?;
        let layers: Vec<usize> = self.full_layers().collect();
        let selected = select_layers(self, &layers, how, budget, pool);
        let heads = self.n_kv_heads();
        let scratch: Vec<Mutex<FitScratch>> = (0..pool.threads()).map(|_| Mutex::default()).collect();
        // One layer per thread at a time.
        for (layers, selected) in layers.chunks(pool.threads()).zip(selected.chunks(pool.threads())) {
            let this = &*self;
            let compacted = |task: usize, thread: usize| {
                let (layer, kv_head) = (task / heads, task % heads);
                let selection = &selected[layer][kv_head];
                let layer = layers[layer];
                let mut kept = this.compacted(layer, kv_head, selection, apply_rope)?;
                let whole = &this.layers[layer].heads[kv_head];
                if let Some(queries) = queries.filter(|_| kept.len() < whole.len()) {
                    let pages = this.shared.pages(layer);
                    let mut scratch = scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
                    let fit = HeadFit { pages, queries, layer, kv_head, whole, selection };
                    fit.apply(level, &mut scratch, &mut kept);
                }
                Ok(kept)
            };
            let results: Vec<OnceLock<Result<BlockTable, KvError>>> =
                (0..layers.len() * heads).map(|_| OnceLock::new()).collect();
            pool.run(results.len(), |task, thread| {
                results[task].get_or_init(|| compacted(task, thread));
            });
            let mut tables = results.into_iter().filter_map(OnceLock::into_inner);
            for (&layer, selections) in layers.iter().zip(selected) {
                let tables = tables.by_ref().take(heads).collect::<Result<Vec<_>, _>>()?;
                self.replace(layer, tables, selections);
            }
        }
        Ok(())
    }
}
