//! From a sample's text to its tokens before and after the compression of the cache.
//!
//! ```text
//! before:  [ context question ] compress            answer
//! after:   [ context ]          compress  question  answer
//! second:  [ context other    ] compress, remove the other question,  question  answer
//! ```
//!
//! `before` is the usual order of benchmarks: the cache is compressed with knowledge of the question. `after` and
//! `second` measure a compressed context that is reused for later questions.

use scrimp_llm::{
    chat::{ChatTemplate, Message},
    error::{Error, Result},
    generate::common_prefix,
    tokenizer::Tokenizer,
};

/// The position of the question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Question {
    /// Before the cache is compressed: the whole prompt is prefilled.
    #[default]
    Before,
    /// After the context was compressed.
    After,
    /// After the context was compressed together with another question.
    Second,
}

impl Question {
    /// All positions.
    pub const ALL: [Self; 3] = [Self::Before, Self::After, Self::Second];

    /// The name that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Second => "second",
        }
    }

    /// One line for lists of positions.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Before => "Before the KV cache is compressed, as part of the prompt",
            Self::After => "After the KV cache of the context was compressed",
            Self::Second => "After the KV cache was compressed with another question at its end",
        }
    }
}

/// A sample's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    /// The context of all questions, with its introduction.
    pub context: String,
    /// The text after the context.
    pub question: String,
    /// Another question about the context, for [`Question::Second`].
    pub other: Option<String>,
    /// The beginning of the answer, a part of the prompt (RULER).
    pub answer_prefix: String,
    /// The beginning of the answer to the other question.
    pub other_prefix: String,
}

/// A prompt in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens before the compression.
    pub prefill: Vec<u32>,
    /// The number of these tokens that stay; the others are removed after the compression.
    pub keep: usize,
    /// The tokens that follow the compression.
    pub question: Vec<u32>,
}

/// Makes prompts for one model.
#[derive(Debug, Clone, Copy)]
pub struct Builder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The chat template that is put around the text.
    pub template: Option<&'a ChatTemplate>,
    /// Maximum tokens of a text without the chat template. The middle of longer texts is left out, as in LongBench.
    pub max_tokens: usize,
}

impl Builder<'_> {
    /// The prompt of `text`.
    ///
    /// # Errors
    /// `max_tokens` leaves no room for the question, the other question is missing, or the template or the tokenizer
    /// fails.
    pub fn build(&self, text: &Text, when: Question) -> Result<Prompt> {
        let full = self.ids(&self.render(&text.context, &text.question, &text.answer_prefix)?.0)?;
        if when == Question::Before {
            return Ok(Prompt { keep: full.len(), prefill: full, question: Vec::new() });
        }
        let (rendered, at) = self.render(&text.context, &text.question, &text.answer_prefix)?;
        let head = self.ids(&rendered[..at])?;
        let mut keep = common_prefix(&full, &head);
        let mut prefill = full[..keep].to_vec();
        if when == Question::Second {
            let Some(other) = &text.other else {
                return Err(Error::bad_input("this sample has no second question").with_hint(
                    "use `question` before or after for tasks that ask the same of every context",
                ));
            };
            prefill = self.ids(&self.render(&text.context, other, &text.other_prefix)?.0)?;
            keep = common_prefix(&prefill, &full[..keep]);
        }
        if keep == 0 || keep == full.len() {
            return Err(Error::bad_input("the question or the context of a sample is empty"));
        }
        Ok(Prompt { prefill, keep, question: full[keep..].to_vec() })
    }

    /// The text in the model's template, and the position of the question in it.
    fn render(&self, context: &str, question: &str, prefix: &str) -> Result<(String, usize)> {
        let text = self.shortened(format!("{context}{question}"))?;
        if !text.ends_with(question) {
            return Err(Error::bad_input(format!(
                "{} prompt tokens leave no room for the question",
                self.max_tokens
            ))
            .with_hint("allow longer prompts, or take a model with a longer context"));
        }
        let question = question.trim_end();
        let mut rendered = match self.template {
            Some(template) => {
                template.render(&[Message::new("user", text)], true, &serde_json::Map::new())?
            }
            None => text,
        };
        let at = rendered.rfind(question).ok_or_else(|| {
            Error::bad_input("the chat template changes the text: the question is not found in what it makes")
        })?;
        rendered.push_str(prefix);
        Ok((rendered, at))
    }

    /// LongBench's truncation: the first and the last `max_tokens / 2` tokens of a text that is too long.
    fn shortened(&self, text: String) -> Result<String> {
        let ids = self.tokenizer.encode(&text, true, true)?;
        if ids.len() <= self.max_tokens {
            return Ok(text);
        }
        let half = self.max_tokens / 2;
        Ok(self.tokenizer.decode(&ids[..half]) + &self.tokenizer.decode(&ids[ids.len() - half..]))
    }

    /// Tokens of a rendered text; chat templates write the begin-of-text token themselves.
    fn ids(&self, rendered: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(rendered, self.template.is_none(), true)
    }
}
