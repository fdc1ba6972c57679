//! The error type, shared by all crates of scrimp.

pub use scrimp_base::{Category, Error, Hint, Result, translate_settings};
