//! Saved KV caches: `--kv-save` and `--kv-load`.
//!
//! A prompt that begins with the saved prompt replaces it; any other prompt continues the saved conversation or text. In
//! both cases the model computes only the tokens that follow the common beginning.

use crate::{App, cli::Usage, format, loaded::Loaded};
use scrimp_kv::compress::Compression;
use scrimp_llm::{
    chat::Message,
    generate::{Sequence, common_prefix},
    model::{SavedSession, SavedText, Session},
};
use std::{path::Path, time::Instant};

/// A cache that was loaded.
pub(super) struct Restored {
    saved: SavedSession,
    /// Seconds that loading took.
    pub(super) seconds: f64,
}

impl Restored {
    /// Loads the cache at `path`.
    pub(super) fn load(
        app: &App,
        loaded: &Loaded,
        path: &Path,
        how: Option<Compression>,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let format = loaded.model.session().kv().format();
        let saved = loaded.model.load_session(path, how, format)?;
        let seconds = started.elapsed().as_secs_f64();
        let bytes = saved.file_bytes;
        app.printer.note(format_args!(
            "[restored {} tokens, {}, in {seconds:.2} s: {:.1} GB/s]",
            saved.text.tokens.len(),
            format::bytes(bytes),
            bytes as f64 / seconds / 1e9
        ));
        Ok(Self { saved, seconds })
    }

    /// The messages of a prompt `text`, with a `system` message: those of the saved conversation and the prompt, or the
    /// prompt alone where it begins with the saved one.
    pub(super) fn messages(&self, system: Option<&str>, text: String) -> anyhow::Result<Vec<Message>> {
        let mut messages = self.conversation(system)?;
        let (head, first) = split_at_first_user(&messages);
        if first.is_some_and(|first| text.starts_with(&first.content)) {
            return Ok(head.iter().cloned().chain([Message::new("user", text)]).collect());
        }
        match messages.last_mut().filter(|last| last.role == "user") {
            // The saved prompt was not answered.
            Some(last) => last.content += &format!("\n\n{text}"),
            None => messages.push(Message::new("user", text)),
        }
        Ok(messages)
    }

    /// The saved conversation. A `system` message must be the saved one.
    pub(super) fn conversation(&self, system: Option<&str>) -> anyhow::Result<Vec<Message>> {
        let saved = &self.saved.text.messages;
        if saved.is_empty() {
            return Err(Usage("this cache was saved with --raw; load it with --raw".into()).into());
        }
        let saved_system = saved.iter().find(|m| m.role == "system").map(|m| m.content.as_str());
        if system.is_some_and(|system| saved_system != Some(system)) {
            let what = "the saved conversation has another system message; leave --system out";
            return Err(Usage(what.into()).into());
        }
        Ok(saved.clone())
    }

    /// The tokens and the text of a prompt `text` without chat template.
    pub(super) fn raw(&self, loaded: &Loaded, text: String) -> anyhow::Result<(Vec<u32>, String)> {
        let SavedText { tokens, messages, prompt } = &self.saved.text;
        if !messages.is_empty() {
            return Err(Usage("this cache was saved without --raw; load it without".into()).into());
        }
        if text.starts_with(prompt.as_str()) {
            return Ok((loaded.tokenizer.encode(&text, true, true)?, text));
        }
        let more = loaded.tokenizer.encode(&text, false, true)?;
        Ok((tokens.iter().copied().chain(more).collect(), prompt.clone()))
    }

    /// The sequence for a prompt `ids`: the saved one, up to the common beginning. Without `ids`, all of it.
    pub(super) fn sequence(self, loaded: &Loaded, ids: Option<&[u32]>) -> Sequence<Session> {
        let SavedSession { mut session, text: SavedText { mut tokens, .. }, .. } = self.saved;
        if let Some(ids) = ids {
            let common = common_prefix(&tokens, ids);
            let kept = common.min(ids.len().saturating_sub(1));
            if kept < tokens.len() {
                session.truncate_compressed(kept);
                tokens.truncate(session.len());
            }
        }
        Sequence::resume(session, tokens, loaded.model.context_length())
    }
}

/// The messages before the first one of the user, and that one.
fn split_at_first_user(messages: &[Message]) -> (&[Message], Option<&Message>) {
    let first = messages.iter().position(|m| m.role == "user").unwrap_or(messages.len());
    (&messages[..first], messages.get(first))
}

/// Writes the cache of `sequence` to `path`.
pub(super) fn save(
    app: &App,
    sequence: &Sequence<Session>,
    path: &Path,
    text: SavedText,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let text = SavedText { tokens: sequence.tokens().to_vec(), ..text };
    let bytes = sequence.source().save(path, &text)?;
    app.printer.note(format_args!(
        "[saved {} tokens, {}, to {} in {:.2} s]",
        text.tokens.len(),
        format::bytes(bytes),
        path.display(),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_of_the_user() {
        let messages =
            [Message::new("system", "s"), Message::new("user", "u"), Message::new("assistant", "a")];
        let (head, first) = split_at_first_user(&messages);
        assert_eq!((head, first), (&messages[..1], Some(&messages[1])));
        assert_eq!(split_at_first_user(&[]), (&[][..], None));
    }
}
