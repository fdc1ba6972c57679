//! What the engine is asked for, and what it answers.

use crate::{constraint::Constraint, scheduler::RequestId};
use scrimp_kv::compress::Compression;
use scrimp_llm::sampling::SamplingParams;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// A request.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its name; later ones are larger.
    pub(crate) id: RequestId,
    /// Whose share of the queue it belongs to.
    pub(crate) client: u64,
    /// Tokens to start from.
    pub(crate) prompt: Vec<u32>,
    /// What is wanted.
    pub(crate) work: Work,
    /// How its KV cache is stored and made smaller.
    pub(crate) kv: KvChoice,
    /// It fails when it has not ended by then.
    pub(crate) deadline: Instant,
    /// Which of the caller's answers this is; goes with each event.
    pub(crate) index: usize,
    /// Where answers go. When the other side is gone, the request is cancelled. At most `max_tokens` and two are sent.
    pub(crate) events: UnboundedSender<(usize, Event)>,
}

impl Job {
    /// Sends an event; false if nobody listens any more.
    pub(super) fn send(&self, event: Event) -> bool {
        self.events.send((self.index, event)).is_ok()
    }
}

/// What is wanted of a prompt.
#[derive(Debug)]
pub(crate) enum Work {
    /// Text that follows it.
    Generate(Box<Generate>),
    /// The mean of its hidden states.
    Embed,
}

/// How to generate.
#[derive(Debug)]
pub(crate) struct Generate {
    /// How to choose tokens.
    pub(crate) sampling: SamplingParams,
    /// Most tokens.
    pub(crate) max_tokens: usize,
    /// No end token before so many.
    pub(crate) min_tokens: usize,
    /// End tokens are text like any other.
    pub(crate) ignore_eos: bool,
    /// Strings that end the answer; not part of it.
    pub(crate) stop: Vec<String>,
    /// Tokens that end the answer.
    pub(crate) stop_tokens: Vec<u32>,
    /// Log-probabilities of each token, and of so many of the best ones beside it.
    pub(crate) logprobs: Option<usize>,
    /// Added to logits.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// What the answer must look like.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
}

/// How a request's KV cache is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KvChoice {
    /// How it is made smaller.
    pub compression: Option<Compression>,
    /// Storage format.
    pub format: String,
}

/// Answers, in this order: tokens, then one of the last two.
#[derive(Debug)]
pub(crate) enum Event {
    /// One more token.
    Token(Token),
    /// The embedding.
    Embedding(Vec<f32>),
    /// The end.
    Done(Summary),
    /// It failed.
    Failed(Failure),
}

/// One token of an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Token {
    /// Text that is now certain, possibly none.
    pub(crate) text: String,
    /// Log-probabilities, where asked for.
    pub(crate) logprobs: Option<Logprobs>,
}

/// The log-probability of a token and of its best alternatives.
#[derive(Debug, Clone)]
pub(crate) struct Logprobs {
    /// The token that was drawn.
    pub(crate) token: u32,
    /// Its log-probability.
    pub(crate) logprob: f64,
    /// The best tokens, best first.
    pub(crate) top: Vec<(u32, f64)>,
}

/// How an answer ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summary {
    /// Text that was held back until now.
    pub(crate) text: String,
    /// `stop` or `length`.
    pub(crate) reason: Reason,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Tokens of the prompt that a cache held already.
    pub(crate) cached_tokens: usize,
    /// Generated tokens, the one that ended it included.
    pub(crate) generated_tokens: usize,
    /// Bytes of the KV cache at the end.
    pub(crate) kv_bytes: usize,
    /// Tokens in it, averaged over layers and heads.
    pub(crate) kv_tokens: usize,
    /// Bytes that a whole bf16 cache of as many tokens would take.
    pub(crate) kv_bytes_full: usize,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reason {
    /// The model or a stop string ended it.
    #[default]
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

impl Reason {
    /// As in the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The queue is full.
    Busy,
    /// It took too long.
    Timeout,
    /// The request asks for something that cannot be.
    BadRequest(String),
    /// The server is going down.
    ShuttingDown,
    /// The engine failed.
    Internal(String),
}
