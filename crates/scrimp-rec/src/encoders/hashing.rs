//! The hashing trick (Weinberger et al., 2009): the row of an id is a hash of it; ids that collide are one.

use super::{Census, Encoder, EncoderConfig, EncoderEntry, EncoderOptions, hashed_blocks::Bloom, too_small};
use crate::Result;

pub(super) const ENTRY: EncoderEntry = EncoderEntry {
    name: "hashing",
    about: "one row by hash, shared by the ids that collide (Weinberger et al., 2009)",
    plan,
    build,
};

fn plan(options: &EncoderOptions, census: &Census) -> Result<EncoderConfig> {
    let rows = options.precision.rows_in(options.budget, options.dim);
    if rows == 0 {
        return Err(too_small(options));
    }
    let rows = u32::try_from(rows).unwrap_or(u32::MAX >> 2).min(u32::MAX >> 2);
    Ok(EncoderConfig { rows: vec![rows], k: 1, ..options.base(census.distinct.len()) })
}

fn build(config: &EncoderConfig, _: &[u64]) -> Result<Box<dyn Encoder>> {
    Ok(Box::new(Bloom::new(config, config.width, super::memrec::spread(config))?))
}
