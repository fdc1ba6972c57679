//! The reasoning of an answer, which is shown apart from the answer.

use super::Speaker;
use crate::{cli::values::Think, loaded, printer::Printer};
use scrimp_llm::{
    Error,
    chat::{ChatTemplate, Conversation, Message, ReasoningParser, Span},
    checkpoint::Checkpoint,
    generate::ReasoningParams,
    tokenizer::Tokenizer,
};

/// A tokenized prompt.
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// `None`: the model does not reason.
    pub(super) reasoning: Option<ReasoningParams>,
}

/// The chat template of a model, which can reason if `think` demands it.
pub(super) fn template(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    think: Option<Think>,
) -> scrimp_llm::Result<ChatTemplate> {
    let template = loaded::template(checkpoint, tokenizer)?;
    if think.is_some_and(|think| think.wanted) && template.reasoning().is_none() {
        let what = "the model's chat template has no reasoning";
        return Err(Error::unsupported(what, "leave out `think`, or choose a model that reasons"));
    }
    Ok(template)
}

impl Speaker<'_> {
    /// The prompt for the assistant's next message. The chat template writes the begin-of-text token, if the model has one.
    pub(super) fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
    ) -> anyhow::Result<Encoded> {
        let mut conversation = Conversation::new(messages)?;
        if let Some(think) = self.think {
            conversation = conversation.thinks(think.wanted);
        }
        let text = template.prompt(&conversation)?;
        let tokenizer = &self.loaded.tokenizer;
        let limit = self.think.and_then(|think| think.limit);
        let marks = template.reasoning_after(&conversation, &text);
        let reasoning = marks.map(|marks| ReasoningParams::new(marks, limit, tokenizer)).transpose()?;
        Ok(Encoded { ids: tokenizer.encode(&text, false, true)?, reasoning })
    }
}

/// An answer that is printed while it is generated.
pub(super) struct Spoken<'a> {
    printer: &'a Printer,
    parser: Option<ReasoningParser>,
    pub(super) reasoning: String,
    pub(super) text: String,
}

impl<'a> Spoken<'a> {
    pub(super) fn new(printer: &'a Printer, reasoning: Option<&ReasoningParams>) -> Self {
        let parser = reasoning.map(|params| ReasoningParser::new(params.marks, params.is_open));
        Self { printer, parser, reasoning: String::new(), text: String::new() }
    }

    /// Prints more of the answer.
    pub(super) fn push(&mut self, piece: &str) -> anyhow::Result<()> {
        let spans = match &mut self.parser {
            Some(parser) => parser.push(piece),
            None => vec![Span::Text(piece.to_owned())],
        };
        self.show(spans)
    }

    /// Prints the rest, and a line break if the answer has none.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        let spans = self.parser.as_mut().map(ReasoningParser::finish).unwrap_or_default();
        self.show(spans)?;
        if self.text.ends_with('\n') { Ok(()) } else { self.printer.stream("\n") }
    }

    fn show(&mut self, spans: Vec<Span>) -> anyhow::Result<()> {
        for span in spans {
            match span {
                Span::Reasoning(text) => {
                    self.printer.reasoning(&text)?;
                    self.reasoning += &text;
                }
                Span::Text(text) => {
                    if self.text.is_empty() && !self.reasoning.is_empty() {
                        self.printer.reasoning("\n\n")?;
                    }
                    self.printer.stream(&text)?;
                    self.text += &text;
                }
            }
        }
        Ok(())
    }
}
