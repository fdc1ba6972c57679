//! Recognizes calls of tools in the text of an answer, while it is generated.
//!
//! Model families write calls differently, and a model that was trained on one form uses others too. All known forms are
//! recognized for every model, but only with the name of an offered tool:
//!
//! | form | families |
//! |---|---|
//! | `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, also with a list | Qwen, Hermes, SmolLM |
//! | `<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>` | Qwen3-Coder |
//! | a fenced block of code with such JSON | Qwen2.5-Coder, Gemma |
//! | such JSON alone, with `parameters` or `arguments` | Llama 3, Gemma |
//! | `<\|python_tag\|>` before JSON or `NAME.call(KEY=VALUE)`; `<function=NAME>{...}</function>` | Llama 3.1 |
//! | `[NAME(KEY=VALUE), ...]` | Llama 3.2 |
//! | `[TOOL_CALLS][{...}]`, `[TOOL_CALLS]NAME[ARGS]{...}` | Mistral |
//! | a fenced block `tool_code` with `NAME(KEY=VALUE)` | Gemma 3 |
//! | `<start_function_call>call:NAME{KEY:VALUE}<end_function_call>` | FunctionGemma |
//! | `<\|tool_call\|>[{...}]<\|/tool_call\|>` | Phi-4 |

mod forms;
mod python;
mod stream;

pub(crate) use forms::Signature;
use stream::{Head, Open, Step};

/// Special tokens that are part of a call. They are written into the text of answers with tools.
pub(crate) const MARKS: [&str; 11] = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
];

/// The beginning and the end of a call in a text. An empty end: the end of the text.
const BRACKETS: [(&str, &str); 6] = [
    ("<tool_call>", "</tool_call>"),
    ("<|tool_call|>", "<|/tool_call|>"),
    ("<function=", "</function>"),
    ("<start_function_call>", "<end_function_call>"),
    ("[TOOL_CALLS]", ""),
    ("<|python_tag|>", ""),
];
const FENCE: &str = "```";

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// Name of the tool.
    pub(crate) name: String,
    /// A JSON object.
    pub(crate) arguments: String,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text that belongs to no call.
    Text(String),
    /// A complete call.
    Call(Call),
    /// A call of this tool begins.
    Begin(String),
    /// More arguments of the call that has begun.
    Arguments(String),
}

/// Splits an answer into text and calls.
#[derive(Debug)]
pub(crate) struct CallParser {
    tools: Vec<Signature>,
    /// Text that may be part of a call.
    held: String,
    /// Text other than white space, or a call, has been found.
    begun: bool,
    /// The call that has begun.
    open: Option<Open>,
}

/// The part of the held text that is known.
enum Known {
    /// This many bytes are text.
    Text(usize),
    /// This many bytes are these calls.
    Calls(usize, Vec<Call>),
    /// More text decides.
    Nothing,
}

impl CallParser {
    /// A parser for the beginning of an answer.
    pub(crate) fn new(tools: Vec<Signature>) -> Self {
        Self { tools, held: String::new(), begun: false, open: None }
    }

