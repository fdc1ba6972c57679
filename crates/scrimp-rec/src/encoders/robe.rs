//! ROBE (Desai et al., "Random Offset Block Embedding", arXiv 2108.02191): one array of numbers; each block of the vector starts at
//! a hashed place in it, unaligned, so that blocks overlap.

use super::{Census, Encoder, EncoderConfig, EncoderEntry, EncoderOptions, hashed_blocks::Bloom, too_small};
use crate::Result;

pub(super) const ENTRY: EncoderEntry = EncoderEntry {
    name: "robe",
    about: "blocks at unaligned places of one array (Desai et al., 2021)",
    plan,
    build,
};

fn plan(options: &EncoderOptions, census: &Census) -> Result<EncoderConfig> {
    let width = options.width.unwrap_or(8).min(options.dim);
    let values = options.precision.fitting(options.budget, width, 1);
    if values < width as u64 {
        return Err(too_small(options));
    }
    // The last start leaves a whole block.
    let starts = u32::try_from(values - width as u64 + 1).unwrap_or(u32::MAX >> 1).min(u32::MAX >> 2);
    let base = options.base(census.distinct.len());
    Ok(EncoderConfig { rows: vec![starts], width, signs: options.signs.unwrap_or(true), ..base })
}

fn build(config: &EncoderConfig, _: &[u64]) -> Result<Box<dyn Encoder>> {
    Ok(Box::new(Bloom::new(config, 1, super::memrec::spread(config))?))
}
