//! The models of a server, and the choice of one for a request.

use super::{
    error::ApiError,
    state::{Language, State},
};
use crate::{
    engine::Failure,
    models::Profile,
    texts::{TextModel, TextQueue},
};
use axum::http::StatusCode;
use scrimp_llm::{
    Embedder, Reranker, checkpoint::Checkpoint, config::ModelConfig, encoder::Encoder, model::Model,
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::{Instant, timeout_at};

/// A kind of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It generates text.
    Language,
    /// It computes embeddings.
    Embedder,
    /// It scores documents for a query.
    Reranker,
    /// It scores rows of a click log.
    Recommender,
}

impl Kind {
    /// The task in lists of models.
    pub(crate) fn task(self) -> &'static str {
        match self {
            Self::Language => "generate",
            Self::Embedder => "embed",
            Self::Reranker => "rerank",
            Self::Recommender => "recommend",
        }
    }

    /// The kind with an article.
    fn name(self) -> &'static str {
        match self {
            Self::Language => "a language model",
            Self::Embedder => "an embedding model",
            Self::Reranker => "a reranker",
            Self::Recommender => "a recommender",
        }
    }

    /// The paths that it serves.
    fn paths(self) -> &'static str {
        match self {
            Self::Language => "/v1/chat/completions, /v1/completions",
            Self::Embedder => "/v1/embeddings, /api/embed",
            Self::Reranker => "/v1/rerank, /v1/score",
            Self::Recommender => "/v1/score",
        }
    }
}

/// A model that requests can name.
pub(crate) trait Served {
    /// Its kind.
    const KIND: Kind;

    /// Its names; answers contain the first.
    fn names(&self) -> &[String];

    /// The name in answers.
    fn name(&self) -> &str {
        self.names().first().map_or("", String::as_str)
    }
}

impl Served for Language {
    const KIND: Kind = Kind::Language;

    fn names(&self) -> &[String] {
        &self.names
    }
}

impl Served for TextService<Embedder> {
    const KIND: Kind = Kind::Embedder;

    fn names(&self) -> &[String] {
        &self.names
    }
}

impl Served for TextService<Reranker> {
    const KIND: Kind = Kind::Reranker;

    fn names(&self) -> &[String] {
        &self.names
    }
}

/// Facts about a model and its file.
#[derive(Debug, Clone)]
pub(crate) struct ModelFacts {
    /// Family of the architecture.
    pub(crate) family: &'static str,
    /// Number of layers.
    pub(crate) layers: usize,
    /// Number of parameters.
    pub(crate) parameters: u64,
    /// Size of the file in bytes.
    pub(crate) file_bytes: u64,
    /// Size of the weights in memory in bytes.
    pub(crate) weight_bytes: u64,
    /// Format of the file: `gguf` or `safetensors`.
    pub(crate) container: &'static str,
    /// Format of most weights.
    pub(crate) weights: &'static str,
}

impl ModelFacts {
    /// The facts about a decoder.
    pub(crate) fn new(model: &Model) -> Self {
        let weight_bytes = model.weight_bytes() as u64;
        Self { weight_bytes, ..Self::of_checkpoint(model.config(), model.checkpoint()) }
    }

    /// The facts about a decoder that is not loaded.
    pub(crate) fn of_checkpoint(config: &ModelConfig, checkpoint: Option<&Checkpoint>) -> Self {
        let mut formats: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (_, tensor) in checkpoint.iter().flat_map(|checkpoint| checkpoint.tensors()) {
            let parameters = tensor.shape.iter().map(|&d| d as u64).product::<u64>();
            *formats.entry(tensor.encoding.name()).or_default() += parameters;
        }
        let is_gguf = checkpoint.is_some_and(|checkpoint| checkpoint.gguf_metadata().is_some());
        Self {
            family: config.family,
            layers: config.n_layers,
            parameters: formats.values().sum(),
            file_bytes: checkpoint.map_or(0, Checkpoint::file_bytes),
            weight_bytes: checkpoint.map_or(0, Checkpoint::file_bytes),
            container: if is_gguf { "gguf" } else { "safetensors" },
            weights: formats.iter().max_by_key(|format| format.1).map_or("", |format| format.0),
        }
    }

