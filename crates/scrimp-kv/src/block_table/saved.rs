//! The table of a KV head in the file of a saved sequence.
//!
//! ```text
//! len | positions: 0 first  or  1 list | rotations | blocks of [kind: open, int8, int4, sparse | biases | K page | V page]
//! ```
//! Pages are stored as they are in memory.

use super::{BlockTable, Positions};
use crate::{
    block::Block,
    cache::Pages,
    wire::{Input, LoadError, damaged, put_f32s, put_u8, put_u32, put_u32s},
};
use scrimp_kernels::attention::{PackedKind, Sparse};
use std::{
    io::{self, Read, Write},
    sync::Arc,
};

/// Kinds of pages in a file.
const OPEN: u8 = 0;
const INT8: u8 = 1;
const INT4: u8 = 2;
const SPARSE: u8 = 3;

impl BlockTable {
    /// Writes the table.
    pub(crate) fn save(&self, out: &mut dyn Write) -> io::Result<()> {
        put_u32(out, self.len as u32)?;
        match &self.positions {
            Positions::Run(first) => {
                put_u8(out, 0)?;
                put_u32(out, *first)?;
            }
            Positions::List(list) => {
                put_u8(out, 1)?;
                put_u32s(out, list)?;
            }
        }
        put_u32s(out, &self.rotated_by)?;
        self.blocks.iter().try_for_each(|block| save_block(block, out))
    }

    /// Reads a table whose tokens are all before position `next`.
    pub(crate) fn load(pages: Pages<'_>, next: u32, input: &mut Input<impl Read>) -> Result<Self, LoadError> {
        let len = input.u32()? as usize;
        let positions = match input.u8()? {
            0 => Positions::Run(input.u32()?),
            1 => Positions::List(input.u32s()?),
            _ => return Err(damaged("unknown kind of positions")),
        };
        let inside = match &positions {
            Positions::Run(first) => len == 0 || *first as usize + len <= next as usize,
            Positions::List(list) => {
                list.len() == len && list.is_sorted_by(|a, b| a < b) && list.last().is_none_or(|&p| p < next)
            }
        };
        let rotated_by = input.u32s()?;
        let mut table =
            Self { len, positions, rotated_by, stale_tail: !len.is_multiple_of(16), ..Self::new() };
        let rotated_inside = table.rotated_by.len() <= len
            && table.rotated_by.iter().enumerate().all(|(i, &by)| by <= next - table.position(i).min(next));
        if !inside || !rotated_inside {
            return Err(damaged("positions outside of the text"));
        }
        let blocks = len.div_ceil(pages.geometry.page_tokens);
        for _ in 0..blocks {
            let block = load_block(pages, len, input)?;
            table.biased |= block.bias.is_some();
            table.blocks.push(block);
        }
        Ok(table)
    }
}

fn save_block(block: &Block, out: &mut dyn Write) -> io::Result<()> {
    match block.packed {
        None => put_u8(out, OPEN)?,
        Some(PackedKind::Int8) => put_u8(out, INT8)?,
        Some(PackedKind::Int4) => put_u8(out, INT4)?,
        Some(PackedKind::Sparse(sparse)) => {
            put_u8(out, SPARSE)?;
            sparse.thousandths().iter().try_for_each(|&x| put_u32(out, u32::from(x)))?;
        }
    }
    put_f32s(out, block.bias.as_deref().unwrap_or_default())?;
    out.write_all(&block.k)?;
    out.write_all(&block.v)
}

/// Reads a block of a head with `tokens` tokens.
fn load_block(pages: Pages<'_>, tokens: usize, input: &mut Input<impl Read>) -> Result<Block, LoadError> {
    let g = pages.geometry;
    let packed = match input.u8()? {
        OPEN => None,
        INT8 => Some(PackedKind::Int8),
        INT4 => Some(PackedKind::Int4),
        SPARSE => {
            let sparse = Sparse::from_thousandths([input.u32()?, input.u32()?]);
            Some(PackedKind::Sparse(sparse.ok_or_else(|| damaged("shares of sparse pages"))?))
        }
        _ => return Err(damaged("unknown kind of pages")),
    };
    if packed.is_some_and(|kind| !kind.fits(g)) {
        return Err(damaged("packed pages that do not fit the model"));
    }
    let bias = input.f32s()?;
    if !bias.is_empty() && bias.len() != g.page_tokens {
        return Err(damaged("biases that do not fit the page"));
    }
    let [k_bytes, v_bytes] = packed.map_or([pages.open_bytes(); 2], |kind| kind.packing().page_bytes(g));
    if (k_bytes + v_bytes) as u64 > input.remaining() {
        return Err(damaged("the file ends early"));
    }
    let mut page = |bytes: usize| -> Result<_, LoadError> {
        let mut page = pages.pool.alloc(bytes, tokens)?;
        input.fill(crate::block::bytes_of_new(&mut page))?;
        Ok(page)
    };
    let (k, v) = (page(k_bytes)?, page(v_bytes)?);
    let valid = packed.is_none_or(|kind| kind.packing().is_valid(g, &k, &v));
    let bias = (!bias.is_empty()).then(|| Arc::from(bias));
    if valid { Ok(Block { k, v, bias, packed }) } else { Err(damaged("a packed page contradicts itself")) }
}
