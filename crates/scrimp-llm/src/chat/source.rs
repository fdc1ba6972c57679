//! The chat templates in model files.

use std::path::Path;

use serde_json::Value;

use super::ChatTemplate;
use crate::{
    error::{Error, Result},
    load::{SideFiles, gguf::GgufMetadata},
    tokenizer::{Files, Tokenizer},
};

/// The chat template in a GGUF file, or `None` for a model without one (a base model).
///
/// # Errors
/// When it is not a string or no valid template.
pub fn chat_template_from_gguf(meta: &GgufMetadata, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    let Some(source) = meta.str("tokenizer.chat_template")? else { return Ok(None) };
    let text = |id: Option<u32>| {
        let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    ChatTemplate::new(source, &text(tokenizer.bos()), &text(tokenizer.eos())).map(Some)
}

/// The chat template of a Hugging Face directory: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`
/// (of several named ones, `default`). `None` for a model without one.
///
/// # Errors
/// When a file cannot be read, is no JSON, or the template is not valid.
pub fn chat_template_from_hf_dir(dir: &Path) -> Result<Option<ChatTemplate>> {
    chat_template_from_side_files(&SideFiles::in_dir(dir))
}

/// As [`chat_template_from_hf_dir`], wherever the files are.
///
/// # Errors
/// As [`chat_template_from_hf_dir`].
pub fn chat_template_from_side_files(side: &SideFiles) -> Result<Option<ChatTemplate>> {
    let files = Files::read(side)?;
    let name = "chat_template.jinja";
    let source = match side.read(name)? {
        Some(source) => Some(
            String::from_utf8(source)
                .map_err(|_| Error::damaged_file(&side.path(name), "it is not UTF-8"))?,
        ),
        None => configured(&files.tokenizer_config),
    };
    let Some(source) = source else { return Ok(None) };
    let token = |key| files.token(key).unwrap_or_default();
    ChatTemplate::new(&source, &token("bos_token"), &token("eos_token")).map(Some)
}

/// `chat_template`: a string, or a list of named ones.
fn configured(config: &Value) -> Option<String> {
    let named = |wanted: Option<&str>| {
        let all = config.get("chat_template")?.as_array()?;
        let found = all.iter().find(|t| wanted.is_none_or(|name| t["name"] == name))?;
        found.get("template")?.as_str()
    };
    let plain = config.get("chat_template").and_then(Value::as_str);
    plain.or_else(|| named(Some("default"))).or_else(|| named(None)).map(str::to_owned)
}
