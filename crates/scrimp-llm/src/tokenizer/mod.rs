//! Text to token ids and back.
//!
//! One type has two engines. GGUF files have a vocabulary and, depending on the kind, merges or scores. Our own engine
//! ([`bpe`], [`spm`]) is built from them in some milliseconds and returns the ids of llama.cpp. Hugging Face
//! directories have `tokenizer.json`, which the `tokenizers` crate runs ([`hf`]).
//!
//! Both engines cut out special tokens first. Both decode alike: a token is a string of bytes
//! ([`Tokenizer::token_bytes`]), and a text is their concatenation.

mod alphabet;
mod bpe;
mod ends;
mod gguf;
mod hf;
mod merge;
mod piece;
mod pretokenize;
mod spm;
mod stream;
mod vocab;

use std::fmt;

pub(crate) use hf::Files;
pub use stream::StreamDecoder;

use self::{
    bpe::Bpe,
    hf::HfTokenizer,
    piece::Spelling,
    spm::Spm,
    vocab::{Kind, Specials, Vocab},
};
use crate::error::{Error, Result};

/// A model's tokenizer. Threads may share it.
pub struct Tokenizer {
    engine: Engine,
    spelling: Spelling,
    prefix: SpacePrefix,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    /// Tokens that end an answer; sorted.
    ends: Vec<u32>,
    warning: Option<String>,
}

#[expect(clippy::large_enum_variant, reason = "a process has one or two of them")]
enum Engine {
    /// Built from GGUF metadata.
    Native { vocab: Vocab, specials: Specials, words: Words },
    /// Built from `tokenizer.json`.
    Hf(Box<HfTokenizer>),
}

/// The engine for text between special tokens.
#[expect(clippy::large_enum_variant, reason = "a process has one or two of them")]
enum Words {
    Bpe(Bpe),
    Spm(Spm),
}

/// The places where the tokenizer adds a space before the text. Decoding removes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpacePrefix {
    Never,
    /// At the beginning of a text.
    AtStart,
    /// At the beginning and after each special token.
    AfterSpecial,
}

impl Tokenizer {
    /// Ids of `text`. `add_bos` adds the begin-of-text token if the tokenizer has one ([`Tokenizer::adds_bos`]). With
    /// `parse_special`, the names of special tokens (`<|im_start|>`) become these tokens. Without it, they are plain
    /// text, which is right for the input of users.
    ///
    /// # Errors
    /// `text` is 4 GiB or longer, or the tokenizer cannot express it.
    pub fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Result<Vec<u32>> {
        // SentencePiece's marks and the byte alphabet make a text up to three times longer.
        if text.len() > u32::MAX as usize / 4 {
            return Err(Error::bad_input(format!("a text of {} bytes is too long to tokenize", text.len())));
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add_bos && self.adds_bos {
            ids.extend(self.bos);
        }
        match &self.engine {
            Engine::Native { vocab, specials, words } => {
                let wanted =
                    |id| parse_special || !matches!(vocab.kind(id), Some(Kind::Control | Kind::Unknown));
                let (mut at, mut after_special) = (0, true);
                while at < text.len() {
                    let found = specials.find(text.as_bytes(), at, wanted);
                    let end = found.as_ref().map_or(text.len(), |m| m.start);
                    if at < end {
                        match words {
                            Words::Bpe(bpe) => bpe.encode(vocab, &text[at..end], &mut ids)?,
                            Words::Spm(spm) => spm.encode(vocab, &text[at..end], after_special, &mut ids),
                        }
                    }
                    let Some(found) = found else { break };
                    ids.push(found.id);
                    (at, after_special) = (found.end, true);
                    if found.strip_after {
                        at = text.len() - text[at..].trim_ascii_start().len();
                    }
                }
            }
            Engine::Hf(hf) => hf.encode(text, parse_special, &mut ids)?,
        }
        Ok(ids)
    }

    /// The text of `ids`, without special tokens. Invalid UTF-8 becomes U+FFFD; unknown ids are ignored.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    /// The text of `ids`, without special tokens or with their names.
    pub fn decode_with(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = StreamDecoder::new(self, skip_special, true);
        let mut text = String::new();
        for &id in ids {
            stream.push_into(id, &mut text);
        }
        text.push_str(&stream.finish());
        text
    }

    /// Decodes tokens one by one, as the beginning of a text; special tokens are left out.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self, true, true)
    }

    /// As [`Tokenizer::stream`], for tokens that follow `prompt`: a space at the beginning is dropped only
    /// if the tokenizer added it.
    pub fn stream_after(&self, prompt: &[u32]) -> StreamDecoder<'_> {
        let at_start = prompt.last().is_none_or(|&id| self.is_cut_out(id));
        StreamDecoder::new(self, true, at_start)
    }

    /// The bytes that token `id` represents. A special token has its name, an unused one no bytes. `None`: there is no
    /// such token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        match &self.engine {
            Engine::Native { vocab, .. } => {
                let text = vocab.text(id);
                Some(match vocab.kind(id)? {
                    Kind::Normal => self.spelling.bytes(text),
                    Kind::Control | Kind::Unknown | Kind::UserDefined => text.to_vec(),
                    Kind::Byte => piece::byte_token(text).map_or_else(|| text.to_vec(), |byte| vec![byte]),
                    Kind::Unused => Vec::new(),
                })
            }
            Engine::Hf(hf) => hf.token_bytes(id, self.spelling),
        }
    }

    /// The id whose text in the vocabulary is exactly `text`. This finds special tokens by name.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        match &self.engine {
            Engine::Native { vocab, .. } => vocab.id(text.as_bytes()),
            Engine::Hf(hf) => hf.token_id(text),
        }
    }

    /// A reason to doubt the tokens, for the user.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Number of tokens. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        match &self.engine {
            Engine::Native { vocab, .. } => vocab.len(),
            Engine::Hf(hf) => hf.vocab_size(),
        }
    }

    /// The begin-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token that the file names. Chat models often end with another one: see [`Tokenizer::is_end`].
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether texts begin with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether generation ends with `id`: the end of a text, of a turn, or of a message.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// All tokens for which [`Tokenizer::is_end`] holds, in ascending order.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether `id` is structure, which decoded text leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.engine {
            Engine::Native { vocab, .. } => matches!(vocab.kind(id), Some(Kind::Control | Kind::Unknown)),
            Engine::Hf(hf) => hf.is_special(id),
        }
    }

    /// The tokens before a text, before the text behind a gap, and before the text of the gap. `None`: the model cannot fill
    /// gaps.
    pub fn infill_marks(&self) -> Option<[u32; 3]> {
        ends::INFILL_MARKS.iter().find_map(|[before, after, middle]| {
            Some([self.token_id(before)?, self.token_id(after)?, self.token_id(middle)?])
        })
    }

    /// Whether `id` is cut out of the text before the rest is tokenized.
    fn is_cut_out(&self, id: u32) -> bool {
        match &self.engine {
            Engine::Native { vocab, .. } => {
                matches!(vocab.kind(id), Some(Kind::Control | Kind::Unknown | Kind::UserDefined))
            }
            Engine::Hf(hf) => hf.is_special(id),
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = match &self.engine {
            Engine::Native { words: Words::Bpe(_), .. } => "byte-pair encoding",
            Engine::Native { words: Words::Spm(_), .. } => "SentencePiece",
            Engine::Hf(_) => "tokenizer.json",
        };
        f.debug_struct("Tokenizer")
            .field("engine", &engine)
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("adds_bos", &self.adds_bos)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}