    /// The facts about an encoder.
    pub(crate) fn of_encoder(encoder: &Encoder) -> Self {
        Self {
            family: encoder.config().model_type,
            layers: encoder.config().n_layers,
            parameters: encoder.parameters(),
            file_bytes: encoder.stored_bytes(),
            weight_bytes: encoder.stored_bytes(),
            container: "safetensors",
            weights: encoder.stored_type(),
        }
    }

    /// The facts about an encoder or a decoder, one of which is given.
    pub(crate) fn of_either(encoder: Option<&Encoder>, decoder: Option<&Model>) -> Option<Self> {
        encoder.map(Self::of_encoder).or_else(|| decoder.map(Self::new))
    }
}

/// An embedding model or a reranker.
#[derive(Debug)]
pub(crate) struct TextService<M: TextModel> {
    /// Its names in requests; answers contain the first.
    pub(crate) names: Vec<String>,
    /// The model and its file.
    pub(crate) facts: Option<ModelFacts>,
    /// The most tokens of a text.
    pub(crate) max_tokens: usize,
    /// Elements of an embedding, or of a hidden state.
    pub(crate) width: usize,
    /// The thread of the model.
    pub(crate) queue: TextQueue<M>,
}

impl<M: TextModel> TextService<M> {
    /// The results for texts, computed within the time of a request.
    ///
    /// # Errors
    /// A text is invalid, the queue is full, or the time is over.
    pub(crate) async fn run(
        &self,
        state: &State,
        shared: M::Shared,
        texts: Vec<String>,
    ) -> Result<Vec<M::Output>, ApiError> {
        Ok(self.run_all(state, vec![(shared, texts)]).await?.pop().unwrap_or_default())
    }

    /// As [`TextService::run`], for several groups of texts.
    ///
    /// # Errors
    /// Those of the first group that fails.
    pub(crate) async fn run_all(
        &self,
        state: &State,
        groups: Vec<(M::Shared, Vec<String>)>,
    ) -> Result<Vec<Vec<M::Output>>, ApiError> {
        let deadline = Instant::now() + state.options.request_timeout;
        let mut results = Vec::with_capacity(groups.len());
        // One after another: a request has one place in the queue.
        for (shared, texts) in groups {
            let answer = self.queue.submit(shared, texts)?;
            let answered = timeout_at(deadline, answer).await.map_err(|_| Failure::Timeout)?;
            results.push(answered.map_err(|_| Failure::ShuttingDown)??);
        }
        Ok(results)
    }
}

/// A model in lists of models. A model with several names has several entries.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// One of its names.
    pub(crate) name: &'a str,
    /// Its kind.
    pub(crate) kind: Kind,
    /// The model and its file, if they are known.
    pub(crate) facts: Option<&'a ModelFacts>,
    /// The most tokens of a prompt and its answer, or of a text.
    pub(crate) max_tokens: Option<usize>,
    /// Elements of an embedding, or of a hidden state.
    pub(crate) width: Option<usize>,
    /// The model is in memory.
    pub(crate) is_loaded: bool,
}

/// The model of a request for embeddings.
#[derive(Debug, Clone)]
pub(crate) enum EmbeddingModel<'a> {
    /// An embedding model.
    Embedder(&'a TextService<Embedder>),
    /// The mean of the final states of a language model.
    Language(Arc<Language>),
}

impl EmbeddingModel<'_> {
    /// The name in answers.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Embedder(embedder) => embedder.name(),
            Self::Language(language) => language.name(),
        }
    }

    /// Elements of an embedding.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Embedder(embedder) => embedder.width,
            Self::Language(language) => language.embedding_size,
        }
    }
}