    /// Adds text and returns the parts that no later text can change.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        self.split(false)
    }

    /// The remaining parts.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        self.split(true)
    }

    /// Whether the answer ends inside the arguments of a call.
    pub(crate) fn is_inside_call(&self) -> bool {
        self.open.as_ref().is_some_and(Open::is_inside)
    }

    fn split(&mut self, is_end: bool) -> Vec<Piece> {
        let mut out = Vec::new();
        while !self.held.is_empty() {
            if let Some(open) = &mut self.open {
                match open.step(&mut self.held, is_end) {
                    Step::Arguments(text) => out.push(Piece::Arguments(text)),
                    Step::Skipped => {}
                    Step::Undecided => break,
                    Step::End(is_bare) => {
                        self.begun = !is_bare;
                        self.open = None;
                    }
                }
                continue;
            }
            if let Some(head) = Head::find(&self.held, &self.tools, !self.begun) {
                self.held.drain(..head.used);
                self.begun = true;
                out.push(Piece::Begin(head.name.clone()));
                self.open = Some(Open::new(head));
                continue;
            }
            let held = std::mem::take(&mut self.held);
            let (used, calls) = match self.known(&held, is_end) {
                Known::Text(n) => (n, None),
                Known::Calls(n, calls) => (n, Some(calls)),
                Known::Nothing if is_end => (held.len(), None),
                Known::Nothing => {
                    self.held = held;
                    break;
                }
            };
            let (part, rest) = held.split_at(used);
            self.held = rest.to_owned();
            self.begun |= calls.is_some() || !part.trim().is_empty();
            match (calls, out.last_mut()) {
                (Some(calls), _) => out.extend(calls.into_iter().map(Piece::Call)),
                (None, Some(Piece::Text(text))) => text.push_str(part),
                (None, _) => out.push(Piece::Text(part.to_owned())),
            }
        }
        out
    }

    /// The beginning of `text`, which is not empty.
    fn known(&self, text: &str, is_end: bool) -> Known {
        if !self.begun {
            let trimmed = text.trim_start();
            if trimmed.is_empty() {
                return Known::Nothing;
            }
            let is_mark =
                BRACKETS.iter().any(|(open, _)| trimmed.starts_with(open) || open.starts_with(trimmed));
            if trimmed.starts_with(['{', '[']) && !is_mark {
                return self.bare(text, is_end);
            }
        }
        let openers = BRACKETS.iter().map(|bracket| bracket.0).chain([FENCE]);
        let first = openers.clone().filter_map(|open| text.find(open)).min();
        match first {
            Some(0) => self.bracketed(text, is_end),
            Some(at) => Known::Text(at),
            None if is_end => Known::Text(text.len()),
            None => {
                // The end of the text may be the beginning of an opener.
                let partial = openers
                    .filter_map(|open| {
                        (1..open.len()).rev().find(|&n| text.as_bytes().ends_with(&open.as_bytes()[..n]))
                    })
                    .max()
                    .unwrap_or(0);
                if partial == text.len() { Known::Nothing } else { Known::Text(text.len() - partial) }
            }
        }
    }

    /// Calls without brackets at the beginning of an answer.
    fn bare(&self, text: &str, is_end: bool) -> Known {
        if !is_end {
            return if forms::may_be_bare(text, &self.tools) {
                Known::Nothing
            } else {
                Known::Text(text.len())
            };
        }
        match forms::bare(text, &self.tools) {
            Some((used, calls)) => Known::Calls(used, calls),
            None => Known::Text(text.len()),
        }
    }

    /// A text that begins with an opener.
    fn bracketed(&self, text: &str, is_end: bool) -> Known {
        if let Some(inside) = text.strip_prefix(FENCE) {
            return self.fenced(text, inside, is_end);
        }
        let Some((open, close)) = BRACKETS.iter().find(|(open, _)| text.starts_with(open)) else {
            return Known::Text(text.len());
        };
        // The name of the function is part of the opener.
        let start = if *open == "<function=" { 0 } else { open.len() };
        let mut from = open.len();
        while !close.is_empty()
            && let Some(at) = text[from..].find(close)
        {
            let (inside, behind) = (&text[start..from + at], from + at + close.len());
            if let Some(calls) = forms::calls(inside, &self.tools) {
                return Known::Calls(behind, calls);
            }
            if !forms::is_incomplete(inside) {
                return Known::Text(behind);
            }
            from = behind;
        }
        match (is_end, forms::calls(&text[start..], &self.tools)) {
            (false, _) => Known::Nothing,
            (true, Some(calls)) => Known::Calls(text.len(), calls),
            (true, None) => Known::Text(text.len()),
        }
    }

    /// A fenced block of code.
    fn fenced(&self, text: &str, inside: &str, is_end: bool) -> Known {
        let Some((kind, code)) = inside.split_once('\n') else {
            return if is_end { Known::Text(text.len()) } else { Known::Nothing };
        };
        let start = text.len() - code.len();
        let is_python = kind.trim() == "tool_code";
        let begin = code.trim_start();
        if begin.is_empty() && !is_end {
            return Known::Nothing;
        }
        if !is_python && !begin.starts_with(['{', '[', '<']) {
            return Known::Text(start);
        }
        let parse = |inside: &str| {
            if is_python { python::script(inside, &self.tools) } else { forms::calls(inside, &self.tools) }
        };
        let mut from = start;
        while let Some(at) = text[from..].find(FENCE) {
            let (inside, behind) = (&text[start..from + at], from + at + FENCE.len());
            if let Some(calls) = parse(inside) {
                return Known::Calls(behind, calls);
            }
            if inside.trim_end_matches(' ').ends_with('\n') || inside.is_empty() {
                return Known::Text(behind);
            }
            from = behind;
        }
        match (is_end, parse(code)) {
            (false, _) => Known::Nothing,
            (true, Some(calls)) => Known::Calls(text.len(), calls),
            (true, None) => Known::Text(text.len()),
        }
    }
}

#[cfg(test)]
mod tests;
