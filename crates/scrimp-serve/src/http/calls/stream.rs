//! Calls whose arguments are returned while they are generated. A call is certain when its arguments begin, because the name
//! of the tool precedes them:
//!
//! ```text
//! <tool_call>{"name": NAME, "arguments": {...}}</tool_call>     also in a fenced block, behind <|python_tag|>, or alone
//! <function=NAME>{...}</function>
//! [TOOL_CALLS]NAME[ARGS]{...}
//! ```
//! The arguments are the text of the answer. Other forms, such as lists, are returned when they are complete.

use super::{
    BRACKETS, FENCE,
    forms::{Signature, find},
};
use serde_json::Deserializer;

/// The beginning of a call up to its arguments.
#[derive(Debug)]
pub(super) struct Head {
    /// Name of the tool.
    pub(super) name: String,
    /// Bytes before the arguments.
    pub(super) used: usize,
    /// The text before further calls of the same form.
    opener: String,
    /// The text behind the call; empty: none.
    close: &'static str,
    /// The arguments are part of an object with the name.
    is_wrapped: bool,
}

impl Head {
    /// The head at the beginning of `text`. `is_bare`: calls without brackets are possible here. `None`: more text decides,
    /// or the text has another form.
    pub(super) fn find(text: &str, tools: &[Signature], is_bare: bool) -> Option<Self> {
        let wrapped = |opener: &str, close| {
            let inside = &text[opener.len()..];
            let (name, used) = object(inside, tools)?;
            let opener = opener.to_owned();
            Some(Self { name, used: text.len() - inside.len() + used, opener, close, is_wrapped: true })
        };
        if is_bare && text.trim_start().starts_with('{') {
            return wrapped("", "");
        }
        if text.starts_with(FENCE) {
            let line = text.find('\n')? + 1;
            let is_python = text[FENCE.len()..line].trim() == "tool_code";
            return if is_python { None } else { wrapped(&text[..line], FENCE) };
        }
        let (opener, close) = *BRACKETS.iter().find(|(opener, _)| text.starts_with(opener))?;
        let inside = &text[opener.len()..];
        let arguments = match opener {
            "<function=" => inside.find('>')? + 1,
            "[TOOL_CALLS]" => inside.find('{')?,
            _ => return wrapped(opener, close),
        };
        let head = &inside[..arguments];
        let name = match opener {
            "<function=" => head.strip_suffix('>')?,
            _ => head.trim().trim_end_matches("[ARGS]").split("[CALL_ID]").next()?,
        };
        let name = find(tools, name.trim()).map(|_| name.trim().to_owned())?;
        let used = opener.len() + arguments + begin_of_object(&inside[arguments..])?;
        Some(Self { name, used, opener: opener.to_owned(), close, is_wrapped: false })
    }
}

/// The name of the tool, and the bytes before its arguments, of `{"name": NAME, "arguments": {`.
fn object(text: &str, tools: &[Signature]) -> Option<(String, usize)> {
    let mut rest = text;
    for expected in ["{", "\"name\"", ":"] {
        rest = rest.trim_start().strip_prefix(expected)?;
    }
    let mut values = Deserializer::from_str(rest).into_iter::<String>();
    let name = values.next()?.ok()?;
    find(tools, &name)?;
    rest = rest[values.byte_offset()..].trim_start().strip_prefix(',')?.trim_start();
    rest = rest.strip_prefix("\"arguments\"").or_else(|| rest.strip_prefix("\"parameters\""))?;
    rest = rest.trim_start().strip_prefix(':')?;
    Some((name, text.len() - rest.len() + begin_of_object(rest)?))
}

/// Bytes before the first brace of a JSON object that has begun.
fn begin_of_object(text: &str) -> Option<usize> {
    let object = text.trim_start();
    let is_object = object.strip_prefix('{')?.trim_start().starts_with(['"', '}']);
    is_object.then_some(text.len() - object.len())
}

/// Finds the end of a JSON object.
#[derive(Debug, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Scan {
    /// The length of `text` up to the end of the object; `None`: it does not end in `text`.
    fn end(&mut self, text: &str) -> Option<usize> {
        for (i, byte) in text.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(i + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// The place in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the arguments.
    Arguments,
    /// Behind the arguments, in the object around them.
    Object,
    /// Behind the object.
    Behind,
}

/// A call that has begun.
#[derive(Debug)]
pub(super) struct Open {
    head: Head,
    place: Place,
    scan: Scan,
}

/// The effect of more text on a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More arguments.
    Arguments(String),
    /// Text between the arguments and the end of the call.
    Skipped,
    /// More text decides.
    Undecided,
    /// The call has ended. True: another call without brackets may follow.
    End(bool),
}

impl Open {
    /// A call whose arguments follow.
    pub(super) fn new(head: Head) -> Self {
        Self { head, place: Place::Arguments, scan: Scan::default() }
    }

    /// Whether the arguments are incomplete.
    pub(super) fn is_inside(&self) -> bool {
        self.place == Place::Arguments
    }

    /// Removes the known beginning of `held`, which is not empty. `is_end`: no text follows.
    pub(super) fn step(&mut self, held: &mut String, is_end: bool) -> Step {
        if self.place == Place::Behind {
            return self.leave(held, is_end);
        }
        let end = self.scan.end(held);
        let text: String = held.drain(..end.unwrap_or(held.len())).collect();
        let place = self.place;
        if end.is_some() {
            let is_wrapped = place == Place::Arguments && self.head.is_wrapped;
            self.place = if is_wrapped { Place::Object } else { Place::Behind };
            // One brace is open.
            self.scan = Scan { depth: 1, ..Scan::default() };
        }
        if place == Place::Arguments { Step::Arguments(text) } else { Step::Skipped }
    }

    /// Leaves the call if the text behind it is known: its end, or another call.
    fn leave(&self, held: &mut String, is_end: bool) -> Step {
        let Head { opener, close, is_wrapped, .. } = &self.head;
        let rest = held.trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == ',');
        let is_partial = rest.len() < close.len() && close.starts_with(rest);
        if is_partial || rest.is_empty() {
            if is_end {
                held.clear();
                return Step::End(false);
            }
            return Step::Undecided;
        }
        let mut is_bare = false;
        if let Some(behind) = rest.strip_prefix(close).filter(|_| !close.is_empty()) {
            *held = behind.to_owned();
        } else if *is_wrapped && rest.starts_with('{') {
            is_bare = opener.is_empty();
            *held = format!("{opener}{rest}");
        }
        Step::End(is_bare)
    }
}
