//! A smaller model with the same vocabulary drafts.
//!
//! It has a KV cache of its own, with the tokens of the text and of the last draft. Before the next draft, the cache drops
//! rejected tokens and reads accepted ones. The cache outlives the answer, and the next answer reuses the beginning that
//! both texts share.
//!
//! Reading a text takes time that only a long answer regains. Drafts therefore begin when the answer has a share of the
//! tokens to be read, and at most the last [`MAX_READ`] tokens are read.

use super::{
    DraftSource,
    drafter::{ACCEPTANCE, Drafter},
    gain::{Plan, Prior},
};
use crate::{
    checkpoint::Checkpoint,
    config::ModelConfig,
    error::{Error, Result},
    generate::Sequence,
    model::Model,
    sampling::Sampler,
    tokenizer::Tokenizer,
};
use scrimp_kv::KvCache;
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Maximum number of tokens that are read before a draft. If more are lacking, the cache starts over with the last ones.
const MAX_READ: usize = 512;
/// An answer has drafts from a token for each `READ_SHARE` tokens on that have to be read first.
const READ_SHARE: usize = 16;
/// Drafting a token with a model of half the size takes half a pass.
const PRIOR: Prior = Prior { classes: ACCEPTANCE, unknown: 0.75, step: 0.4 };

/// The files of a draft model, of which the vocabulary was compared.
#[derive(Debug)]
pub struct DraftCheckpoint {
    checkpoint: Checkpoint,
}

impl DraftCheckpoint {
    /// Compares the vocabulary of `checkpoint` with that of the model whose answers it drafts: `target`, with the path
    /// of its files. All tokens that both have must be the same; padding behind the last token of one of them is allowed.
    ///
    /// # Errors
    /// When the vocabularies differ, the tokenizer is damaged, or the model does not generate text.
    pub fn new(checkpoint: Checkpoint, (path, target): (&Path, &Tokenizer)) -> Result<Self> {
        if checkpoint.config().bidirectional {
            return Err(Error::unsupported(
                format!("{} does not continue texts: it cannot draft", checkpoint.path().display()),
                "draft with a smaller model of the same family",
            ));
        }
        let tokenizer = checkpoint.tokenizer()?;
        let common = tokenizer.vocab_size().min(target.vocab_size()) as u32;
        let differs = (0..common).find(|&id| tokenizer.token_bytes(id) != target.token_bytes(id));
        let text = |tokenizer: &Tokenizer, id| {
            String::from_utf8_lossy(&tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
        };
        match differs {
            None => Ok(Self { checkpoint }),
            Some(id) => Err(Error::bad_input(format!(
                "{} cannot draft for {}: their vocabularies differ, token {id} is {:?} and {:?}",
                checkpoint.path().display(),
                path.display(),
                text(&tokenizer, id),
                text(target, id),
            ))
            .with_hint("draft with a smaller model of the same family")),
        }
    }

    /// The files.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The size of a KV cache that holds as many tokens as one of `bytes` bytes of a model with `target`.
    pub fn kv_bytes(&self, bytes: usize, target: &ModelConfig) -> usize {
        let own = self.checkpoint.config().kv_bytes_per_token() as u128;
        let all = bytes as u128 * own / target.kv_bytes_per_token().max(1) as u128;
        usize::try_from(all).unwrap_or(usize::MAX)
    }

    /// Loads the weights. The draft model runs on the threads of `target`. Its KV caches take at most `kv_limit` bytes
    /// together.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(self, target: &Model, kv_limit: Option<usize>) -> Result<DraftModel> {
        let model = Model::load_beside(self.checkpoint, target)?;
        let cache = model.kv_cache(Default::default(), kv_limit)?;
        let vocab = model.vocab_size().min(target.vocab_size());
        Ok(DraftModel { model, cache, vocab, idle: Arc::default(), is_free: false })
    }
}

/// A model that drafts for another one with the same vocabulary. A clone shares everything.
#[derive(Debug, Clone)]
pub struct DraftModel {
    model: Model,
    cache: KvCache,
    /// Tokens that both models have.
    vocab: usize,
    /// The cache of the last answer.
    idle: Arc<Mutex<Option<Drafter>>>,
    /// The time of drafting does not count.
    is_free: bool,
}

impl DraftModel {
    /// The weights.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The limit on [`DraftModel::kv_bytes`]; `None`: no limit.
    pub fn kv_limit(&self) -> Option<usize> {
        self.cache.config().limit
    }

    /// Bytes of the KV caches that draft, and of that of the last answer.
    pub fn kv_bytes(&self) -> usize {
        self.cache.bytes_in_use()
    }

    /// Drops the KV cache of the last answer.
    pub fn clear(&self) {
        drop(self.idle.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The same model, whose time of drafting does not count: tests of tiny models need drafts.
    #[doc(hidden)]
    #[must_use]
    pub fn assumed_free(self) -> Self {
        Self { is_free: true, ..self }
    }

    /// The cache of the last answer, or an empty one.
    fn take(&self) -> Drafter {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        idle.unwrap_or_else(|| {
            let session = self.model.session_in_cache(&self.cache);
            Drafter::new(Sequence::new(session, self.model.context_length()), 0)
        })
    }
}

/// Drafts of one answer.
#[derive(Debug)]
pub(super) struct ModelSource {
    draft: DraftModel,
    /// Prompt and answer.
    text: Vec<u32>,
    prompt: usize,
    /// `None`: no draft was made yet, or the draft model failed.
    drafter: Option<Drafter>,
    failed: bool,
}

impl ModelSource {
    pub(super) fn new(draft: DraftModel, prompt: &[u32]) -> Self {
        Self { draft, text: prompt.to_vec(), prompt: prompt.len(), drafter: None, failed: false }
    }

    /// Chooses the tokens that are read. False: the answer is too short for them.
    fn prepare(&mut self, room: usize) -> bool {
        let drafter = self.drafter.get_or_insert_with(|| self.draft.take());
        let context = self.draft.model.context_length();
        let most = MAX_READ.min(context / 2);
        let mut lacking = drafter.lacking(&self.text);
        if lacking > most || drafter.tokens(&self.text) + room > context {
            drafter.restart(self.text.len().saturating_sub(most));
            lacking = most.min(self.text.len());
        }
        (self.text.len() - self.prompt) * READ_SHARE >= lacking
    }
}

impl DraftSource for ModelSource {
    fn prior(&self) -> Prior {
        if self.draft.is_free { Prior { step: 0.0, ..PRIOR } } else { PRIOR }
    }

    fn push(&mut self, token: u32) {
        self.text.push(token);
    }

    fn draft(&mut self, plan: &mut Plan<'_>, sampler: &Sampler) {
        if self.failed || !plan.pays(None) || !self.prepare(plan.room()) {
            return;
        }
        let Some(drafter) = &mut self.drafter else { return };
        // Without memory for the cache of drafts, the answer has none.
        self.failed = drafter.draft(&self.text, self.draft.vocab, plan, sampler).is_err();
        if self.failed {
            self.drafter = None;
        }
    }

    fn kv_bytes(&self) -> usize {
        self.drafter.as_ref().map_or(0, Drafter::kv_bytes)
    }
}

impl Drop for ModelSource {
    fn drop(&mut self) {
        if let Some(drafter) = self.drafter.take() {
            *self.draft.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(drafter);
        }
    }
}