impl State {
    /// All models.
    pub(crate) fn entries<'a>(&'a self) -> Vec<Entry<'a>> {
        let mut all = Vec::new();
        let mut add = |kind, names: &'a [String], facts, max_tokens, width| {
            let is_loaded = true;
            let entry = |name: &'a String| Entry { name, kind, facts, max_tokens, width, is_loaded };
            all.extend(names.iter().map(entry));
        };
        if let Some(m) = &self.embedder {
            add(Kind::Embedder, &m.names, m.facts.as_ref(), Some(m.max_tokens), Some(m.width));
        }
        if let Some(m) = &self.reranker {
            add(Kind::Reranker, &m.names, m.facts.as_ref(), Some(m.max_tokens), Some(m.width));
        }
        if let Some(m) = &self.recommender {
            add(Kind::Recommender, &m.names, None, None, None);
        }
        let mut first = Vec::new();
        for (index, (names, profile)) in self.languages.profiles().enumerate() {
            let is_loaded = self.languages.is_loaded(index);
            first.extend(names.iter().map(|name| Entry {
                name,
                kind: Kind::Language,
                facts: Some(&profile.facts),
                max_tokens: Some(profile.context_length.min(self.options.max_model_len)),
                width: Some(profile.width),
                is_loaded,
            }));
        }
        first.append(&mut all);
        first
    }

    /// A language model, loaded if necessary. `name`: the model that the request names.
    ///
    /// # Errors
    /// 404: there is none with this name. 429 and 500: it cannot be loaded.
    pub(crate) async fn language(&self, name: Option<&str>) -> Result<Arc<Language>, ApiError> {
        let index = self.languages.find(name).ok_or_else(|| self.no_model(&[Kind::Language], name))?;
        self.languages.get(index).await
    }

    /// The profile of a language model.
    pub(crate) fn profile(&self, name: &str) -> Option<&Profile> {
        self.languages
            .profiles()
            .find(|(names, _)| names.iter().any(|known| known == name))
            .map(|found| found.1)
    }

    /// The reranker.
    ///
    /// # Errors
    /// As [`State::language`].
    pub(crate) fn reranker(&self, name: Option<&str>) -> Result<&TextService<Reranker>, ApiError> {
        self.find(self.reranker.as_ref(), name)
    }

    /// The embedding model or the language model; without a name, the embedding model if there is one.
    ///
    /// # Errors
    /// As [`State::language`].
    pub(crate) async fn embedding_model(&self, name: Option<&str>) -> Result<EmbeddingModel<'_>, ApiError> {
        if let Ok(embedder) = self.find(self.embedder.as_ref(), name) {
            return Ok(EmbeddingModel::Embedder(embedder));
        }
        let index = self.languages.find(name);
        let index = index.ok_or_else(|| self.no_model(&[Kind::Embedder, Kind::Language], name))?;
        Ok(EmbeddingModel::Language(self.languages.get(index).await?))
    }

    fn find<'a, T: Served>(&self, model: Option<&'a T>, name: Option<&str>) -> Result<&'a T, ApiError> {
        model
            .filter(|model| name.is_none_or(|name| model.names().iter().any(|known| known == name)))
            .ok_or_else(|| self.no_model(&[T::KIND], name))
    }

    /// The error for a request that needs a model of one of the kinds `wanted`.
    pub(crate) fn no_model(&self, wanted: &[Kind], name: Option<&str>) -> ApiError {
        let entries = self.entries();
        let list = |entries: &mut dyn Iterator<Item = &Entry<'_>>| {
            entries.map(|entry| format!("{:?}", entry.name)).collect::<Vec<_>>().join(", ")
        };
        let named = name.map(|name| entries.iter().find(|entry| entry.name == name));
        let (what, code) = if let (Some(name), Some(None)) = (name, &named) {
            let shown: String = name.chars().take(100).collect();
            let all = list(&mut entries.iter());
            (format!("there is no model {shown:?}; this server has {all}"), "model_not_found")
        } else {
            let kinds = wanted.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" or ");
            let able = list(&mut entries.iter().filter(|entry| wanted.contains(&entry.kind)));
            let able = if able.is_empty() { "none here".to_owned() } else { format!("here {able}") };
            let chosen = named.flatten().or(entries.first());
            let why = chosen.map_or_else(String::new, |entry| {
                format!("; {:?} is {} ({})", entry.name, entry.kind.name(), entry.kind.paths())
            });
            (format!("this path needs {kinds}, {able}{why}"), "model_not_supported")
        };
        let e = ApiError { param: Some("model".into()), ..ApiError::new(StatusCode::NOT_FOUND, what) };
        e.code(code)
    }
}
