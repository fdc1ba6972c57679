//! Reasoning at the beginning of an answer: counts its tokens and ends it at a limit.

use crate::{
    chat::{ReasoningMarks, ReasoningParser},
    error::Result,
    tokenizer::Tokenizer,
};
use std::collections::VecDeque;

/// The reasoning of an answer.
#[derive(Debug, Clone)]
pub struct ReasoningParams {
    /// The marks of the model.
    pub marks: &'static ReasoningMarks,
    /// The answer begins inside the reasoning.
    pub is_open: bool,
    /// Maximum number of tokens; `None`: no limit.
    pub limit: Option<usize>,
    /// The tokens that end the reasoning at its limit.
    pub ending: Vec<u32>,
    /// The answer begins with these tokens: the opening mark of an answer that must reason first.
    pub beginning: Vec<u32>,
}

impl ReasoningParams {
    /// The reasoning of an answer to a prompt (see
    /// [`ChatTemplate::reasoning_after`](crate::chat::ChatTemplate::reasoning_after)), at most `limit` tokens.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the marks.
    pub fn new(
        (marks, is_open): (&'static ReasoningMarks, bool),
        limit: Option<usize>,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let ending = tokenizer.encode(&format!("\n{}\n\n", marks.close), false, true)?;
        Ok(Self { marks, is_open, limit, ending, beginning: Vec::new() })
    }

    /// The special tokens of the marks, which the text of the answer must contain
    /// ([`StreamDecoder::writing`](crate::tokenizer::StreamDecoder::writing)).
    pub fn special_tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let marks = [self.marks.open, self.marks.close].into_iter();
        let tokens = marks.filter_map(|mark| tokenizer.encode(mark, false, true).ok()).flatten();
        tokens.filter(|&id| tokenizer.is_special(id)).collect()
    }
}

/// The state of the reasoning of an answer.
#[derive(Debug)]
pub struct Reasoning {
    parser: ReasoningParser,
    limit: Option<usize>,
    ending: Vec<u32>,
    /// The next tokens of the answer.
    forced: VecDeque<u32>,
    tokens: usize,
}

impl Reasoning {
    /// The state before the first token.
    pub fn new(params: &ReasoningParams) -> Self {
        Self {
            parser: ReasoningParser::new(params.marks, params.is_open),
            limit: params.limit,
            ending: params.ending.clone(),
            forced: params.beginning.iter().copied().collect(),
            tokens: 0,
        }
    }

    /// Tokens inside the reasoning.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The next token, if it is not the model's choice.
    pub fn forced(&mut self) -> Option<u32> {
        self.forced.pop_front()
    }

    /// Whether the next token belongs to the reasoning, so that a grammar does not apply to it.
    pub fn is_inside(&self) -> bool {
        self.parser.is_inside() || !self.forced.is_empty()
    }

    /// Takes the text of a token.
    pub fn accept(&mut self, text: &str) {
        self.tokens += usize::from(self.parser.is_inside());
        self.parser.push(text);
        let is_full = self.limit.is_some_and(|limit| self.tokens >= limit);
        if is_full && self.parser.is_inside() && self.forced.is_empty() {
            self.forced = self.ending.iter().copied().collect();
            self.limit = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ChatTemplate;

    /// The tokens of an answer whose model always chooses token 9, a letter. Tokens below 4 are the parts of marks.
    fn answer(is_open: bool, limit: Option<usize>, beginning: &[u32], n: usize) -> (Vec<u32>, usize) {
        let text = |id: u32| ["<think>", "\n", "</think>", "\n\n"].get(id as usize).map_or("a", |text| *text);
        let marks = ChatTemplate::new("</think>", "", "").unwrap().reasoning().unwrap();
        let params =
            ReasoningParams { marks, is_open, limit, ending: vec![1, 2, 3], beginning: beginning.to_vec() };
        let mut reasoning = Reasoning::new(&params);
        let mut ids = Vec::new();
        for _ in 0..n {
            let id = reasoning.forced().unwrap_or(9);
            reasoning.accept(text(id));
            ids.push(id);
        }
        (ids, reasoning.tokens())
    }

    #[test]
    fn a_limit_ends_the_reasoning() {
        assert_eq!(answer(true, Some(2), &[], 7), (vec![9, 9, 1, 2, 3, 9, 9], 4));
        assert_eq!(answer(false, Some(1), &[0], 6), (vec![0, 9, 1, 2, 3, 9], 3));
        assert_eq!(answer(true, None, &[], 3), (vec![9; 3], 3));
        // An answer that does not begin with the mark does not reason.
        assert_eq!(answer(false, Some(2), &[], 4), (vec![9; 4], 0));
    }
}
