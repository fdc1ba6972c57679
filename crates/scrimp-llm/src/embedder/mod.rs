//! Models that turn texts into vectors: encoders (BERT, RoBERTa, Nomic) and decoders with a pooling.
//!
//! ```no_run
//! # fn main() -> scrimp_llm::Result<()> {
//! let embedder = scrimp_llm::Embedder::open("all-MiniLM-L6-v2".as_ref(), &Default::default())?;
//! let [cat, bond] = &embedder.embed(&["a cat", "a bond yield"], None)?[..] else { panic!() };
//! println!("{} numbers, {} tokens", cat.vector.len(), bond.tokens);
//! # Ok(())
//! # }
//! ```

mod pipeline;
mod purpose;
mod rerank;
mod text;

pub use pipeline::Pooling;
pub use purpose::Purpose;
pub use rerank::{Relevance, Reranker};

use crate::{
    checkpoint::Checkpoint,
    encoder::Encoder,
    error::{Error, Result},
    model::{Batch, CHUNK, Model, Output, RunOptions, Step, prompt_parts},
};
use pipeline::Pipeline;
use scrimp_kernels::Exec;
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};
use text::TextEncoder;

/// A model that computes embeddings.
#[derive(Debug)]
pub struct Embedder {
    backbone: Backbone,
    text: TextEncoder,
    pipeline: Pipeline,
}

/// The transformer below the pooling.
#[derive(Debug)]
enum Backbone {
    Encoder(Box<Encoder>),
    Decoder(Model),
}

/// The embedding of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The numbers. They have Euclidean length 1 unless the model's files say otherwise.
    pub vector: Vec<f32>,
    /// Tokens of the text, with the special ones.
    pub tokens: usize,
    /// The text was longer than the model allows and was cut.
    pub truncated: bool,
}

impl Embedder {
    /// Opens a Hugging Face directory of an encoder, or any model that [`Checkpoint::open`] opens.
    ///
    /// A directory with `modules.json` (sentence-transformers) states pooling, dense layers, normalization and prompts;
    /// a GGUF file states its pooling. Without both, the pooling is the mean, scaled to length 1.
    ///
    /// # Errors
    /// When files are missing or damaged, a module is unknown, or memory cannot be had.
    pub fn open(path: &Path, options: &RunOptions) -> Result<Self> {
        if path.is_dir()
            && let Some(encoder) = Encoder::open(path, options)?
        {
            let (width, exec) = (encoder.config().hidden_size, encoder.exec());
            let pipeline = Pipeline::read(path, width, exec.pool)?;
            return Ok(Self {
                pipeline: pipeline.unwrap_or_else(|| Pipeline::plain(Pooling::Mean)),
                text: TextEncoder::open(path)?,
                backbone: Backbone::Encoder(Box::new(encoder)),
            });
        }
        Self::from_checkpoint(Checkpoint::open(path)?, options)
    }

    /// A decoder with the pooling that its files state.
    fn from_checkpoint(checkpoint: Checkpoint, options: &RunOptions) -> Result<Self> {
        let dir = checkpoint.hf_dir().map(Path::to_owned);
        let (text, pooling) = match (&dir, checkpoint.gguf_metadata()) {
            (Some(dir), _) => (TextEncoder::open(dir)?, Pooling::Mean),
            (None, metadata) => {
                let architecture = checkpoint.config().family;
                let key = format!("{architecture}.pooling_type");
                let number = metadata.map(|metadata| metadata.u64(&key)).transpose()?.flatten();
                let adds_eos =
                    metadata.map(|m| m.bool("tokenizer.ggml.add_eos_token")).transpose()?.flatten();
                let tokenizer = Box::new(checkpoint.tokenizer()?);
                let text = TextEncoder::Native { tokenizer, adds_eos: adds_eos.unwrap_or(false) };
                (text, gguf_pooling(&checkpoint, number)?)
            }
        };
        let model = Model::load(checkpoint, options)?;
        let width = model.config().hidden_size;
        let pipeline = match &dir {
            Some(dir) => Pipeline::read(dir, width, model.exec().pool)?,
            None => None,
        };
        let pipeline = pipeline.unwrap_or_else(|| Pipeline::plain(pooling));
        Ok(Self { backbone: Backbone::Decoder(model), text, pipeline })
    }

