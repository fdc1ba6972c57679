//! The parts of an answer: reasoning, text and calls of tools, recognized while the answer is generated.

use super::calls::{CallParser, Piece};
use scrimp_llm::chat::{ReasoningParser, Span};

/// The next part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// More reasoning.
    Reasoning(String),
    /// More text.
    Text(String),
    /// A call of a tool begins.
    Call {
        /// Identifier of the call.
        id: String,
        /// Name of the tool.
        name: String,
    },
    /// More of the arguments of the last call, as JSON.
    Arguments(String),
}

/// A complete part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Block {
    /// Reasoning.
    Reasoning(String),
    /// Text.
    Text(String),
    /// A call of a tool.
    Call {
        /// Identifier of the call.
        id: String,
        /// Name of the tool.
        name: String,
        /// JSON.
        arguments: String,
    },
}

/// Splits an answer into its parts. White space between a text and a call belongs to neither.
#[derive(Debug)]
pub(crate) struct AnswerParser {
    reasoning: Option<ReasoningParser>,
    calls: Option<CallParser>,
    /// Distinguishes the calls of this answer from those of others.
    id: u64,
    /// The answer has at most one call.
    single: bool,
    /// Number of calls.
    count: usize,
    /// The last call is one too many.
    is_dropped: bool,
    /// White space behind a text: it is returned with more text, and not before a call.
    space: String,
}

impl AnswerParser {
    /// A parser for one answer. `None`: it has no reasoning, or no calls.
    pub(crate) fn new(reasoning: Option<ReasoningParser>, calls: Option<CallParser>, single: bool) -> Self {
        let (id, space) = (super::state::unique(), String::new());
        Self { reasoning, calls, id, single, count: 0, is_dropped: false, space }
    }

    /// Whether the answer has calls.
    pub(crate) fn has_calls(&self) -> bool {
        self.count > 0
    }

    /// Whether the answer ends inside the arguments of a call.
    pub(crate) fn has_cut_call(&self) -> bool {
        !self.is_dropped && self.calls.as_ref().is_some_and(CallParser::is_inside_call)
    }

    /// Adds text and returns the parts that no later text can change.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        let mut out = Vec::new();
        let spans = match &mut self.reasoning {
            Some(parser) => parser.push(text),
            None => vec![Span::Text(text.to_owned())],
        };
        self.spans(spans, &mut out);
        out
    }

    /// Adds the last text and returns the remaining parts.
    pub(crate) fn finish(&mut self, text: &str) -> Vec<Part> {
        let mut out = self.push(text);
        if let Some(parser) = &mut self.reasoning {
            let spans = parser.finish();
            self.spans(spans, &mut out);
        }
        if let Some(parser) = &mut self.calls {
            let pieces = parser.finish();
            self.pieces(pieces, &mut out);
        }
        let space = std::mem::take(&mut self.space);
        if !self.has_calls() && !space.is_empty() {
            out.push(Part::Text(space));
        }
        out
    }

    /// The parts of a complete answer. Beside calls, texts have no white space at their ends.
    pub(crate) fn blocks(&mut self, text: &str) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        for part in self.finish(text) {
            match (blocks.last_mut(), part) {
                (Some(Block::Reasoning(text)), Part::Reasoning(more))
                | (Some(Block::Text(text)), Part::Text(more))
                | (Some(Block::Call { arguments: text, .. }), Part::Arguments(more)) => text.push_str(&more),
                (_, Part::Reasoning(text)) => blocks.push(Block::Reasoning(text)),
                (_, Part::Text(text)) => blocks.push(Block::Text(text)),
                (_, Part::Call { id, name }) => {
                    blocks.push(Block::Call { id, name, arguments: String::new() });
                }
                (_, Part::Arguments(_)) => {}
            }
        }
        if self.has_calls() {
            for block in &mut blocks {
                if let Block::Text(text) = block {
                    *text = text.trim().to_owned();
                }
            }
        }
        blocks.retain(|block| !matches!(block, Block::Text(text) if text.is_empty()));
        blocks
    }

    fn spans(&mut self, spans: Vec<Span>, out: &mut Vec<Part>) {
        for span in spans {
            match (span, &mut self.calls) {
                (Span::Reasoning(text), _) => out.push(Part::Reasoning(text)),
                (Span::Text(text), Some(parser)) => {
                    let pieces = parser.push(&text);
                    self.pieces(pieces, out);
                }
                (Span::Text(text), None) if text.is_empty() => {}
                (Span::Text(text), None) => out.push(Part::Text(text)),
            }
        }
    }

    fn begin(&mut self, name: String, out: &mut Vec<Part>) {
        self.space.clear();
        self.is_dropped = self.single && self.count > 0;
        if !self.is_dropped {
            let id = format!("call_{:016x}", super::hash_of(Some(&(self.id, self.count))));
            self.count += 1;
            out.push(Part::Call { id, name });
        }
    }

    fn arguments(&mut self, text: String, out: &mut Vec<Part>) {
        if !self.is_dropped {
            out.push(Part::Arguments(text));
        }
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Vec<Part>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    let text = std::mem::take(&mut self.space) + &text;
                    let end = text.trim_end().len();
                    self.space = text[end..].to_owned();
                    if end > 0 {
                        out.push(Part::Text(text[..end].to_owned()));
                    }
                }
                Piece::Call(call) => {
                    self.begin(call.name, out);
                    self.arguments(call.arguments, out);
                }
                Piece::Begin(name) => self.begin(name, out),
                Piece::Arguments(text) => self.arguments(text, out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::calls::Signature, *};
    use scrimp_llm::chat::ChatTemplate;
    use serde_json::json;

    const CALL: &str = r#"<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>"#;

    fn parser(single: bool) -> AnswerParser {
        let add = json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}});
        let template = ChatTemplate::new("<think></think>", "", "").unwrap();
        let reasoning = ReasoningParser::new(template.reasoning().unwrap(), false);
        let calls = CallParser::new(Signature::new(&add).into_iter().collect());
        AnswerParser::new(Some(reasoning), Some(calls), single)
    }

    fn add() -> Block {
        Block::Call { id: String::new(), name: "add".into(), arguments: r#"{"a": 1}"#.into() }
    }

    /// The blocks of an answer, without the identifiers of calls.
    fn blocks(text: &str, single: bool) -> Vec<Block> {
        let mut blocks = parser(single).blocks(text);
        for block in &mut blocks {
            if let Block::Call { id, .. } = block {
                assert!(id.starts_with("call_"));
                id.clear();
            }
        }
        blocks
    }

    #[test]
    fn answers_have_reasoning_texts_and_calls() {
        let text = format!("<think>\nHm {CALL}</think>\n\nSo: {CALL}{CALL}");
        let thought = Block::Reasoning(format!("Hm {CALL}"));
        let said = Block::Text("So:".into());
        assert_eq!(blocks(&text, false), [thought.clone(), said.clone(), add(), add()]);
        assert_eq!(blocks(&text, true), [thought, said, add()]);
        assert_eq!(blocks(" So ", false), [Block::Text(" So ".into())]);
        assert_eq!(blocks("", false), []);
    }

    #[test]
    fn calls_have_different_identifiers() {
        let text = format!("{CALL}{CALL}");
        let ids: Vec<String> = [parser(false).blocks(&text), parser(false).blocks(&text)]
            .concat()
            .into_iter()
            .filter_map(|block| if let Block::Call { id, .. } = block { Some(id) } else { None })
            .collect();
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!((ids.len(), distinct.len()), (4, 4));
    }
}
