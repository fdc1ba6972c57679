//! What the user calls a model.

use crate::error::Result;
use std::path::PathBuf;

/// A parsed model reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A file or directory that is already here.
    Path(PathBuf),
}

impl ModelRef {
    /// Parses what the user typed.
    ///
    /// # Errors
    /// When it is no reference of a known kind.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self::Path(text.into()))
    }
}
