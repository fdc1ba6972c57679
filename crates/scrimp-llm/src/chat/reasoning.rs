//! Reasoning: the text between marks, such as `<think>` and `</think>`, that a model writes before its answer.

/// The marks around the reasoning of a model family.
#[derive(Debug, PartialEq, Eq)]
pub struct ReasoningMarks {
    /// Begins the reasoning.
    pub open: &'static str,
    /// Ends it.
    pub close: &'static str,
}

/// Known marks: those of Qwen 3, DeepSeek R1, SmolLM3, OLMo 3 and Granite; those of Magistral and Ministral 3; those of
/// Gemma 4.
const KNOWN: [ReasoningMarks; 3] = [
    ReasoningMarks { open: "<think>", close: "</think>" },
    ReasoningMarks { open: "[THINK]", close: "[/THINK]" },
    ReasoningMarks { open: "<|channel>thought", close: "<channel|>" },
];

impl ReasoningMarks {
    /// The marks in the source of a chat template. `None`: the model was not trained to reason.
    pub(super) fn of_template(source: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|marks| source.contains(marks.open) || source.contains(marks.close))
    }

    /// Whether an answer to this prompt begins inside the reasoning.
    pub fn is_open(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }

    /// Reasoning without content: an answer after it does not reason.
    pub(super) fn empty(&self) -> String {
        format!("{}\n\n{}\n\n", self.open, self.close)
    }
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    /// Reasoning, without its marks and the white space at its ends.
    Reasoning(String),
    /// Text of the answer. White space between the reasoning and the answer belongs to neither.
    Text(String),
}

/// The place in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a possible opening mark.
    Begin,
    /// Inside the reasoning; true: some of it was returned.
    Inside(bool),
    /// Behind the reasoning, before the first text.
    Gap,
    /// In the text of the answer.
    Text,
}

/// Splits an answer into reasoning and text, while it is generated. Only the beginning of an answer can be reasoning.
#[derive(Debug, Clone)]
pub struct ReasoningParser {
    marks: &'static ReasoningMarks,
    place: Place,
    /// Text that may be part of a mark, or white space that may be at an end.
    held: String,
}

impl ReasoningParser {
    /// A parser for an answer; `is_open`: it begins inside the reasoning ([`ReasoningMarks::is_open`]).
    pub fn new(marks: &'static ReasoningMarks, is_open: bool) -> Self {
        let place = if is_open { Place::Inside(false) } else { Place::Begin };
        Self { marks, place, held: String::new() }
    }

    /// Whether the last text was inside the reasoning.
    pub fn is_inside(&self) -> bool {
        matches!(self.place, Place::Inside(_))
    }

    /// Whether the answer may still begin with reasoning.
    pub fn is_undecided(&self) -> bool {
        self.place == Place::Begin
    }

