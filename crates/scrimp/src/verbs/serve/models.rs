//! The models of `scrimp serve`: each MODEL serves the purpose that its files state.

use crate::{
    App,
    cli::{Usage, serve::ServeArgs},
    kv_args,
    loaded::{Loaded, run_options},
    verbs::pull,
};
use scrimp_llm::{Embedder, Reranker, checkpoint::Checkpoint, embedder::Purpose, tokenizer::Tokenizer};
use scrimp_serve::{LanguageModel, Models, Named, ServeOptions};
use std::path::Path;

/// Fetches and loads all models.
pub(super) fn load(app: &App, args: &ServeArgs, options: &ServeOptions) -> anyhow::Result<Models> {
    let mut models = Models::default();
    for (i, model) in args.model.iter().enumerate() {
        let given = args.served_model_name.iter().filter(|_| i == 0).cloned();
        let mut names: Vec<String> =
            given.chain([model.clone()]).chain(file_name(Path::new(model))).collect();
        names.dedup();
        let others = models.names();
        names.retain(|name| !others.contains(name));
        add(app, args, options, Named { names, model: model.as_str() }, &mut models)?;
    }
    if let Some(path) = &args.rec {
        let (model, _) = scrimp_rec::model::Model::load(path)?;
        let threads = app.global.threads.map_or(1, |n| n.get().min(2));
        let names = file_name(path).into_iter().collect();
        models.recommender = Some(Named { names, model: (model, threads) });
    }
    if models.names().is_empty() {
        return Err(Usage("give a MODEL or --rec".into()).into());
    }
    Ok(models)
}

/// Loads one MODEL.
fn add(
    app: &App,
    args: &ServeArgs,
    options: &ServeOptions,
    Named { names, model }: Named<&str>,
    models: &mut Models,
) -> anyhow::Result<()> {
    let path = pull::fetch(app, model)?;
    let one = |is_taken: bool, kind: &str| match is_taken {
        true => Err(Usage(format!("{model} is a second {kind}: a server has one of each kind"))),
        false => Ok(()),
    };
    match Purpose::of(&path, model)? {
        Purpose::Generate => {
            one(models.language.is_some(), "language model")?;
            let template = |checkpoint: &Checkpoint, tokenizer: &Tokenizer| {
                kv_args::check_context(options.kv.compression.as_ref(), checkpoint.config().context_length)?;
                checkpoint.chat_template(tokenizer)
            };
            let (Loaded { model, tokenizer }, template) = Loaded::open_with(app, model, &args.kv, template)?;
            models.language = Some(Named { names, model: LanguageModel { model, tokenizer, template } });
        }
        Purpose::Embed => {
            one(models.embedder.is_some(), "embedding model")?;
            let model = Embedder::open(&path, &run_options(app, &args.kv)?)?;
            models.embedder = Some(Named { names, model });
        }
        Purpose::Rank => {
            one(models.reranker.is_some(), "reranker")?;
            let model = Reranker::open(&path, &run_options(app, &args.kv)?)?;
            models.reranker = Some(Named { names, model });
        }
    }
    Ok(())
}

/// The file's name without its extension, a name of the model.
fn file_name(path: &Path) -> Option<String> {
    Some(path.file_stem()?.to_str()?.to_owned())
}
