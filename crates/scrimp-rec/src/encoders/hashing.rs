//! The hashing trick (Weinberger et al., 2009): a hash of the id is its row number. Ids that collide share the row.

use super::{
    Encoder, EncoderConfig, EncoderEntry, EncoderOptions, IdCounts, hashed_blocks::HashedBlocks, too_small,
};
use crate::Result;

pub(super) const ENTRY: EncoderEntry = EncoderEntry {
    name: "hashing",
    about: "one row by hash, shared by the ids that collide (Weinberger et al., 2009)",
    plan,
    build,
};

fn plan(options: &EncoderOptions, id_counts: &IdCounts) -> Result<EncoderConfig> {
    let rows = options.precision.rows_in(options.budget, options.dim);
    if rows == 0 {
        return Err(too_small(options));
    }
    let rows = u32::try_from(rows).unwrap_or(u32::MAX >> 2).min(u32::MAX >> 2);
    Ok(EncoderConfig { rows: vec![rows], num_hashes: 1, ..options.base(id_counts.distinct.len()) })
}

fn build(config: &EncoderConfig, _: &[u64]) -> Result<Box<dyn Encoder>> {
    Ok(Box::new(HashedBlocks::new(config, config.block_dim, super::memrec::spread(config))?))
}
