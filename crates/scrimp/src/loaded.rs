//! A model ready to run: what `run`, `eval` and `bench` have in common.

use crate::{App, kv_args::KvArgs, verbs::pull};
use anyhow::Context as _;
use scrimp_eval::bench;
use scrimp_kv::compress::Compression;
use scrimp_llm::{
    Error, Result,
    chat::ChatTemplate,
    checkpoint::Checkpoint,
    generate::Sequence,
    model::{Model, RunOptions, Session},
    tokenizer::Tokenizer,
};

/// Weights and tokenizer of a model.
pub(crate) struct Loaded {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
}

impl Loaded {
    /// Fetches and loads `model`, an alias, path or other reference.
    pub(crate) fn open(app: &App, model: &str, kv: &KvArgs) -> anyhow::Result<Self> {
        Ok(Self::open_with(app, model, kv, |_, _| Ok(()))?.0)
    }

    /// As [`Loaded::open`]; `more` takes what else is wanted from the files, before the weights are loaded.
    pub(crate) fn open_with<T>(
        app: &App,
        model: &str,
        kv: &KvArgs,
        more: impl FnOnce(&Checkpoint, &Tokenizer) -> Result<T>,
    ) -> anyhow::Result<(Self, T)> {
        let options = run_options(app, kv)?;
        let checkpoint = Checkpoint::open(&pull::fetch(app, model)?)?;
        let tokenizer = checkpoint.tokenizer()?;
        let more = more(&checkpoint, &tokenizer)?;
        let model = Model::load(checkpoint, &options)?;
        Ok((Self { model, tokenizer }, more))
    }

    /// An empty session that compresses its cache so.
    pub(crate) fn session(&self, how: Option<Compression>) -> Session {
        let mut session = self.model.session();
        session.set_compression(how);
        session
    }

    /// An empty sequence that compresses its cache so.
    pub(crate) fn sequence(&self, how: Option<Compression>) -> Sequence<Session> {
        Sequence::new(self.session(how), self.model.context_length())
    }

    /// The token that texts begin with, where the tokenizer wants one.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
    }
}

/// How the command line wants a model to run.
pub(crate) fn run_options(app: &App, kv: &KvArgs) -> anyhow::Result<RunOptions> {
    Ok(RunOptions {
        threads: app.global.threads.map(Into::into),
        kv_format: kv.format()?,
        ..RunOptions::default()
    })
}

/// The most memory that this process had resident so far.
pub(crate) fn peak_rss_bytes() -> anyhow::Result<u64> {
    bench::peak_rss_bytes()
        .context("this system does not say how much memory a process has used (/proc/self/status)")
}

/// The chat template; base models have none.
pub(crate) fn template(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    checkpoint.chat_template(tokenizer)?.ok_or_else(|| {
        Error::unsupported(
            format!(
                "{} has no chat template: it is a base model, which continues texts",
                checkpoint.path().display()
            ),
            "add --raw and write the beginning of a text",
        )
    })
}
