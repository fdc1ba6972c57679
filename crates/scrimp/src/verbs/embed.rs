//! `scrimp embed`.

use super::run::prompt::Prompt;
use crate::{
    App,
    cli::{EmbedArgs, Usage},
    verbs::pull,
};
use scrimp_llm::{Embedder, model::RunOptions};
use serde::Serialize;

#[derive(Serialize)]
struct Embedded {
    embedding: Vec<f32>,
    tokens: usize,
}

/// Computes the embedding of a text.
pub(crate) fn run(app: &App, args: &EmbedArgs) -> anyhow::Result<()> {
    let Prompt::Text(text) = Prompt::read(args.text.as_deref())? else {
        return Err(Usage("give a TEXT, or `-` to read it from stdin".to_owned()).into());
    };
    let options = RunOptions { threads: app.global.threads.map(Into::into), ..RunOptions::default() };
    let embedder = Embedder::open(&pull::fetch(app, &args.model)?, &options)?;
    let embedding = embedder.embed(&[&text], args.prompt.as_deref())?.swap_remove(0);
    if embedding.truncated {
        app.printer.note(format_args!(
            "note: the text is longer than the model's {} tokens; its end is left out",
            embedder.max_tokens()
        ));
    }
    let embedded = Embedded { embedding: embedding.vector, tokens: embedding.tokens };
    app.printer.result(&embedded, |e| e.embedding.iter().map(f32::to_string).collect::<Vec<_>>().join("\n"))
}
