//! Built-in texts for benchmarks and calibration. The prose is chapters I to V of *Alice's Adventures in Wonderland* by
//! Lewis Carroll (1865, in the public domain), 57,866 bytes of ASCII. The source code is 24 KB of Rust, Python and
//! shell of this project.

use crate::error::{Error, Result};

/// The prose.
pub const TEXT: &str = include_str!("../assets/alice.txt");

/// Source code.
pub const CODE: &str = include_str!("../assets/code.txt");

/// The first `count` tokens of the prose, repeated if it is too short, after `bos` if there is one.
///
/// `encode` returns the token ids of a text, without special tokens.
///
/// # Errors
/// `encode` fails or returns no tokens.
pub fn tokens(
    count: usize,
    bos: Option<u32>,
    encode: impl FnOnce(&str) -> Result<Vec<u32>>,
) -> Result<Vec<u32>> {
    let ids = encode(TEXT)?;
    if ids.is_empty() {
        return Err(Error::bad_input("the tokenizer finds no token in the built-in text"));
    }
    Ok(bos.into_iter().chain(ids.into_iter().cycle()).take(count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_round_as_often_as_needed() {
        assert_eq!(tokens(6, Some(9), |_| Ok(vec![1, 2])).unwrap(), [9, 1, 2, 1, 2, 1]);
        assert_eq!(tokens(1, None, |_| Ok(vec![1, 2])).unwrap(), [1]);
        assert!(tokens(1, None, |_| Ok(vec![])).is_err());
        assert!(TEXT.starts_with("CHAPTER I.") && TEXT.is_ascii());
    }
}