    fn exec(&self) -> Exec<'_> {
        match &self.backbone {
            Backbone::Encoder(encoder) => encoder.exec(),
            Backbone::Decoder(model) => model.exec(),
        }
    }

    /// The encoder; `None`: the model is a decoder.
    pub fn encoder(&self) -> Option<&Encoder> {
        match &self.backbone {
            Backbone::Encoder(encoder) => Some(encoder),
            Backbone::Decoder(_) => None,
        }
    }

    /// The decoder; `None`: the model is an encoder.
    pub fn decoder(&self) -> Option<&Model> {
        match &self.backbone {
            Backbone::Encoder(_) => None,
            Backbone::Decoder(model) => Some(model),
        }
    }

    /// Elements of an embedding.
    pub fn width(&self) -> usize {
        self.pipeline.width(match &self.backbone {
            Backbone::Encoder(encoder) => encoder.config().hidden_size,
            Backbone::Decoder(model) => model.config().hidden_size,
        })
    }

    /// The most tokens of a text; longer texts are cut.
    pub fn max_tokens(&self) -> usize {
        let most = match &self.backbone {
            Backbone::Encoder(encoder) => encoder.config().max_tokens,
            Backbone::Decoder(model) => model.context_length(),
        };
        self.pipeline.max_tokens.filter(|&n| n > 2).map_or(most, |n| n.min(most))
    }

    /// Names of the prompts that the model's files define (`query`, `document`).
    pub fn prompt_names(&self) -> impl Iterator<Item = &str> {
        self.pipeline.prompts.keys().map(String::as_str)
    }

    /// The embeddings of `texts`. `prompt` names a prompt that is put before each text; `None`: the model's default.
    ///
    /// # Errors
    /// When there is no such prompt, a text is empty, or memory cannot be had.
    pub fn embed(&self, texts: &[&str], prompt: Option<&str>) -> Result<Vec<Embedding>> {
        let prompt = self.prompt(prompt)?;
        let mut encoded = Vec::with_capacity(texts.len());
        let mut embeddings = Vec::with_capacity(texts.len());
        for text in texts {
            if text.is_empty() {
                return Err(Error::bad_input("there is no text to embed"));
            }
            let tokens = self.text.encode(&format!("{prompt}{text}"), None, self.max_tokens())?;
            embeddings.push(Embedding {
                vector: Vec::new(),
                tokens: tokens.text.ids.len(),
                truncated: tokens.truncated,
            });
            encoded.push(tokens.text);
        }
        let (exec, pipeline) = (self.exec(), &self.pipeline);
        match &self.backbone {
            Backbone::Encoder(encoder) => {
                let width = encoder.config().hidden_size;
                encoder.each_text(&encoded, &mut |i, rows| {
                    embeddings[i].vector = pipeline.finish(exec, pipeline.pooling.apply(rows, width));
                })?;
            }
            Backbone::Decoder(model) => {
                for (embedding, text) in embeddings.iter_mut().zip(&encoded) {
                    let rows = hidden_states(model, &text.ids)?;
                    let state = pipeline.pooling.apply(&rows, model.config().hidden_size);
                    embedding.vector = pipeline.finish(exec, state);
                }
            }
        }
        Ok(embeddings)
    }

    fn prompt(&self, name: Option<&str>) -> Result<&str> {
        let Pipeline { prompts, default_prompt, .. } = &self.pipeline;
        match name.or(default_prompt.as_deref()) {
            None => Ok(""),
            Some(name) => prompts.get(name).map(String::as_str).ok_or_else(|| {
                let names: Vec<&str> = self.prompt_names().collect();
                let hint = match names.is_empty() {
                    true => "the model's files define no prompts".to_owned(),
                    false => format!("the model's prompts are {}", names.join(", ")),
                };
                Error::bad_input(format!("there is no prompt {name:?}")).with_hint(hint)
            }),
        }
    }
}

/// The final states of all tokens, `[tokens][hidden_size]`.
fn hidden_states(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let (mut batch, mut session) = (Batch::new(model), model.session());
    let all = Mutex::new(Vec::with_capacity(ids.len() * model.config().hidden_size));
    let parts = match model.config().bidirectional {
        true => vec![ids],
        false => prompt_parts(ids, CHUNK).collect(),
    };
    for tokens in parts {
        let mut steps = [Step { session: &mut session, tokens, output: Output::Hidden }];
        let results = batch.forward(&mut steps, &|_, rows| {
            all.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(rows);
        });
        results.into_iter().collect::<Result<()>>()?;
    }
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// GGUF's `pooling_type`.
fn gguf_pooling(checkpoint: &Checkpoint, number: Option<u64>) -> Result<Pooling> {
    match number {
        None | Some(0 | 1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::First),
        Some(3) => Ok(Pooling::Last),
        Some(other) => Err(Error::unsupported(
            format!("{}: pooling of type {other} does not give embeddings", checkpoint.path().display()),
            "mean (1), first (2) and last (3) do",
        )),
    }
}
