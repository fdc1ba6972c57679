//! The [`Subject`] of real models: a session whose cache is compressed once, after the prompt.

use super::compare::Subject;
use scrimp_kv::{KvFormat, compress::Compression, policy::Needs};
use scrimp_llm::{
    error::Result,
    model::{Batch, Output, Session, Step},
};
use std::sync::OnceLock;

/// The compression of a prompt's cache.
#[derive(Debug, Clone, Default)]
pub struct CacheSetting {
    /// The selection of tokens; `None` keeps all tokens.
    pub compression: Option<Compression>,
    /// The storage format; `None`: that of the session. Both must append new tokens in the same form.
    pub format: Option<KvFormat>,
}

impl Subject for Session {
    type Setting = CacheSetting;

    fn prefill(&mut self, tokens: &[u32], settings: &[&Self::Setting]) -> Result<Vec<f32>> {
        self.reset();
        let compressions = settings.iter().filter_map(|s| s.compression.as_ref());
        let needs = compressions.map(Compression::needs).fold(Needs::NONE, Needs::and);
        self.accumulate_scores_for(needs, tokens.len());
        let logits = self.forward(tokens)?.to_vec();
        self.finish_scores(needs, tokens)?;
        Ok(logits)
    }

    fn fork(&self) -> Self {
        Session::fork(self)
    }

    fn compress(&mut self, setting: &Self::Setting, tokens: &[u32]) -> Result<()> {
        if let Some(format) = setting.format {
            self.set_kv_format(format)?;
        }
        match &setting.compression {
            Some(how) => Session::compress(self, how, how.tokens(tokens.len())?),
            None => self.pack(),
        }
    }

    type Together = Batch;

    fn together(&self) -> Batch {
        Batch::new(self.model())
    }

    fn decode(batch: &mut Batch, forks: &mut [(&mut Self, u32)]) -> Result<Vec<Vec<f32>>> {
        let logits: Vec<_> = forks.iter().map(|_| OnceLock::new()).collect();
        let mut steps: Vec<Step<'_>> = forks
            .iter_mut()
            .map(|(session, token)| Step {
                session,
                tokens: std::slice::from_ref(token),
                output: Output::Logits,
            })
            .collect();
        let results = batch.forward(&mut steps, &|i, got| {
            logits[i].get_or_init(|| got.to_vec());
        });
        results.into_iter().collect::<Result<()>>()?;
        Ok(logits.into_iter().map(|logits| logits.into_inner().unwrap_or_default()).collect())
    }

    fn forget_from(&mut self, len: usize) {
        self.truncate_compressed(len);
    }
}
