//! The only place that writes to stdout.
//!
//! With `--json`, stdout has one JSON object per result line and nothing else. Messages go to stderr.

use crate::settings::Settings;
use anyhow::Context as _;
use scrimp_base::{Error, Hint};
use serde::Serialize;
use std::{
    fmt::{self, Display},
    io::{self, IsTerminal as _, Write as _},
};

/// Context of errors while writing to stdout: a closed pipe ends the process silently.
#[derive(Debug)]
pub(crate) struct Stdout;

impl Display for Stdout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot write to standard output")
    }
}

/// Writes results to stdout and messages to stderr.
pub(crate) struct Printer {
    json: bool,
    settings: Settings,
}

impl Printer {
    /// A printer of text, or of JSON (`json`). Errors name `settings` by their flags.
    pub(crate) fn new(json: bool, settings: Settings) -> Self {
        Self { json, settings }
    }

    /// True with `--json`.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: `value` as one line of JSON, or the text of `human`, which needs no final newline.
    pub(crate) fn result<T: Serialize, H: Display>(
        &self,
        value: &T,
        human: impl FnOnce(&T) -> H,
    ) -> anyhow::Result<()> {
        let mut line = if self.json {
            serde_json::to_string(value).context("cannot write the result as JSON")?
        } else {
            human(value).to_string()
        };
        if !line.ends_with('\n') {
            line.push('\n');
        }
        self.write(&line)
    }

    /// Prints a piece of streamed text immediately. With `--json` it prints nothing: the text is part of the result.
    pub(crate) fn stream(&self, piece: &str) -> anyhow::Result<()> {
        if self.json { Ok(()) } else { self.write(piece) }
    }

    /// Prints a piece of streamed reasoning: dimmed on a terminal, otherwise to stderr, so that stdout has the answer alone.
    pub(crate) fn reasoning(&self, piece: &str) -> anyhow::Result<()> {
        if self.json {
            return Ok(());
        }
        if !io::stdout().is_terminal() {
            // A closed stderr is not an error.
            let _ = write!(io::stderr(), "{piece}");
            return Ok(());
        }
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if is_plain { self.write(piece) } else { self.write(&format!("\x1b[2m{piece}\x1b[22m")) }
    }

    /// Prints text that does not depend on `--json` (shell completions).
    pub(crate) fn raw(&self, text: &str) -> anyhow::Result<()> {
        self.write(text)
    }

    /// Prints a message to stderr.
    pub(crate) fn note(&self, message: impl Display) {
        // A closed stderr is not an error.
        let _ = writeln!(io::stderr(), "{message}");
    }

    /// Prints `error: ...` and, if there is a hint, `hint: ...` to stderr.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.note(format_args!("error: {}", self.settings.translate(&one_line(error))));
        if let Some(hint) = error.chain().find_map(hint) {
            self.note(format_args!("hint: {}", self.settings.translate(hint)));
        }
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(Stdout)
    }
}

/// The hint of an error of one of the libraries.
fn hint<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a str> {
    cause.downcast_ref::<Error>()?.hint().map(Hint::as_str)
}

/// The chain of causes on one line, without causes that an earlier message contains.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !line.contains(&cause) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&cause);
        }
    }
    line
}
