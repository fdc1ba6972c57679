//! Streams of answers in parts: feeds the texts of answers to their parsers, for all APIs.

use super::{
    error::ApiError,
    parts::{AnswerParser, Part},
    stream::{Chunks, EVENTS, Frames, Usage},
};
use crate::engine::{Summary, Token};

/// The stream format of an API whose answers have parts.
pub(crate) trait PartChunks: Send + Unpin + 'static {
    /// Media type of the stream.
    const MEDIA_TYPE: &'static str = EVENTS;

    /// Writes parts of answer `index`. `token`: the token that completed them; `None` at the end of the answer.
    fn parts(&mut self, index: usize, parts: Vec<Part>, token: Option<&Token>, out: &mut Frames);
    /// Writes the end of answer `index` behind its last part.
    fn end(&mut self, index: usize, parser: &AnswerParser, summary: &Summary, out: &mut Frames);
    /// Writes the end of the stream, with the usage of all answers.
    fn finish(&mut self, usage: &Usage, out: &mut Frames);
    /// Writes an error, the end of the stream.
    fn fail(&mut self, e: &ApiError, out: &mut Frames) {
        out.data(&e.body());
    }
}

/// Answers that are split into parts for `chunks`.
pub(super) struct PartStream<C> {
    /// A parser per answer.
    pub(super) parsers: Vec<AnswerParser>,
    pub(super) chunks: C,
}

impl<C: PartChunks> Chunks for PartStream<C> {
    const MEDIA_TYPE: &'static str = C::MEDIA_TYPE;

    fn token(&mut self, index: usize, token: Token, out: &mut Frames) {
        let parts = self.parsers[index].push(&token.text);
        self.chunks.parts(index, parts, Some(&token), out);
    }

    fn end(&mut self, index: usize, summary: &Summary, out: &mut Frames) {
        let parts = self.parsers[index].finish(&summary.text);
        self.chunks.parts(index, parts, None, out);
        self.chunks.end(index, &self.parsers[index], summary, out);
    }

    fn finish(&mut self, usage: &Usage, out: &mut Frames) {
        self.chunks.finish(usage, out);
    }

    fn fail(&mut self, e: &ApiError, out: &mut Frames) {
        self.chunks.fail(e, out);
    }
}
