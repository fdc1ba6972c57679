//! Language-model runtime: loading, tokenizer, decoder, generation and evaluation.
//!
//! | entry point | what it does |
//! |---|---|
//! | [`hub::Hub::fetch`] | a path for a model reference, downloading what is not there |
//! | [`checkpoint::Checkpoint::open`] | a GGUF file or Hugging Face directory, checked against its family |
//! | [`tokenizer::Tokenizer`], [`chat::ChatTemplate`] | text to token ids and back; messages to text |
//! | [`model::Model::load`], [`model::Session`] | weights ready to run; one sequence with its KV cache |
//! | [`generate::generate`] | from a prompt to a stream of text, with a [`sampling::Sampler`] |
//! | [`eval::ppl::perplexity`], [`eval::kl::divergence`] | how good a model is |
//! | [`eval::longbench`], [`eval::ruler`], [`eval::needle`] | questions about long contexts, under many settings of the KV cache |
//! | [`report::kv`] | quality against size of the KV cache: chart and table |
//! | [`fit::settings`] | how small weights and cache have to be for the memory that there is |
//! | [`families::FAMILIES`] | the families that can be run |
//!
//! Ask a model, and print the answer as it comes:
//!
//! ```no_run
//! use scrimp_llm::{
//!     chat::{Message, chat_template_from_gguf},
//!     checkpoint::Checkpoint,
//!     generate::{Request, Sequence, generate},
//!     hub::{Hub, ModelRef, Silent},
//!     model::{Model, RunOptions},
//!     sampling::Sampler,
//!     tokenizer::Tokenizer,
//! };
//! use std::ops::ControlFlow;
//!
//! # fn main() -> scrimp_llm::Result<()> {
//! let path = Hub::from_env()?.fetch(&ModelRef::parse("smollm2")?, &mut Silent)?;
//! let checkpoint = Checkpoint::open(&path)?;
//! let metadata = checkpoint.gguf_metadata().expect("a GGUF file");
//! let tokenizer = Tokenizer::from_gguf(metadata)?;
//! let template = chat_template_from_gguf(metadata, &tokenizer)?.expect("a chat model");
//! let model = Model::load(checkpoint, &RunOptions::default())?;
//!
//! let text = template.render(&[Message::new("user", "Why is the sky blue?")], true, &Default::default())?;
//! let prompt = tokenizer.encode(&text, false, true)?;
//! let request = Request {
//!     prompt: &prompt,
//!     max_tokens: Some(100),
//!     stop: &[],
//!     is_end: &|id| tokenizer.is_end(id),
//!     cancel: None,
//! };
//! let mut sequence = Sequence::new(model.session(), model.context_length());
//! let answer = generate(
//!     &mut sequence,
//!     &request,
//!     &mut Sampler::greedy(),
//!     &mut tokenizer.stream_after(&prompt),
//!     &mut |piece| {
//!         print!("{piece}");
//!         ControlFlow::Continue(())
//!     },
//! )?;
//! println!("\n{:.1} tokens per second", answer.decode_tok_s());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod builtin_text;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod error;
#[doc(hidden)]
pub mod fake;
pub mod families;
pub mod generate;
pub mod load;
pub mod logits;
pub mod model;
pub mod sampling;
pub mod source;
pub mod tokenizer;

pub use error::{Category, Error, Hint, Result};
