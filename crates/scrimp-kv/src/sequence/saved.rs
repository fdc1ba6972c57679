//! A sequence in a file.
//!
//! ```text
//! format | layers of [next | dropped | tables of the KV heads | scores] | states
//! states: next | f32 ... | length of the checkpoint | f32 ...       (only if some layer has a recurrent state)
//! scores: sum | recent | last | peak | queries | reconstruction | expected | expected_max     (rows of f32; queries: starts and ends)
//! ```
//! The file's shapes are those of the cache; the caller compares the model before it reads a sequence. Bytes of any
//! content are safe to read: counts are bounded by the file, and kernels trust no number that was not checked.

use super::{Layer, Sequence, states::States};
use crate::{
    attention_scores::{LayerScores, PostPrefillScores},
    block_table::BlockTable,
    cache::KvCache,
    format::KvFormat,
    wire::{Input, LoadError, damaged, put_f32s, put_u32, put_u32s},
};
use scrimp_kernels::attention::AccumulatedScores;
use std::{
    io::{self, Read, Write},
    ops::Range,
};

/// The longest name of a format.
const NAME_BYTES: u32 = 64;

impl Sequence {
    /// Writes the sequence, its pages, positions, biases, scores and recurrent states included. [`KvCache::load`] reads it.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        let format = self.format.to_string();
        put_u32(out, format.len() as u32)?;
        out.write_all(format.as_bytes())?;
        put_u32(out, self.format.window() as u32)?;
        for layer in &self.layers {
            put_u32(out, layer.next)?;
            put_u32(out, layer.dropped)?;
            layer.heads.iter().try_for_each(|table| table.save(out))?;
            save_scores(&layer.scores, out)?;
        }
        self.states.save(&self.shared, out)
    }
}

impl KvCache {
    /// Reads a sequence that [`Sequence::save`] wrote from a cache of the same shapes.
    ///
    /// # Errors
    /// When the bytes contradict each other or the shapes of the cache, the file ends early, or pages cannot be
    /// allocated.
    pub fn load(&self, input: &mut Input<impl Read>) -> Result<Sequence, LoadError> {
        let mut sequence = self.sequence();
        sequence.format = load_format(input)?;
        self.config().format.check_switch(&sequence.format)?;
        self.config().check_format(&sequence.format)?;
        let mut length = None;
        let layers = sequence.layers.iter_mut().zip(&sequence.shared.config.windows).enumerate();
        for (index, (layer, window)) in layers {
            let (next, dropped) = (input.u32()?, input.u32()?);
            let all = *length.get_or_insert(next);
            if next != all || dropped > next || (window.is_none() && dropped > 0) {
                return Err(damaged("layers of different lengths"));
            }
            let pages = sequence.shared.pages(index);
            let heads = layer.heads.iter().map(|_| BlockTable::load(pages, next, input));
            let heads: Vec<BlockTable> = heads.collect::<Result<_, _>>()?;
            let scores = load_scores(&heads, next, input)?;
            *layer = Layer { heads, next, dropped, scores };
        }
        sequence.states = States::load(&sequence.shared, length.unwrap_or(0), input)?;
        Ok(sequence)
    }
}

fn load_format(input: &mut Input<impl Read>) -> Result<KvFormat, LoadError> {
    let n = input.u32()?;
    if n > NAME_BYTES {
        return Err(damaged("unknown storage format"));
    }
    let mut name = vec![0; n as usize];
    input.fill(&mut name)?;
    let format: KvFormat = String::from_utf8_lossy(&name).parse()?;
    Ok(format.with_window(input.u32()? as usize))
}

fn save_scores(scores: &LayerScores, out: &mut dyn Write) -> io::Result<()> {
    let AccumulatedScores { sum, recent, last, peak } = &scores.accumulated;
    for rows in [sum, recent, last, peak] {
        save_rows(rows, out)?;
    }
    let bounds: Vec<u32> = scores.queries.iter().flat_map(|q| [q.start, q.end]).collect();
    put_u32s(out, &bounds)?;
    let PostPrefillScores { reconstruction, expected, expected_max } = &scores.post_prefill;
    save_rows(reconstruction, out)?;
    save_rows(expected, out)?;
    save_rows(expected_max, out)
}

fn load_scores(
    heads: &[BlockTable],
    next: u32,
    input: &mut Input<impl Read>,
) -> Result<LayerScores, LoadError> {
    let mut rows = || load_rows(input);
    let accumulated = AccumulatedScores { sum: rows()?, recent: rows()?, last: rows()?, peak: rows()? };
    let bounds = input.u32s()?;
    let (pairs, rest) = bounds.as_chunks::<2>();
    let queries: Vec<Range<u32>> = pairs.iter().map(|&[start, end]| start..end).collect();
    if !rest.is_empty() || queries.iter().any(|q| q.start > q.end || q.end > next) {
        return Err(damaged("queries outside of the text"));
    }
    let mut scores = LayerScores::default();
    scores.set_accumulated(heads, accumulated, queries)?;
    let mut rows = || load_rows(input);
    scores.set_post_prefill(
        heads,
        PostPrefillScores { reconstruction: rows()?, expected: rows()?, expected_max: rows()? },
    )?;
    Ok(scores)
}

fn save_rows(rows: &[Vec<f32>], out: &mut dyn Write) -> io::Result<()> {
    put_u32(out, rows.len() as u32)?;
    rows.iter().try_for_each(|row| put_f32s(out, row))
}

fn load_rows(input: &mut Input<impl Read>) -> Result<Vec<Vec<f32>>, LoadError> {
    let n = input.u32()?;
    // Each row has its own count.
    if u64::from(n) > input.remaining() / 4 {
        return Err(damaged("the file ends early"));
    }
    (0..n).map(|_| input.f32s()).collect()
}
