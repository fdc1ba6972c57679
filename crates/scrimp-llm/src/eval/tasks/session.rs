//! The real [`Subject`]: a session whose cache is compressed once, when the prompt is complete.

use super::compare::Subject;
use crate::{error::Result, model::Session};
use scrimp_kv::{compress::Compression, policy::Needs};

impl Subject for Session<'_> {
    /// `None`: the full cache.
    type Setting = Option<Compression>;

    fn prefill(&mut self, tokens: &[u32], settings: &[&Self::Setting]) -> Result<Vec<f32>> {
        self.reset();
        let needs =
            settings.iter().filter_map(|s| s.as_ref()).map(Compression::needs).fold(Needs::NONE, Needs::and);
        self.gather_for(needs, tokens.len());
        let logits = self.forward(tokens)?.to_vec();
        self.complete(needs, tokens)?;
        Ok(logits)
    }

    fn fork(&self) -> Self {
        Session::fork(self)
    }

    fn compress(&mut self, setting: &Self::Setting, tokens: &[u32]) -> Result<()> {
        match setting {
            Some(how) => Session::compress(self, how, how.tokens(tokens.len())?),
            None => Ok(()),
        }
    }

    fn forget_from(&mut self, len: usize) {
        self.truncate_compressed(len);
    }
}
