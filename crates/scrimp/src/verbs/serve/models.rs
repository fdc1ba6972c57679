//! The models of `scrimp serve`: each MODEL serves the purpose that its files state.

use crate::{
    App,
    cli::{Usage, serve::ServeArgs},
    drafts::Drafts,
    kv_args,
    loaded::run_options,
    verbs::pull,
};
use scrimp_llm::{Embedder, Reranker, checkpoint::Checkpoint, embedder::Purpose, model::Model};
use scrimp_serve::{LanguageModel, LanguageSource, Models, Named, ServeOptions};
use std::path::Path;

/// Fetches and loads all models.
pub(super) fn load(app: &App, args: &ServeArgs, options: &ServeOptions) -> anyhow::Result<Models> {
    let mut models = Models::default();
    let drafts = args.speculate.fetch(app)?;
    for (i, model) in args.model.iter().enumerate() {
        let given = args.served_model_name.iter().filter(|_| i == 0).cloned();
        let mut names: Vec<String> =
            given.chain([model.clone()]).chain(file_name(Path::new(model))).collect();
        names.dedup();
        let others = models.names();
        names.retain(|name| !others.contains(name));
        add(app, (args, &drafts), options, Named { names, model: model.as_str() }, &mut models)?;
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
    (args, drafts): (&ServeArgs, &Drafts),
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
            let drafts = models.languages.is_empty().then_some(drafts);
            let model = language(app, args, options, &path, drafts)?;
            models.languages.push(Named { names, model });
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

/// A language model that can be loaded. `drafts`: those of the first one, which is loaded now.
fn language(
    app: &App,
    args: &ServeArgs,
    options: &ServeOptions,
    path: &Path,
    drafts: Option<&Drafts>,
) -> anyhow::Result<LanguageSource> {
    let checkpoint = Checkpoint::open(path)?;
    kv_args::check_context(options.kv.compression.as_ref(), checkpoint.config().context_length)?;
    let (path, run) = (path.to_owned(), run_options(app, &args.kv)?);
    let (kv_bytes, owned) = (options.kv_bytes, drafts.cloned());
    let load = move || {
        let checkpoint = Checkpoint::open(&path)?;
        let tokenizer = checkpoint.tokenizer()?;
        let template = checkpoint.chat_template(&tokenizer)?;
        // Vocabularies are compared before weights are loaded.
        let draft = owned.as_ref().map(|drafts| drafts.check(&checkpoint, &tokenizer)).transpose()?;
        let model = Model::load(checkpoint, &run)?;
        let draft = draft.and_then(|checked| checked.draft);
        let draft = draft.map(|draft| {
            let limit = draft.kv_bytes(kv_bytes, model.config());
            draft.load(&model, Some(limit))
        });
        Ok(LanguageModel { draft: draft.transpose()?, model, tokenizer, template })
    };
    let loaded = if drafts.is_some() { Some(load()?) } else { None };
    if let Some(warning) = loaded.as_ref().and_then(|model| model.tokenizer.warning()) {
        app.printer.note(format_args!("warning: {}: {warning}", checkpoint.path().display()));
    }
    let mut source = LanguageSource::on_demand(&checkpoint, load)?;
    let draft = drafts.map(|drafts| drafts.check(&checkpoint, &checkpoint.tokenizer()?)).transpose()?;
    if let Some(draft) = draft.and_then(|checked| checked.draft) {
        source = source.with_draft(&draft, draft.kv_bytes(options.kv_bytes, checkpoint.config()));
    }
    Ok(match loaded {
        Some(model) => source.loaded(model),
        None => source,
    })
}

/// The file's name without its extension, a name of the model.
fn file_name(path: &Path) -> Option<String> {
    Some(path.file_stem()?.to_str()?.to_owned())
}
