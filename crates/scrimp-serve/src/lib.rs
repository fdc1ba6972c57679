//! An OpenAI-compatible server for language models, embedding models, rerankers and recommenders.
//!
//! ```text
//!  http      routes, keys, limits, formats of requests and answers       (tokio, two threads)
//!   │ EngineRequest  ▲ EngineOutput
//!   ▼                │
//!  engine    the thread that owns the model                              scheduler   continuous batching (pure)
//!   └ kv_cache_manager   KV caches of requests, cached prefixes           └ prefix    prefix cache by hash of blocks
//!
//!  texts     the threads that own the embedding model and the reranker
//!  score     the thread that owns the recommender
//!
//!  page/     the chat page: HTML, style and JavaScript modules without a build step, and vendored libraries
//! ```
//! Entry point: [`Server::bind`] and [`Server::run`].
#![forbid(unsafe_code)]

mod constraint;
mod engine;
mod http;
pub mod load;
mod metrics;
mod models;
mod options;
pub mod scheduler;
mod score;
mod server;
mod texts;
mod traces;

pub use engine::KvOptions;
pub use http::digest;
pub use models::{LanguageModel, LanguageSource, Models, Named};
pub use options::ServeOptions;
pub use server::Server;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
