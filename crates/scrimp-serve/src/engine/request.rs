//! Messages between the HTTP handlers and the engine: requests and their outputs.

use crate::{constraint::Constraint, scheduler::RequestId, traces::Trace};
use scrimp_base::{Category, Error};
use scrimp_kv::{KvError, compress::Compression};
use scrimp_llm::{
    generate::{ReasoningParams, Speculation},
    sampling::SamplingParams,
};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc::UnboundedSender;

/// A request to the engine.
#[derive(Debug)]
pub(crate) struct EngineRequest {
    /// Identifier; later requests have larger ones.
    pub(crate) id: RequestId,
    /// The client, for the fair queue.
    pub(crate) client: u64,
    /// Prompt tokens.
    pub(crate) prompt: Vec<u32>,
    /// The kind of output.
    pub(crate) work: Work,
    /// Format and compression of the KV cache.
    pub(crate) kv: KvOptions,
    /// The request fails at this time if it has not finished.
    pub(crate) deadline: Instant,
    /// The trace of the HTTP request.
    pub(crate) trace: Option<Trace>,
    /// The model stays loaded while the request exists.
    pub(crate) _lease: Arc<()>,
    /// Index of the answer within the HTTP request; sent with each output.
    pub(crate) index: usize,
    /// Receives at most `max_tokens` + 3 outputs. The request is cancelled when the receiver is dropped.
    pub(crate) outputs: UnboundedSender<(usize, EngineOutput)>,
}

impl EngineRequest {
    /// Sends an output. False: the receiver was dropped.
    pub(super) fn send(&self, output: EngineOutput) -> bool {
        self.outputs.send((self.index, output)).is_ok()
    }
}

/// The output for a prompt.
#[derive(Debug)]
pub(crate) enum Work {
    /// Generated text.
    Generate(Box<Generate>),
    /// The mean of the hidden states.
    Embed,
}

/// Parameters of a generation.
#[derive(Debug)]
pub(crate) struct Generate {
    /// Sampling parameters.
    pub(crate) sampling: SamplingParams,
    /// Maximum number of tokens; 0: only the prompt is computed.
    pub(crate) max_tokens: usize,
    /// Minimum number of tokens before an end token.
    pub(crate) min_tokens: usize,
    /// Continue after end tokens.
    pub(crate) ignore_eos: bool,
    /// Strings that end the answer and are not part of it.
    pub(crate) stop: Vec<String>,
    /// Tokens that end the answer.
    pub(crate) stop_tokens: Vec<u32>,
    /// Special tokens that are part of the text.
    pub(crate) written: Vec<u32>,
    /// Return log-probabilities of each token and of this many alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Return the log-probabilities of the prompt's tokens as well.
    pub(crate) scores_prompt: bool,
    /// Added to the logits of these tokens.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Grammar of the answer behind its reasoning.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    /// The source of drafts. It changes the speed and not the answer.
    pub(crate) speculation: Speculation,
    /// Reasoning before the answer; `None`: the model does not reason.
    pub(crate) reasoning: Option<ReasoningParams>,
}

/// Format and compression of a KV cache.
#[derive(Debug, Clone, PartialEq)]
pub struct KvOptions {
    /// Compression after the prompt; `None`: all tokens stay in the cache.
    pub compression: Option<Compression>,
    /// Name of the storage format.
    pub format: String,
}

/// Outputs of a request: the scores of the prompt if requested, tokens or an embedding, then `Finished` or `Failed`.
#[derive(Debug)]
pub(crate) enum EngineOutput {
    /// The log-probabilities of the prompt's tokens but the first.
    Prompt(Vec<Logprobs>),
    /// The next token.
    Token(Token),
    /// The embedding.
    Embedding(Vec<f32>),
    /// The request has finished.
    Finished(Summary),
    /// The request has failed.
    Failed(Failure),
}

/// One token of an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Token {
    /// Text that no later token can change; may be empty.
    pub(crate) text: String,
    /// Log-probabilities, if requested.
    pub(crate) logprobs: Option<Logprobs>,
}

/// The log-probability of a token and of its best alternatives.
#[derive(Debug, Clone)]
pub(crate) struct Logprobs {
    /// The token.
    pub(crate) token: u32,
    /// Its log-probability.
    pub(crate) logprob: f64,
    /// The most likely tokens with their log-probabilities, most likely first.
    pub(crate) top: Vec<(u32, f64)>,
}

/// Statistics of a finished request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summary {
    /// Text held back as a possible stop string.
    pub(crate) text: String,
    /// Why the answer ended.
    pub(crate) reason: FinishReason,
    /// Prompt tokens.
    pub(crate) prompt_tokens: usize,
    /// Prompt tokens that a cached prefix contained.
    pub(crate) cached_tokens: usize,
    /// Generated tokens, including an end token.
    pub(crate) generated_tokens: usize,
    /// Generated tokens inside the reasoning.
    pub(crate) reasoning_tokens: usize,
    /// The stop string that ended the answer.
    pub(crate) stop: Option<String>,
    /// Size of the KV cache at the end, bytes.
    pub(crate) kv_bytes: usize,
    /// Tokens in the KV cache, averaged over layers and heads.
    pub(crate) kv_tokens: usize,
    /// Size of a full bf16 cache of the same text, bytes.
    pub(crate) kv_bytes_full: usize,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FinishReason {
    /// An end token or a stop string.
    #[default]
    Stop,
    /// `max_tokens`, or a full context.
    Length,
}

impl FinishReason {
    /// The value in the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The queue is full.
    Busy,
    /// The deadline passed.
    Timeout,
    /// The request is invalid.
    BadRequest(String),
    /// The server is shutting down.
    ShuttingDown,
    /// The engine failed.
    Internal(String),
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        let message = match e.hint() {
            Some(hint) => format!("{e}; {hint}"),
            None => e.to_string(),
        };
        match e.category() {
            // The server chooses the arguments of the KV cache: their errors are its own.
            Category::BadInput | Category::Unsupported if e.source_as::<KvError>().is_none() => {
                Self::BadRequest(message)
            }
            _ => Self::Internal(message),
        }
    }
}
