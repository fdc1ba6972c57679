//! The error type of this crate is the one that all crates of scrimp share.

pub use scrimp_base::{Category, Error, Hint, Result, translate_settings};
