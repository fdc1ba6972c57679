//! `scrimp rec`: recommenders.

mod bars;
mod compress;
mod generate;
mod prepare;
mod score;
mod train;

use crate::{App, cli::rec::RecVerb};

/// Runs the verb.
pub(crate) fn run(app: &App, verb: &RecVerb) -> anyhow::Result<()> {
    match verb {
        RecVerb::Generate(args) => generate::run(app, args),
        RecVerb::Prepare(args) => prepare::run(app, args),
        RecVerb::Train(args) => train::run(app, args),
        RecVerb::Compress(args) => compress::run(app, args),
        RecVerb::Eval(args) => score::eval(app, args),
        RecVerb::Score(args) => score::score(app, args),
        RecVerb::Inspect(args) => score::inspect(app, args),
    }
}
