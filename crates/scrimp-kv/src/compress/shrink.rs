//! The settings that measure best: the default of a budget, and caches that are smaller by a factor.
//!
//! `benches/kv/quality.md` has the measurements.

use super::{Budget, Compression, Crush};
use crate::{error::KvError, format::KvFormat, policy::policy};

/// The policy that is the default of a budget.
pub const DEFAULT_POLICY: &str = "expected-max";
/// The share of representatives that goes with [`DEFAULT_POLICY`].
pub const DEFAULT_SHARE: f64 = 0.5;

/// Factors, the share of the tokens that are kept in `int4`, and KVCrush's share of them. `int4` alone is 3.56 to 3.66
/// times smaller than `bf16`.
const FACTORS: [(u32, f64, f64); 3] = [(4, 0.8, 0.1), (8, 0.36, 0.25), (16, 0.152, 0.25)];

/// A compression and a format by which a cache takes a fraction of the bytes of a whole cache in `bf16`.
#[derive(Debug, Clone, PartialEq)]
pub struct Shrink {
    /// The selection of tokens.
    pub compression: Compression,
    /// The storage format.
    pub format: &'static str,
}

impl Shrink {
    /// The setting for a cache that is `factor` times smaller: 4, 8 or 16.
    ///
    /// # Errors
    /// When there is no setting for the factor; the message lists all factors.
    pub fn new(factor: u32) -> Result<Self, KvError> {
        let Some(&(_, share, crush)) = FACTORS.iter().find(|&&(of, ..)| of == factor) else {
            let known: Vec<_> = FACTORS.iter().map(|(factor, ..)| factor.to_string()).collect();
            return Err(KvError::BadInput(format!(
                "there is no KV cache that is {factor} times smaller; there are {}",
                known.join(", ")
            )));
        };
        let mut compression = Compression::new(policy(DEFAULT_POLICY)?, Budget::Fraction(share));
        compression.crush = Crush { share: crush, ..Crush::default() };
        Ok(Self { compression, format: "int4" })
    }

    /// [`Shrink::format`] as a format.
    pub fn kv_format(&self) -> KvFormat {
        self.format.parse().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_have_valid_settings() {
        for (factor, ..) in FACTORS {
            let shrink = Shrink::new(factor).unwrap();
            assert!(shrink.compression.check().is_ok() && shrink.compression.fit);
            assert_eq!(shrink.kv_format().name(), "int4");
        }
        assert!(Shrink::new(5).unwrap_err().to_string().ends_with("there are 4, 8, 16"));
    }
}
