//! The models that a server is started with.

use crate::http::ModelFacts;
use scrimp_llm::{
    Embedder, Reranker,
    chat::ChatTemplate,
    checkpoint::Checkpoint,
    config::ModelConfig,
    generate::{DraftCheckpoint, DraftModel},
    model::Model,
    tokenizer::Tokenizer,
};

/// A language model for the server.
pub struct LanguageModel {
    /// The weights.
    pub model: Model,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, if the model has one.
    pub template: Option<ChatTemplate>,
    /// A smaller model that drafts its answers.
    pub draft: Option<DraftModel>,
}

/// A model and its names. Requests select it by one of them; answers contain the first.
#[derive(Debug)]
pub struct Named<T> {
    /// Names.
    pub names: Vec<String>,
    /// The model.
    pub model: T,
}

impl<T> Named<T> {
    /// A model with one name.
    pub fn new(name: impl Into<String>, model: T) -> Self {
        Self { names: vec![name.into()], model }
    }
}

/// A language model that is loaded, or can be.
pub struct LanguageSource {
    pub(crate) profile: Profile,
    pub(crate) model: Option<LanguageModel>,
    /// `None`: the model stays loaded.
    pub(crate) load: Option<Loader>,
}

/// Loads a language model.
pub(crate) type Loader = Box<dyn Fn() -> scrimp_llm::Result<LanguageModel> + Send + Sync>;

/// The properties of a language model that lists of models show.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    /// The model and its file.
    pub(crate) facts: ModelFacts,
    /// Context length in tokens.
    pub(crate) context_length: usize,
    /// Elements of a hidden state.
    pub(crate) width: usize,
    /// Tokens of the vocabulary.
    pub(crate) vocab_size: usize,
    /// The source of the chat template.
    pub(crate) template: String,
    /// Ollama's names of its abilities.
    pub(crate) capabilities: Vec<&'static str>,
    /// Bytes of the weights of the draft model and the limit of its KV caches.
    pub(crate) draft_bytes: u64,
}

impl Profile {
    fn new(
        facts: ModelFacts,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Self {
        let mut capabilities = vec!["completion"];
        if let Some(template) = template {
            capabilities.push("tools");
            if template.reasoning().is_some() {
                capabilities.push("thinking");
            }
        }
        if tokenizer.infill_marks().is_some() {
            capabilities.push("insert");
        }
        let template = template.map_or("{{ .Prompt }}", |template| template.source()).to_owned();
        let (context_length, width) = (config.context_length, config.hidden_size);
        let vocab_size = tokenizer.vocab_size();
        Self { facts, context_length, width, vocab_size, template, capabilities, draft_bytes: 0 }
    }
}

impl From<LanguageModel> for LanguageSource {
    /// A model that stays loaded.
    fn from(model: LanguageModel) -> Self {
        let LanguageModel { model: weights, tokenizer, template, draft } = &model;
        let facts = ModelFacts::new(weights);
        let mut profile = Profile::new(facts, weights.config(), tokenizer, template.as_ref());
        profile.draft_bytes = draft.as_ref().map_or(0, |draft| {
            (draft.model().weight_bytes() as u64).saturating_add(draft.kv_limit().unwrap_or(0) as u64)
        });
        Self { profile, model: Some(model), load: None }
    }
}

impl LanguageSource {
    /// A model that `load` loads from `checkpoint` when a request names it. It is unloaded when another model needs its
    /// memory ([`ServeOptions::memory`](crate::ServeOptions::memory)).
    ///
    /// # Errors
    /// The tokenizer or the chat template is damaged.
    pub fn on_demand(
        checkpoint: &Checkpoint,
        load: impl Fn() -> scrimp_llm::Result<LanguageModel> + Send + Sync + 'static,
    ) -> scrimp_llm::Result<Self> {
        let tokenizer = checkpoint.tokenizer()?;
        let template = checkpoint.chat_template(&tokenizer)?;
        let facts = ModelFacts::of_checkpoint(checkpoint.config(), Some(checkpoint));
        let profile = Profile::new(facts, checkpoint.config(), &tokenizer, template.as_ref());
        Ok(Self { profile, model: None, load: Some(Box::new(load)) })
    }

    /// The same model with a draft model that is loaded with it. The KV caches of `draft` take at most `kv_limit` bytes.
    #[must_use]
    pub fn with_draft(mut self, draft: &DraftCheckpoint, kv_limit: usize) -> Self {
        self.profile.draft_bytes = draft.checkpoint().file_bytes().saturating_add(kv_limit as u64);
        self
    }

    /// The same model, already loaded.
    #[must_use]
    pub fn loaded(self, model: LanguageModel) -> Self {
        Self { model: Some(model), ..self }
    }
}

/// The models of a server: any number of language models, and at most one of each other kind.
#[derive(Default)]
pub struct Models {
    /// Chats, completions, and embeddings if there is no embedding model. The first is the default.
    pub languages: Vec<Named<LanguageSource>>,
    /// Embeddings.
    pub embedder: Option<Named<Embedder>>,
    /// Scores of documents for a query.
    pub reranker: Option<Named<Reranker>>,
    /// Scores of rows, and the number of threads.
    pub recommender: Option<Named<(scrimp_rec::model::Model, usize)>>,
}

impl Models {
    /// The names of all models.
    pub fn names(&self) -> Vec<String> {
        let language = self.languages.iter().flat_map(|m| &m.names);
        let embedder = self.embedder.iter().flat_map(|m| &m.names);
        let reranker = self.reranker.iter().flat_map(|m| &m.names);
        let recommender = self.recommender.iter().flat_map(|m| &m.names);
        language.chain(embedder).chain(reranker).chain(recommender).cloned().collect()
    }
}
