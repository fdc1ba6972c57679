//! One file per verb.

mod bench;
mod completions;
mod compress;
mod doctor;
mod embed;
mod eval;
mod fit;
mod inspect;
mod models;
pub(crate) mod pull;
mod rec;
mod report;
mod run;
mod serve;

use crate::{App, cli::Verb};

/// Calls the verb.
pub(crate) fn dispatch(app: &App, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Run(args) => run::run(app, &args),
        Verb::Pull(args) => pull::run(app, &args),
        Verb::Models => models::run(app),
        Verb::Embed(args) => embed::run(app, &args),
        Verb::Inspect(args) => inspect::run(app, &args),
        Verb::Compress(args) => compress::run(app, &args),
        Verb::Fit(args) => fit::run(app, &args),
        Verb::Eval(verb) => eval::run(app, &verb),
        Verb::Bench(verb) => bench::run(app, &verb),
        Verb::Serve(args) => serve::run(app, &args),
        Verb::Rec(verb) => rec::run(app, &verb),
        Verb::Report(verb) => report::run(app, &verb),
        Verb::Doctor(args) => doctor::run(app, &args),
        Verb::Completions(args) => completions::run(app, &args),
    }
}
