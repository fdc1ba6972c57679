//! The chat in a terminal.

use super::{Encoded, Speaker, summary};
use crate::interrupt;
use rustyline::{DefaultEditor, error::ReadlineError};
use scrimp_llm::{
    chat::{ChatTemplate, Message},
    sampling::Sampler,
};

const HELP: &str = "\
/reset  start a new conversation
/quit   exit (also Ctrl-D)
/help   show this list
Ctrl-C stops an answer. A line that ends with \\ continues on the next line.";

/// An input line.
#[derive(Debug, PartialEq)]
enum Line {
    Nothing,
    Say(String),
    Reset,
    Quit,
    Help,
    Unknown(String),
}

impl Line {
    fn parse(text: &str) -> Self {
        let text = text.trim();
        match text {
            "" => Self::Nothing,
            "/reset" => Self::Reset,
            "/quit" | "/exit" | "/bye" => Self::Quit,
            "/help" | "/?" => Self::Help,
            // `/etc/hosts` and `/x is a path` are messages.
            _ if text.strip_prefix('/').is_some_and(|w| w.chars().all(char::is_alphabetic)) => {
                Self::Unknown(text.to_owned())
            }
            _ => Self::Say(text.to_owned()),
        }
    }
}

/// Chats until Ctrl-D or `/quit`. Returns the last conversation. `history` holds the messages of an earlier
/// conversation, or the system message.
pub(super) fn chat(
    speaker: &mut Speaker<'_>,
    template: &ChatTemplate,
    mut history: Vec<Message>,
    sampler: &mut Sampler,
) -> anyhow::Result<Vec<Message>> {
    let printer = &speaker.app.printer;
    printer.note("Type a message. /help lists the commands, Ctrl-D exits.");
    let mut editor = DefaultEditor::new()?;
    let system: Vec<Message> = history.iter().take_while(|m| m.role == "system").cloned().collect();
    loop {
        let line = match read(&mut editor) {
            Ok(text) => Line::parse(&text),
            Err(ReadlineError::Eof) => return Ok(history),
            Err(ReadlineError::Interrupted) => {
                printer.note("Ctrl-D or /quit exits.");
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        match line {
            Line::Nothing => {}
            Line::Quit => return Ok(history),
            Line::Help => printer.note(HELP),
            Line::Unknown(command) => printer.note(format_args!("Unknown command {command}.\n{HELP}")),
            Line::Reset => {
                history.clone_from(&system);
                speaker.sequence.clear();
                printer.note("New conversation.");
            }
            Line::Say(text) => {
                editor.add_history_entry(text.as_str())?;
                history.push(Message::new("user", text));
                match answer(speaker, template, &mut history, system.len(), sampler) {
                    Ok(()) => {}
                    // The conversation continues after an error such as a message that is too long.
                    Err(e) if e.is::<scrimp_llm::Error>() => {
                        history.pop();
                        printer.error(&e);
                    }
                    Err(e) => return Err(e),
                }
                interrupt::clear();
            }
        }
    }
}

/// Answers the last message of `history` and appends the answer.
fn answer(
    speaker: &mut Speaker<'_>,
    template: &ChatTemplate,
    history: &mut Vec<Message>,
    fixed: usize,
    sampler: &mut Sampler,
) -> anyhow::Result<()> {
    let room = speaker.sequence.context_length();
    let fits = |history: &[Message]| -> anyhow::Result<Option<Encoded>> {
        let prompt = speaker.encode_chat(template, history)?;
        Ok(Some(prompt).filter(|prompt| prompt.ids.len() < room))
    };
    let prompt = match fits(history)? {
        Some(prompt) => prompt,
        None => {
            let dropped = forget(history, fixed, |history| Ok(fits(history)?.is_some()))?;
            if dropped > 0 {
                speaker.app.printer.note(format_args!(
                    "(removed the {dropped} oldest messages, because the context is full)"
                ));
            }
            speaker.encode_chat(template, history)?
        }
    };
    let (result, _) = speaker.say(&prompt, sampler)?;
    speaker.app.printer.note(summary(&result));
    history.push(Message::new("assistant", result.text));
    Ok(())
}

/// Removes the oldest exchanges after the first `fixed` messages until `fits`. The last message stays. Returns the number
/// of removed messages.
fn forget(
    history: &mut Vec<Message>,
    fixed: usize,
    mut fits: impl FnMut(&[Message]) -> anyhow::Result<bool>,
) -> anyhow::Result<usize> {
    let before = history.len();
    while history.len() >= fixed + 3 && !fits(history)? {
        history.drain(fixed..fixed + 2);
    }
    Ok(before - history.len())
}

/// Reads a message. A line that ends with a backslash continues on the next line.
fn read(editor: &mut DefaultEditor) -> Result<String, ReadlineError> {
    let mut text = editor.readline(">>> ")?;
    while text.ends_with('\\') {
        text.pop();
        text.push('\n');
        text.push_str(&editor.readline("... ")?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_messages() {
        assert_eq!(Line::parse("  "), Line::Nothing);
        assert_eq!(Line::parse(" /reset "), Line::Reset);
        assert_eq!(Line::parse("/quit"), Line::Quit);
        assert_eq!(Line::parse("/help"), Line::Help);
        assert_eq!(Line::parse("/rest"), Line::Unknown("/rest".into()));
        assert_eq!(Line::parse("/etc/hosts"), Line::Say("/etc/hosts".into()));
        assert_eq!(Line::parse("/reset please"), Line::Say("/reset please".into()));
        assert_eq!(Line::parse("hello "), Line::Say("hello".into()));
    }

    #[test]
    fn the_oldest_exchanges_go_first() {
        let talk = |n: usize| -> Vec<Message> {
            let roles = ["system", "user", "assistant"];
            (0..n)
                .map(|i| Message::new(if i == 0 { roles[0] } else { roles[2 - i % 2] }, i.to_string()))
                .collect()
        };
        let contents = |h: &[Message]| h.iter().map(|m| m.content.clone()).collect::<Vec<_>>();
        let mut history = talk(6);
        assert_eq!(forget(&mut history, 1, |h| Ok(h.len() <= 4)).unwrap(), 2);
        assert_eq!(contents(&history), ["0", "3", "4", "5"]);
        // If nothing fits, the system message and the question stay.
        let mut history = talk(6);
        assert_eq!(forget(&mut history, 1, |_| Ok(false)).unwrap(), 4);
        assert_eq!(contents(&history), ["0", "5"]);
    }
}
