//! The source of the prompt.

use scrimp_llm::Error;
use std::io::{self, IsTerminal as _, Read};

/// Maximum size of a prompt: more text than any model's context.
const MAX_BYTES: u64 = 64 << 20;

/// The input of `scrimp run`.
#[derive(Debug, PartialEq)]
pub(in crate::verbs) enum Prompt {
    /// A prompt.
    Text(String),
    /// A chat in the terminal.
    Chat,
}

impl Prompt {
    /// Reads the argument, or stdin for `-` or a pipe. Without an argument, a terminal opens a chat.
    pub(in crate::verbs) fn read(argument: Option<&str>) -> anyhow::Result<Self> {
        let text = match argument {
            None if io::stdin().is_terminal() => return Ok(Self::Chat),
            None | Some("-") => from_reader(io::stdin().lock())?,
            Some(text) => text.to_owned(),
        };
        if text.is_empty() {
            let hint = "give a PROMPT or pipe one into stdin";
            return Err(Error::bad_input("the prompt is empty").with_hint(hint).into());
        }
        Ok(Self::Text(text))
    }
}

/// Reads a prompt and removes one line break at its end, which the shell adds.
fn from_reader(reader: impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::bad_input(format!("cannot read the prompt from standard input: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::bad_input("the prompt on standard input is longer than 64 MiB").into());
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::bad_input(format!(
            "the prompt on standard input is not UTF-8 text: invalid byte at offset {at}"
        ))
        .with_hint("convert it, for example with iconv")
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_is_dropped() {
        let read = |bytes: &[u8]| from_reader(bytes).map_err(|e| e.to_string());
        assert_eq!(read(b"a\n\n").unwrap(), "a\n");
        assert_eq!(read(b"a\r\n").unwrap(), "a");
        assert_eq!(read("\u{feff}ü ".as_bytes()).unwrap(), "\u{feff}ü ");
        assert_eq!(
            read(b"abc\xe2\x82").unwrap_err(),
            "the prompt on standard input is not UTF-8 text: invalid byte at offset 3"
        );
        let endless = from_reader(io::repeat(b'x')).unwrap_err().to_string();
        assert!(endless.contains("64 MiB"), "{endless}");
    }
}
