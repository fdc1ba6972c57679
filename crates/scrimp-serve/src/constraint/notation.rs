//! Grammars in the notations of clients.

use super::{MAX_SCHEMA, gbnf};
use llguidance::api::TopLevelGrammar;
use scrimp_llm::{Error, Result};

/// A grammar.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Notation {
    /// llguidance's variant of Lark.
    Lark(String),
    /// llama.cpp's GBNF.
    Gbnf(String),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Notation {
    /// A grammar in GBNF or Lark: GBNF defines rules with `::=`.
    pub(crate) fn detect(text: String) -> Self {
        if text.contains("::=") { Self::Gbnf(text) } else { Self::Lark(text) }
    }

    /// The grammar for llguidance.
    pub(super) fn compile(&self) -> Result<TopLevelGrammar> {
        let bytes = match self {
            Self::Lark(text) | Self::Gbnf(text) | Self::Regex(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        };
        if bytes > MAX_SCHEMA {
            return Err(Error::bad_input(format!("a grammar can have at most {MAX_SCHEMA} bytes")));
        }
        Ok(match self {
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                let texts: Vec<_> = texts.iter().map(|text| escaped(text)).collect();
                TopLevelGrammar::from_regex(&format!("({})", texts.join("|")))
            }
        })
    }
}

/// A regular expression that matches exactly `text`.
fn escaped(text: &str) -> String {
    let one = |c: char| if c.is_alphanumeric() { c.to_string() } else { format!("\\x{{{:x}}}", c as u32) };
    text.chars().map(one).collect()
}
