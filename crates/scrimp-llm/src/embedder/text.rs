//! Texts as an embedding model sees them: tokens with the special ones around them, cut to the model's length.

use crate::{
    encoder::EncodedText,
    error::{Error, Result},
    tokenizer::Tokenizer,
};
use std::path::Path;

/// The tokenizer of an embedding model.
pub(super) enum TextEncoder {
    /// `tokenizer.json` with its post-processor, which adds special tokens.
    Json(Box<tokenizers::Tokenizer>),
    /// The tokenizer of a GGUF file; an end-of-text token follows where `adds_eos`.
    Native { tokenizer: Box<Tokenizer>, adds_eos: bool },
}

/// A text in tokens.
pub(super) struct Tokens {
    pub(super) text: EncodedText,
    /// The text was longer than the model allows.
    pub(super) truncated: bool,
}

impl TextEncoder {
    /// Reads `tokenizer.json` of `dir`.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let damaged = |e: tokenizers::Error| Error::damaged_file(&path, format!("no usable tokenizer: {e}"));
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(damaged)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(damaged)?;
        Ok(Self::Json(Box::new(tokenizer)))
    }

    /// The tokens of a text or a pair of texts, at most `max_tokens`. The longer text of a pair is cut first.
    ///
    /// # Errors
    /// When a text cannot be tokenized.
    pub(super) fn encode(&self, text: &str, pair: Option<&str>, max_tokens: usize) -> Result<Tokens> {
        let failed = |e: tokenizers::Error| Error::bad_input(format!("the text cannot be tokenized: {e}"));
        let (ids, types) = match self {
            Self::Json(tokenizer) => {
                let encoding = match pair {
                    Some(pair) => tokenizer.encode((text, pair), true),
                    None => tokenizer.encode(text, true),
                };
                let mut encoding = encoding.map_err(failed)?;
                if encoding.len() > max_tokens {
                    let mut cutting = tokenizer.as_ref().clone();
                    let truncation =
                        tokenizers::TruncationParams { max_length: max_tokens, ..Default::default() };
                    cutting.with_truncation(Some(truncation)).map_err(failed)?;
                    encoding = match pair {
                        Some(pair) => cutting.encode((text, pair), true),
                        None => cutting.encode(text, true),
                    }
                    .map_err(failed)?;
                    let text = EncodedText {
                        ids: encoding.get_ids().to_vec(),
                        types: encoding.get_type_ids().to_vec(),
                    };
                    return Ok(Tokens { text, truncated: true });
                }
                (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec())
            }
            Self::Native { tokenizer, adds_eos } => {
                let mut ids = tokenizer.encode(text, true, true)?;
                let end = tokenizer.eos().filter(|_| *adds_eos);
                let truncated = ids.len() + usize::from(end.is_some()) > max_tokens;
                ids.truncate(max_tokens - usize::from(end.is_some()));
                ids.extend(end);
                let types = vec![0; ids.len()];
                return Ok(Tokens { text: EncodedText { ids, types }, truncated });
            }
        };
        Ok(Tokens { text: EncodedText { ids, types }, truncated: false })
    }
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Json(_) => "tokenizer.json",
            Self::Native { .. } => "the tokenizer of a GGUF file",
        })
    }
}
