//! The runtime for language models: loading, tokenizers, the forward pass, generation.
//!
//! ```
//! # fn main() -> scrimp_llm::Result<()> {
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/tiny-gguf/qwen3.gguf");
//! let llm = scrimp_llm::Llm::open(model)?;
//! let answer = llm.generate("Why is the sky blue?")?;
//! # let _ = answer;
//! # Ok(())
//! # }
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`llm`] | [`Llm`]: a model with tokenizer and chat template; [`Chat`]: a conversation |
//! | [`checkpoint`], [`load`], [`families`], [`config`] | model files: formats, tensors by name, configuration |
//! | [`tokenizer`], [`chat`] | text to token ids and back; messages to text |
//! | [`model`] | [`model::Model`]: weights; [`model::Session`]: a sequence; [`model::Batch`]: many sequences in one pass |
//! | [`generate`](mod@generate), [`sampling`], [`logits`] | from a prompt to a stream of text |
//! | [`embedder`], [`encoder`], [`embedding`] | embedding models, encoders and rerankers; vectors |
//! | [`error`] | the error type of all crates |
//!
//! The same in steps, for callers that manage sequences or sampling themselves:
//!
//! ```
//! use scrimp_llm::{
//!     checkpoint::Checkpoint,
//!     generate::{Request, Sequence, Speculation, generate},
//!     model::{Model, RunOptions},
//!     sampling::Sampler,
//! };
//! use std::{ops::ControlFlow, path::Path};
//!
//! # fn main() -> scrimp_llm::Result<()> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/tiny/llama");
//! let checkpoint = Checkpoint::open(Path::new(path))?;
//! let tokenizer = checkpoint.tokenizer()?;
//! let model = Model::load(checkpoint, &RunOptions::default())?;
//!
//! let prompt = tokenizer.encode("Once upon a time", true, false)?;
//! let request = Request {
//!     prompt: &prompt,
//!     max_tokens: Some(8),
//!     stop: &[],
//!     is_end: &|id| tokenizer.is_end(id),
//!     cancel: None,
//!     reasoning: None,
//!     speculation: Speculation::Off,
//! };
//! let mut sequence = Sequence::new(model.session(), model.context_length());
//! let mut sampler = Sampler::greedy();
//! let mut text = tokenizer.stream_after(&prompt);
//! let answer = generate(&mut sequence, &request, &mut sampler, &mut text, &mut |piece| {
//!     print!("{piece}");
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n{:.1} tokens per second", answer.decode_tok_s());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod builtin_text;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod embedder;
pub mod embedding;
pub mod encoder;
pub mod error;
#[doc(hidden)]
pub mod fake;
pub mod families;
pub mod generate;
pub mod llm;
pub mod load;
pub mod model;
pub mod sampling;
pub mod source;
pub mod tokenizer;

pub use embedder::{Embedder, Embedding, Reranker};
pub use error::{Category, Error, Hint, Result};
pub use llm::{Chat, GenerateOptions, Llm};
pub use scrimp_kernels::ops::logits;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
