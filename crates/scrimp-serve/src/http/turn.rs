//! One turn of a conversation, in no particular API: the messages and parameters of a request, its answers in the engine.
//!
//! The adapters of the APIs translate a request into a [`Turn`], and the [`Part`](super::parts::Part)s of its answers into
//! a response.

use super::{
    calls::MARKS,
    error::ApiError,
    messages::{self, Prompt, PromptOptions},
    params::Params,
    part_stream::{PartChunks, PartStream},
    parts::{AnswerParser, Block},
    reasoning::ReasoningOptions,
    state::{EngineOutputs, EngineRequests, Language, State},
    stream::{self, Complete, Usage},
    tools::Tools,
};
use axum::response::Response;
use scrimp_llm::{chat::ReasoningParser, generate::ReasoningParams};
use serde_json::Value;
use std::sync::Arc;

/// A request for the next message of a conversation.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Messages with the fields of OpenAI's chat API.
    pub(crate) messages: Vec<Value>,
    /// The tools and the choice among them.
    pub(crate) tools: Tools,
    /// Variables of the chat template.
    pub(crate) options: PromptOptions,
    /// Reasoning before the answer.
    pub(crate) reasoning: ReasoningOptions,
    /// Sampling, limits, KV cache.
    pub(crate) params: Params,
    /// Return log-probabilities of each token and of this many alternatives.
    pub(crate) logprobs: Option<usize>,
}

/// The answers of a turn while they are generated.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Outputs of the engine.
    outputs: EngineOutputs,
    /// A parser per answer.
    parsers: Vec<AnswerParser>,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// The context has less room than the request allows tokens.
    pub(crate) is_cut: bool,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Reasoning, texts and calls, in the order of the answer.
    pub(crate) blocks: Vec<Block>,
    /// It ends inside the arguments of a call.
    pub(crate) has_cut_call: bool,
    /// The answer's end and log-probabilities.
    pub(crate) complete: Complete,
}

impl Turn {
    /// The prompt.
    ///
    /// # Errors
    /// See [`messages::prompt`].
    pub(crate) fn prompt(&self, language: &Language) -> Result<Prompt, ApiError> {
        let reasoning = self.reasoning.or(&language.reasoning);
        messages::prompt(language, &self.messages, &self.tools, &self.options, reasoning)
    }

    /// The prompt's tokens, and the reasoning of an answer to it.
    ///
    /// # Errors
    /// See [`messages::prompt`].
    pub(crate) fn encode(
        &self,
        language: &Language,
    ) -> Result<(Vec<u32>, Option<ReasoningParams>), ApiError> {
        let prompt = self.prompt(language)?;
        let Some(marks) = prompt.reasoning else { return Ok((prompt.tokens, None)) };
        let (tokenizer, wanted) = (&language.tokenizer, self.reasoning.or(&language.reasoning));
        let mut reasoning = ReasoningParams::new(marks, wanted.limit, tokenizer)?;
        let is_constrained = self.tools.is_required() || self.params.format.is_constrained();
        if is_constrained && wanted.wanted == Some(true) && !reasoning.is_open {
            reasoning.beginning = tokenizer.encode(reasoning.marks.open, false, true)?;
        }
        Ok((prompt.tokens, Some(reasoning)))
    }

    /// Sends the turn to the engine.
    ///
    /// # Errors
    /// The prompt is invalid or too long, a grammar cannot be enforced, or the engine has stopped.
    pub(crate) fn submit(
        self,
        state: &Arc<State>,
        language: &Language,
        client: u64,
    ) -> Result<Answers, ApiError> {
        let (prompt, reasoning) = self.encode(language)?;
        self.submit_prompt(state, language, client, prompt, reasoning)
    }

    /// Sends a prompt with the parameters of the turn to the engine.
    ///
    /// # Errors
    /// As [`Turn::submit`].
    pub(crate) fn submit_prompt(
        self,
        state: &Arc<State>,
        language: &Language,
        client: u64,
        prompt: Vec<u32>,
        reasoning: Option<ReasoningParams>,
    ) -> Result<Answers, ApiError> {
        let Self { tools, params, .. } = self;
        let room = language.room(&prompt, state.options.max_model_len)?;
        let client = client ^ super::hash_of(params.user.as_deref());
        let (mut requests, outputs) = EngineRequests::new(state, language, client);
        let mut parsers = Vec::with_capacity(params.n);
        for i in 0..params.n {
            let constraint = match tools.constraint(language.constraints.as_ref())? {
                Some(constraint) => Some(constraint),
                None => params.format.constraint(language.constraints.as_ref())?,
            };
            let mut how = params.generate(i, room, usize::MAX, self.logprobs, constraint);
            how.speculation = language.speculation(params.speculation)?;
            how.written = language.special_tokens(&params);
            if tools.is_offered() {
                how.written.extend(MARKS.iter().filter_map(|mark| language.tokenizer.token_id(mark)));
            }
            how.written.extend(reasoning.iter().flat_map(|r| r.special_tokens(&language.tokenizer)));
            how.reasoning.clone_from(&reasoning);
            requests.generate(prompt.clone(), params.kv.clone(), how);
            let thoughts = reasoning.as_ref().map(|r| ReasoningParser::new(r.marks, r.is_open));
            parsers.push(AnswerParser::new(thoughts, tools.parser(), tools.is_single()));
        }
        language.submit(requests.finish())?;
        let is_cut = params.max_tokens.is_none_or(|most| most > room);
        Ok(Answers { outputs, parsers, prompt_tokens: prompt.len(), is_cut })
    }
}

impl Answers {
    /// Streams the answers.
    ///
    /// # Errors
    /// The first output is a failure.
    pub(crate) async fn stream(self, chunks: impl PartChunks) -> Result<Response, ApiError> {
        let Self { outputs, parsers, .. } = self;
        stream::stream(outputs, parsers.len(), PartStream { parsers, chunks }).await
    }

    /// Waits for the only answer.
    ///
    /// # Errors
    /// Its failure.
    pub(crate) async fn collect_one(self) -> Result<(Answer, Usage), ApiError> {
        let (mut answers, usage) = self.collect().await?;
        // Every request has an answer.
        let answer = answers.pop().ok_or_else(|| ApiError::bad_request("the request has no answer"))?;
        Ok((answer, usage))
    }

    /// Waits for all answers.
    ///
    /// # Errors
    /// The failure of the first answer that fails.
    pub(crate) async fn collect(self) -> Result<(Vec<Answer>, Usage), ApiError> {
        let (answers, usage) = stream::collect(self.outputs, self.parsers.len()).await?;
        let answers = answers.into_iter().zip(self.parsers).map(|(complete, mut parser)| {
            let blocks = parser.blocks(&complete.text);
            Answer { blocks, has_cut_call: parser.has_cut_call(), complete }
        });
        Ok((answers.collect(), usage))
    }
}
