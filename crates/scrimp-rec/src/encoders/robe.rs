//! ROBE (Desai et al., "Random Offset Block Embedding", arXiv 2108.02191): a hash gives the offset of each block of the vector in
//! one array. Offsets are unaligned, so that blocks overlap.

use super::{
    Encoder, EncoderConfig, EncoderEntry, EncoderOptions, IdCounts, hashed_blocks::HashedBlocks, too_small,
};
use crate::Result;

pub(super) const ENTRY: EncoderEntry = EncoderEntry {
    name: "robe",
    about: "blocks at unaligned places of one array (Desai et al., 2021)",
    plan,
    build,
};

fn plan(options: &EncoderOptions, id_counts: &IdCounts) -> Result<EncoderConfig> {
    let block_dim = options.block_dim.unwrap_or(8).min(options.dim);
    let values = options.precision.fitting(options.budget, block_dim, 1);
    if values < block_dim as u64 {
        return Err(too_small(options));
    }
    // The last start leaves a whole block.
    let starts = u32::try_from(values - block_dim as u64 + 1).unwrap_or(u32::MAX >> 1).min(u32::MAX >> 2);
    let base = options.base(id_counts.distinct.len());
    Ok(EncoderConfig { rows: vec![starts], block_dim, signs: options.signs.unwrap_or(true), ..base })
}

fn build(config: &EncoderConfig, _: &[u64]) -> Result<Box<dyn Encoder>> {
    Ok(Box::new(HashedBlocks::new(config, 1, super::memrec::spread(config))?))
}
