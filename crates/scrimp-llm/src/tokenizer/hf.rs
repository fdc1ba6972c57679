//! The tokenizer in a Hugging Face directory: `tokenizer.json` and the files beside it.

use std::{collections::HashMap, path::Path, sync::OnceLock};

use serde_json::Value;

use super::{
    Engine, SpacePrefix, Tokenizer, ends,
    piece::{Spelling, byte_token},
};
use crate::{
    error::{Error, Result},
    load::SideFiles,
};

/// `tokenizer.json`, run by the `tokenizers` crate.
pub(super) struct HfTokenizer {
    parsing: tokenizers::Tokenizer,
    /// A copy that reads special tokens as text, created at the first use.
    plain: OnceLock<Box<tokenizers::Tokenizer>>,
    /// Added tokens: their text, and whether they are structure.
    added: HashMap<u32, (String, bool)>,
    size: usize,
    byte_fallback: bool,
}

impl HfTokenizer {
    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, parse_special: bool, ids: &mut Vec<u32>) -> Result<()> {
        let tokenizer = if parse_special {
            &self.parsing
        } else {
            self.plain.get_or_init(|| {
                let mut plain = Box::new(self.parsing.clone());
                plain.set_encode_special_tokens(true);
                plain
            })
        };
        let encoding = tokenizer
            .encode_fast(text, false)
            .map_err(|e| Error::bad_input(format!("the text cannot be tokenized: {e}")))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    pub(super) fn token_bytes(&self, id: u32, spelling: Spelling) -> Option<Vec<u8>> {
        if let Some((text, _)) = self.added.get(&id) {
            return Some(text.clone().into_bytes());
        }
        let text = self.parsing.id_to_token(id)?;
        match byte_token(text.as_bytes()).filter(|_| self.byte_fallback) {
            Some(byte) => Some(vec![byte]),
            None => Some(spelling.bytes(text.as_bytes())),
        }
    }

    pub(super) fn token_id(&self, text: &str) -> Option<u32> {
        self.parsing.token_to_id(text)
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.size
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|(_, special)| *special)
    }
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face directory: `tokenizer.json`, with `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `config.json` if they exist.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, damaged, or has an unknown decoder.
    pub fn from_hf_dir(dir: &Path) -> Result<Self> {
        Self::from_side_files(&SideFiles::in_dir(dir))
    }

    /// As [`Tokenizer::from_hf_dir`], for files in any place.
    ///
    /// # Errors
    /// As [`Tokenizer::from_hf_dir`].
    pub fn from_side_files(side: &SideFiles) -> Result<Self> {
        let path = side.path("tokenizer.json");
        let bytes = side.read("tokenizer.json")?.ok_or_else(|| {
            Error::bad_input(format!("{} has no tokenizer.json", side.place().display()))
                .with_hint("fetch tokenizer.json along with the weights, or use a GGUF file of the model")
        })?;
        let mut parsing = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::damaged_file(&path, format!("no usable tokenizer: {e}")))?;
        // Padding and truncation are for training batches.
        parsing.with_padding(None);
        parsing
            .with_truncation(None)
            .map_err(|e| Error::damaged_file(&path, format!("no usable tokenizer: {e}")))?;

        let decoder = Decoder::of(&path, &parsing)?;
        let added: HashMap<u32, (String, bool)> = parsing
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, token)| (id, (token.content, token.special)))
            .collect();
        let most = added.keys().max().map_or(0, |&id| id as usize + 1);
        let size = parsing.get_vocab_size(true).max(most);

        let files = Files::read(side)?;
        let bos = files.token("bos_token").and_then(|t| parsing.token_to_id(&t));
        let eos = files.token("eos_token").and_then(|t| parsing.token_to_id(&t));
        let adds_bos = bos.is_some() && files.adds_bos().unwrap_or_else(|| begins_with(&parsing, bos));
        let is_control = |id| added.get(&id).is_some_and(|(_, special)| *special);
        let mut ends = ends::find(|name| parsing.token_to_id(name), is_control);
        ends.extend(eos);
        ends.extend(files.eos_ids());
        ends.sort_unstable();
        ends.dedup();

        let hf = HfTokenizer {
            parsing,
            plain: OnceLock::new(),
            added,
            size,
            byte_fallback: decoder.spelling == Spelling::SentencePiece,
        };
        Ok(Self {
            engine: Engine::Hf(Box::new(hf)),
            spelling: decoder.spelling,
            prefix: decoder.prefix,
            bos,
            eos,
            adds_bos,
            ends,
            warning: None,
        })
    }
}

/// Whether the post-processor puts `bos` before a text.
fn begins_with(tokenizer: &tokenizers::Tokenizer, bos: Option<u32>) -> bool {
    tokenizer.encode_fast("", true).is_ok_and(|e| e.get_ids().first().copied() == bos)
}

/// The decoder of `tokenizer.json`.
struct Decoder {
    spelling: Spelling,
    prefix: SpacePrefix,
}

impl Decoder {
    fn of(path: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        let steps = match decoder.get("decoders") {
            Some(Value::Array(steps)) => steps.as_slice(),
            _ => std::slice::from_ref(&decoder),
        };
        let kinds: Vec<&str> = steps.iter().filter_map(|s| s.get("type")?.as_str()).collect();
        if kinds.contains(&"ByteLevel") {
            return Ok(Self { spelling: Spelling::ByteLevel, prefix: SpacePrefix::Never });
        }
        if !kinds.iter().all(|k| matches!(*k, "Replace" | "ByteFallback" | "Fuse" | "Strip" | "Metaspace"))
            || kinds.is_empty()
        {
            return Err(Error::unsupported(
                format!("{}: its decoder {kinds:?} is not supported", path.display()),
                "byte-level BPE and SentencePiece tokenizers work; a GGUF file of the model may work, too",
            ));
        }
        let strips = steps.iter().any(|step| match step["type"].as_str() {
            Some("Strip") => step["content"] == " " && step["start"] != 0,
            Some("Metaspace") => step["prepend_scheme"] != "never",
            _ => false,
        });
        let prefix = if strips { SpacePrefix::AtStart } else { SpacePrefix::Never };
        Ok(Self { spelling: Spelling::SentencePiece, prefix })
    }
}

/// The small JSON files beside `tokenizer.json`; missing ones are `Null`.
pub(crate) struct Files {
    pub(crate) tokenizer_config: Value,
    special_tokens_map: Value,
    generation_config: Value,
    config: Value,
}

impl Files {
    /// Reads the existing files.
    pub(crate) fn read(side: &SideFiles) -> Result<Self> {
        let read = |name: &str| match side.read(name)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::damaged_file(&side.path(name), format!("not valid JSON: {e}"))),
            None => Ok(Value::Null),
        };
        Ok(Self {
            tokenizer_config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            generation_config: read("generation_config.json")?,
            config: read("config.json")?,
        })
    }

    /// Text of a special token (`bos_token`, `eos_token`): a string, or an object with `content`.
    pub(crate) fn token(&self, key: &str) -> Option<String> {
        [&self.tokenizer_config, &self.special_tokens_map].into_iter().find_map(|file| {
            let value = file.get(key)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        })
    }

    fn adds_bos(&self) -> Option<bool> {
        self.tokenizer_config.get("add_bos_token")?.as_bool()
    }

    /// `eos_token_id`, a number or several.
    fn eos_ids(&self) -> Vec<u32> {
        let sources = [&self.generation_config, &self.config, &self.config["text_config"]];
        let Some(ids) = sources.into_iter().find_map(|f| f.get("eos_token_id").filter(|v| !v.is_null()))
        else {
            return Vec::new();
        };
        let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
        ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    }
}
