//! The chat at a terminal.

use super::{Speaker, summary};
use crate::interrupt;
use rustyline::{DefaultEditor, error::ReadlineError};
use scrimp_llm::{
    chat::{ChatTemplate, Message},
    sampling::Sampler,
};

const HELP: &str = "\
/reset  forget the conversation
/quit   leave (also Ctrl-D)
/help   this list
Ctrl-C ends an answer. A line that ends with \\ goes on in the next one.";

/// What was typed.
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
            // `/etc/hosts` or `/x is a path` is something to say.
            _ if text.strip_prefix('/').is_some_and(|w| w.chars().all(char::is_alphabetic)) => {
                Self::Unknown(text.to_owned())
            }
            _ => Self::Say(text.to_owned()),
        }
    }
}

/// Talks until Ctrl-D or `/quit`. `system` is what the conversation begins with.
pub(super) fn chat(
    speaker: &mut Speaker<'_>,
    template: &ChatTemplate,
    system: Vec<Message>,
    sampler: &mut Sampler,
) -> anyhow::Result<()> {
    let printer = &speaker.app.printer;
    printer.note("Type a message, /help for help, Ctrl-D to leave.");
    let mut editor = DefaultEditor::new()?;
    let mut history = system.clone();
    loop {
        let line = match read(&mut editor) {
            Ok(text) => Line::parse(&text),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Interrupted) => {
                printer.note("Ctrl-D or /quit leaves.");
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        match line {
            Line::Nothing => {}
            Line::Quit => return Ok(()),
            Line::Help => printer.note(HELP),
            Line::Unknown(command) => printer.note(format_args!("There is no {command}.\n{HELP}")),
            Line::Reset => {
                history.clone_from(&system);
                speaker.sequence.clear();
                printer.note("Starting over.");
            }
            Line::Say(text) => {
                editor.add_history_entry(text.as_str())?;
                history.push(Message::new("user", text));
                match answer(speaker, template, &mut history, system.len(), sampler) {
                    Ok(()) => {}
                    // A message that is too long, say, is no reason to lose the conversation.
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

/// Answers the last message of `history`, and adds the answer to it.
fn answer(
    speaker: &mut Speaker<'_>,
    template: &ChatTemplate,
    history: &mut Vec<Message>,
    fixed: usize,
    sampler: &mut Sampler,
) -> anyhow::Result<()> {
    let room = speaker.sequence.context_length();
    let fits = |history: &[Message]| -> anyhow::Result<Option<Vec<u32>>> {
        let ids = speaker.encode_chat(template, history)?;
        Ok(Some(ids).filter(|ids| ids.len() < room))
    };
    let ids = match fits(history)? {
        Some(ids) => ids,
        None => {
            let dropped = forget(history, fixed, |history| Ok(fits(history)?.is_some()))?;
            if dropped > 0 {
                speaker.app.printer.note(format_args!("(forgot the {dropped} oldest messages to make room)"));
            }
            speaker.encode_chat(template, history)?
        }
    };
    let result = speaker.say(&ids, sampler)?;
    speaker.app.printer.note(summary(&result));
    history.push(Message::new("assistant", result.text));
    Ok(())
}

/// Drops the oldest exchanges after the first `fixed` messages until `fits`, leaving the last message in any case.
/// Returns how many messages went.
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

/// One message, over as many lines as end with a backslash.
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
        // What never fits keeps the system message and the question.
        let mut history = talk(6);
        assert_eq!(forget(&mut history, 1, |_| Ok(false)).unwrap(), 4);
        assert_eq!(contents(&history), ["0", "5"]);
    }
}