    /// Adds text and returns the parts that no later text can change.
    pub fn push(&mut self, text: &str) -> Vec<Span> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while let Some(span) = self.next(false) {
            out.extend(span);
        }
        out
    }

    /// The remaining parts.
    pub fn finish(&mut self) -> Vec<Span> {
        let mut out = Vec::new();
        while let Some(span) = self.next(true) {
            out.extend(span);
        }
        out
    }

    /// Takes a step. `None`: the held text needs more text, or is empty; `Some(None)`: the step returns no part.
    fn next(&mut self, is_end: bool) -> Option<Option<Span>> {
        if self.held.is_empty() {
            return None;
        }
        match self.place {
            Place::Begin => {
                let trimmed = self.held.trim_start();
                if let Some(inside) = trimmed.strip_prefix(self.marks.open) {
                    self.held = inside.to_owned();
                    self.place = Place::Inside(false);
                } else if !is_end && self.marks.open.starts_with(trimmed) {
                    return None;
                } else {
                    self.place = Place::Text;
                }
                Some(None)
            }
            Place::Inside(begun) => self.inside(begun, is_end),
            Place::Gap => {
                let text = self.held.trim_start().to_owned();
                self.held = text;
                if self.held.is_empty() {
                    return None;
                }
                self.place = Place::Text;
                Some(None)
            }
            Place::Text => Some(Some(Span::Text(std::mem::take(&mut self.held)))),
        }
    }

    fn inside(&mut self, begun: bool, is_end: bool) -> Option<Option<Span>> {
        let close = self.marks.close;
        let (end, rest) = match self.held.find(close) {
            Some(at) => (self.held[..at].trim_end().len(), Some(at + close.len())),
            None if is_end => (self.held.trim_end().len(), Some(self.held.len())),
            None => {
                // The end of the text may be the beginning of the mark, after white space.
                let partial =
                    (1..close.len()).rev().find(|&n| self.held.as_bytes().ends_with(&close.as_bytes()[..n]));
                (self.held[..self.held.len() - partial.unwrap_or(0)].trim_end().len(), None)
            }
        };
        let inside = &self.held[..end];
        let inside = if begun { inside } else { inside.trim_start() }.to_owned();
        match rest {
            Some(rest) => {
                self.held.drain(..rest);
                self.place = Place::Gap;
            }
            None if inside.is_empty() => return None,
            None => {
                self.held.drain(..end);
                self.place = Place::Inside(true);
            }
        }
        Some((!inside.is_empty()).then_some(Span::Reasoning(inside)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasoning and text of an answer that arrives in pieces of `step` characters.
    fn split(text: &str, is_open: bool, step: usize) -> (String, String) {
        split_by(&KNOWN[0], text, is_open, step)
    }

    fn split_by(marks: &'static ReasoningMarks, text: &str, is_open: bool, step: usize) -> (String, String) {
        let mut parser = ReasoningParser::new(marks, is_open);
        let chars: Vec<char> = text.chars().collect();
        let mut spans = Vec::new();
        for piece in chars.chunks(step) {
            spans.extend(parser.push(&piece.iter().collect::<String>()));
        }
        spans.extend(parser.finish());
        let (mut reasoning, mut answer) = (String::new(), String::new());
        for span in spans {
            match span {
                Span::Reasoning(text) => reasoning += &text,
                Span::Text(text) => answer += &text,
            }
        }
        (reasoning, answer)
    }

    #[test]
    fn marks_of_gemma_4() {
        let marks = ReasoningMarks::of_template("'<|channel>thought\\n' + x + '<channel|>'").unwrap();
        let text = "<|channel>thought\nA b.\n<channel|>Yes. ";
        for step in [1, 2, 100] {
            assert_eq!(split_by(marks, text, false, step), ("A b.".to_owned(), "Yes. ".to_owned()));
        }
        // The prompt of an answer without reasoning ends with empty reasoning.
        assert!(!marks.is_open("<|turn>model\n<|channel>thought\n<channel|>"));
    }

    #[test]
    fn reasoning_is_split_from_the_answer_in_any_pieces() {
        for (text, is_open, reasoning, answer) in [
            ("<think>\nA b.\n\nC\n</think>\n\nYes. ", false, "A b.\n\nC", "Yes. "),
            ("\nA\n</think>Yes", true, "A", "Yes"),
            ("<think>\n\n</think>\n\nYes", false, "", "Yes"),
            ("<think>never < /think ends  ", false, "never < /think ends", ""),
            ("", true, "", ""),
            ("\n ", true, "", ""),
            // Only the beginning of an answer is reasoning.
            ("Yes <think>no</think>", false, "", "Yes <think>no</think>"),
            ("<thin", false, "", "<thin"),
            ("  <b>", false, "", "  <b>"),
            ("é</think>é<think>", true, "é", "é<think>"),
        ] {
            for step in [1, 2, 3, 100] {
                let found = split(text, is_open, step);
                assert_eq!(found, (reasoning.to_owned(), answer.to_owned()), "{text:?} in steps of {step}");
            }
        }
    }
}
