//! A loaded model with its tokenizer, for `run`, `eval`, `bench` and `serve`.

use crate::{App, kv_args::KvArgs, verbs::pull};
use scrimp_kv::compress::Compression;
use scrimp_llm::{
    Result,
    chat::{ChatTemplate, no_chat_template},
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

    /// As [`Loaded::open`]; `more` reads other parts of the files before the weights are loaded.
    pub(crate) fn open_with<T>(
        app: &App,
        model: &str,
        kv: &KvArgs,
        more: impl FnOnce(&Checkpoint, &Tokenizer) -> Result<T>,
    ) -> anyhow::Result<(Self, T)> {
        let options = run_options(app, kv)?;
        let checkpoint = Checkpoint::open(&pull::fetch(app, model)?)?;
        let tokenizer = checkpoint.tokenizer()?;
        if let Some(warning) = tokenizer.warning() {
            app.printer.note(format_args!("warning: {}: {warning}", checkpoint.path().display()));
        }
        if let Some(unused) = checkpoint.unused() {
            app.printer.note(format_args!("note: {}: {unused}", checkpoint.path().display()));
        }
        let more = more(&checkpoint, &tokenizer)?;
        let model = Model::load(checkpoint, &options)?;
        let config = model.config();
        if kv.compression(app.global.seed)?.is_some() && config.recurrence.is_some() {
            let (attention, all) = (config.attention_layers().count(), config.n_layers);
            app.printer.note(format_args!(
                "note: the options of the KV cache apply to the {attention} of {all} layers that have keys and values; the \
                 recurrent states of the others take {}",
                crate::format::bytes(config.state_bytes() as u64)
            ));
        }
        Ok((Self { model, tokenizer }, more))
    }

    /// An empty session with this compression of its KV cache.
    pub(crate) fn session(&self, how: Option<Compression>) -> Session {
        let mut session = self.model.session();
        session.set_compression(how);
        session
    }

    /// An empty sequence with this compression of its KV cache.
    pub(crate) fn sequence(&self, how: Option<Compression>) -> Sequence<Session> {
        Sequence::new(self.session(how), self.model.context_length())
    }

    /// The begin-of-text token, if the tokenizer adds one.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
    }
}

/// Options of the model from the command line.
pub(crate) fn run_options(app: &App, kv: &KvArgs) -> anyhow::Result<RunOptions> {
    Ok(RunOptions {
        threads: app.global.threads.map(Into::into),
        kv_format: kv.format()?,
        ..RunOptions::default()
    })
}

/// The chat template.
///
/// # Errors
/// The model has none (a base model).
pub(crate) fn template(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    checkpoint.chat_template(tokenizer)?.ok_or_else(|| no_chat_template(checkpoint.path()))
}
