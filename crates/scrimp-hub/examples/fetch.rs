//! Downloads a model into the cache, unless it is there, and prints its path.
//!
//! ```text
//! cargo run --release -p scrimp-hub --example fetch -- smollm2
//! ```
#![allow(clippy::print_stdout)]

use scrimp_base::{Error, Result};
use scrimp_hub::{Hub, ModelRef, Silent};

fn main() -> Result<()> {
    let Some(reference) = std::env::args().nth(1) else {
        return Err(Error::bad_input("usage: fetch REFERENCE"));
    };
    let path = Hub::from_env()?.fetch(&ModelRef::parse(&reference)?, &mut Silent)?;
    println!("{}", path.display());
    Ok(())
}
