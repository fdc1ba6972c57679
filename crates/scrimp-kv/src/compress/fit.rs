//! Fitted values: kept keys get the values with which the kept tokens reproduce the attention over all tokens, for
//! queries that represent future ones (see [`scrimp_kernels::ops::fit`]).
//!
//! Keys are read as they are stored: a fit compensates for the rounding of keys in packed formats, too.

use crate::{block_table::BlockTable, cache::Pages, error::KvError, policy::Selection};
use scrimp_kernels::{
    SimdLevel,
    ops::fit::{FitScratch, ValueFit, fit_values},
};

/// The ridge, as a share of the mean diagonal element.
const RIDGE: f32 = 0.03;

/// Queries that represent future ones, and their outputs over the whole cache.
#[derive(Debug, Clone, Default)]
pub struct FutureQueries {
    /// Query heads, a multiple of the KV heads.
    pub n_heads: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// `tanh` soft cap on scores.
    pub softcap: Option<f32>,
    /// For each layer of the model.
    pub layers: Vec<LayerQueries>,
}

/// The queries of one layer. A layer without queries keeps its values.
#[derive(Debug, Clone, Default)]
pub struct LayerQueries {
    /// `[queries][n_heads][head_dim]`, after RoPE, from positions after the last token.
    pub q: Vec<f32>,
    /// The outputs of attention over all tokens, `[queries][n_heads][head_dim]`.
    pub out: Vec<f32>,
    /// The layer's attention sinks (`[n_heads]`); empty without.
    pub sinks: Vec<f32>,
}

impl FutureQueries {
    /// # Errors
    /// When lengths do not fit a cache of these shapes.
    pub(crate) fn check(&self, n_kv_heads: usize, head_dim: usize) -> Result<(), KvError> {
        let row = self.n_heads * head_dim;
        let fits = row > 0
            && self.n_heads.is_multiple_of(n_kv_heads)
            && self.layers.iter().all(|l| {
                let sinks = l.sinks.is_empty() || l.sinks.len() == self.n_heads;
                sinks && l.q.len() == l.out.len() && l.q.len().is_multiple_of(row)
            });
        if fits {
            Ok(())
        } else {
            Err(KvError::BadInput("future queries do not fit the cache's heads".into()))
        }
    }

    /// The rows of the query heads of `kv_head`, `[queries * group][head_dim]`.
    fn of_head(&self, rows: &[f32], kv_head: usize, n_kv_heads: usize, dim: usize) -> Vec<f32> {
        let group = self.n_heads / n_kv_heads * dim;
        rows.chunks_exact(self.n_heads * dim)
            .flat_map(|row| &row[kv_head * group..(kv_head + 1) * group])
            .copied()
            .collect()
    }
}

/// The KV head whose values are fitted.
pub(crate) struct HeadFit<'a> {
    pub(crate) pages: Pages<'a>,
    pub(crate) queries: &'a FutureQueries,
    pub(crate) layer: usize,
    pub(crate) kv_head: usize,
    /// The head's tokens before they were selected.
    pub(crate) whole: &'a BlockTable,
    pub(crate) selection: &'a Selection,
}

impl HeadFit<'_> {
    /// Replaces the values of `kept`, which has the selected tokens in pages of its own. The values are unchanged if the
    /// layer has no queries, or the fit has no solution.
    pub(crate) fn apply(&self, level: SimdLevel, scratch: &mut FitScratch, kept: &mut BlockTable) {
        let Self { pages, queries, layer, kv_head, whole, selection } = *self;
        let (dim, n) = (pages.geometry.head_dim, kept.len());
        let Some(rows) = queries.layers.get(layer).filter(|rows| !rows.q.is_empty()) else { return };
        let of_head = |rows: &[f32]| queries.of_head(rows, kv_head, pages.n_kv_heads, dim);
        let (q, outputs) = (of_head(&rows.q), of_head(&rows.out));
        let group = queries.n_heads / pages.n_kv_heads;
        let of_group = rows.sinks.get(kv_head * group..(kv_head + 1) * group).unwrap_or_default();
        let sinks: Vec<f32> = of_group.iter().cycle().take(q.len() / dim).copied().collect();
        let (mut k, mut v) = (vec![0.0; n * dim], vec![0.0; n * dim]);
        let indices = selection.indices.iter().enumerate();
        for ((i, &index), (k, v)) in indices.zip(k.chunks_exact_mut(dim).zip(v.chunks_exact_mut(dim))) {
            kept.read_key(pages, i, k);
            whole.read_value(pages, index as usize, v);
        }
        let bias: Vec<f32> = (0..n).map(|i| kept.bias(pages.geometry.page_tokens, i)).collect();
        let fit = ValueFit {
            q: &q,
            outputs: &outputs,
            k: &k,
            bias: kept.has_bias().then_some(&bias),
            dim,
            scale: queries.scale,
            softcap: queries.softcap,
            sinks: (!sinks.is_empty()).then_some(&sinks),
            ridge: RIDGE,
        };
        if fit_values(level, scratch, &fit, &mut v) {
            kept.write_values(pages, &v);
        }
    }
}
