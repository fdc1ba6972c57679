//! Rerankers: the relevance of documents to a query.
//!
//! ```text
//! cross-encoder      sigmoid(classifier(tanh(pooler(state of the first token)))) of "query, document" as a pair
//! decoder            p(yes) / (p(yes) + p(no)) as the next token of a question about query and document
//! ```
//! The question is that of Qwen3-Reranker (Zhang et al. 2025, arXiv 2506.05176, section 2).

use super::text::TextEncoder;
use crate::{
    encoder::Encoder,
    error::{Error, Result},
    llm::Llm,
    model::{Model, RunOptions},
};
use std::path::Path;

/// The instruction of Qwen3-Reranker for searches.
const INSTRUCTION: &str = "Given a web search query, retrieve relevant passages that answer the query";
const BEFORE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                      Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const BEHIND: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// A model that scores documents for a query.
#[derive(Debug)]
pub struct Reranker {
    kind: Kind,
}

/// The relevance of a document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relevance {
    /// From 0 to 1.
    pub score: f32,
    /// Tokens of the query and the document together, with the special ones.
    pub tokens: usize,
}

#[derive(Debug)]
enum Kind {
    CrossEncoder { encoder: Box<Encoder>, text: TextEncoder },
    Decoder { llm: Box<Llm>, yes: u32, no: u32 },
}

impl Reranker {
    /// Opens the directory of a cross-encoder, or a language model that answers "yes" or "no" (Qwen3-Reranker).
    ///
    /// # Errors
    /// When files are missing or damaged, or the model is neither.
    pub fn open(path: &Path, options: &RunOptions) -> Result<Self> {
        if path.is_dir()
            && let Some(encoder) = Encoder::open(path, options)?
        {
            if !encoder.has_classifier() {
                return Err(Error::unsupported(
                    format!("{}: an encoder without a classifier does not score documents", path.display()),
                    "use a cross-encoder, or Qwen3-Reranker",
                ));
            }
            let text = TextEncoder::open(path)?;
            return Ok(Self { kind: Kind::CrossEncoder { encoder: Box::new(encoder), text } });
        }
        let checkpoint = crate::checkpoint::Checkpoint::open(path)?;
        Self::from_llm(Llm::load(checkpoint, options)?)
    }

    /// A reranker that requests "yes" or "no" from a language model.
    ///
    /// # Errors
    /// When "yes" or "no" is not one token.
    pub fn from_llm(llm: Llm) -> Result<Self> {
        let token = |word: &str| match llm.tokenizer().encode(word, false, false)?[..] {
            [id] => Ok(id),
            _ => Err(Error::unsupported(
                format!("{}: {word:?} is not one token", llm.model().path().display()),
                "use a cross-encoder, or Qwen3-Reranker",
            )),
        };
        let (yes, no) = (token("yes")?, token("no")?);
        Ok(Self { kind: Kind::Decoder { llm: Box::new(llm), yes, no } })
    }

    /// The encoder; `None`: the model is a decoder.
    pub fn encoder(&self) -> Option<&Encoder> {
        match &self.kind {
            Kind::CrossEncoder { encoder, .. } => Some(encoder),
            Kind::Decoder { .. } => None,
        }
    }

    /// The decoder; `None`: the model is an encoder.
    pub fn decoder(&self) -> Option<&Model> {
        match &self.kind {
            Kind::CrossEncoder { .. } => None,
            Kind::Decoder { llm, .. } => Some(llm.model()),
        }
    }

    /// The most tokens of a query and a document. Cross-encoders cut longer texts.
    pub fn max_tokens(&self) -> usize {
        match &self.kind {
            Kind::CrossEncoder { encoder, .. } => encoder.config().max_tokens,
            Kind::Decoder { llm, .. } => llm.model().context_length(),
        }
    }

    /// The relevance of each document to `query`, from 0 to 1. `instruction` replaces that of web searches in models that
    /// read one.
    ///
    /// # Errors
    /// When a text is empty or cannot be tokenized, or memory cannot be had.
    pub fn score(&self, query: &str, documents: &[&str], instruction: Option<&str>) -> Result<Vec<f32>> {
        Ok(self.rank(query, documents, instruction)?.into_iter().map(|found| found.score).collect())
    }

    /// As [`Reranker::score`], with the number of tokens of each document.
    ///
    /// # Errors
    /// As [`Reranker::score`].
    pub fn rank(&self, query: &str, documents: &[&str], instruction: Option<&str>) -> Result<Vec<Relevance>> {
        match &self.kind {
            Kind::CrossEncoder { encoder, text } => {
                let most = encoder.config().max_tokens;
                let pair =
                    |document: &&str| text.encode(query, Some(document), most).map(|tokens| tokens.text);
                let pairs = documents.iter().map(pair).collect::<Result<Vec<_>>>()?;
                // One output is a logit; of two, the second is that of relevance.
                let relevance = |outputs: Vec<f32>| match outputs[..] {
                    [irrelevant, relevant] => sigmoid(relevant - irrelevant),
                    _ => sigmoid(outputs[0]),
                };
                let scores = encoder.classify(&pairs)?.into_iter().map(relevance);
                let tokens = pairs.iter().map(|pair| pair.ids.len());
                Ok(scores.zip(tokens).map(|(score, tokens)| Relevance { score, tokens }).collect())
            }
            Kind::Decoder { llm, yes, no } => {
                let instruction = instruction.unwrap_or(INSTRUCTION);
                let score = |document: &&str| {
                    let text = format!(
                        "{BEFORE}<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}{BEHIND}"
                    );
                    let ids = llm.tokenizer().encode(&text, false, true)?;
                    let mut session = llm.model().session();
                    let logits = session.forward(&ids)?;
                    let score = sigmoid(logits[*yes as usize] - logits[*no as usize]);
                    Ok(Relevance { score, tokens: ids.len() })
                };
                documents.iter().map(score).collect()
            }
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
