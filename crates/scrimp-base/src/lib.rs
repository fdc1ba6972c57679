//! The error type, atomic files, names of shards and random numbers that every crate of scrimp shares.
//!
//! ```
//! use scrimp_base::{Category, Error};
//!
//! let error = Error::bad_input("the text has 12 tokens, and 512 are needed")
//!     .with_hint("use a longer text, or a smaller `context`");
//! assert_eq!(error.category(), Category::BadInput);
//! // The command names its flags where the library names its settings.
//! let hint = error.hint().unwrap().translate(|setting| Some(format!("--{setting}")));
//! assert_eq!(hint, "use a longer text, or a smaller --context");
//! ```
#![forbid(unsafe_code)]

pub mod atomic_file;
pub mod error;
pub mod random;
pub mod shards;

pub use atomic_file::{AtomicFile, check_outputs};
pub use error::{Category, Error, Hint, Result, translate_settings};
pub use random::SplitMix64;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
