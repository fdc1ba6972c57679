//! `scrimp rec`: recommenders.

mod bars;
mod generate;
mod prepare;
mod score;
mod train;

use crate::{App, cli::rec::RecVerb};
use scrimp_kernels::{Pool, SimdLevel};
use scrimp_rec::encoders::Exec;

/// Runs the verb.
pub(crate) fn run(app: &App, verb: &RecVerb) -> anyhow::Result<()> {
    match verb {
        RecVerb::Generate(args) => generate::run(app, args),
        RecVerb::Prepare(args) => prepare::run(app, args),
        RecVerb::Train(args) => train::run(app, args),
        RecVerb::Eval(args) => score::eval(app, args),
        RecVerb::Score(args) => score::score(app, args),
        RecVerb::Inspect(args) => score::inspect(app, args),
    }
}

/// Threads and instructions for models.
struct Machine {
    pool: Pool,
    level: SimdLevel,
}

impl Machine {
    fn new(app: &App) -> anyhow::Result<Self> {
        let level = SimdLevel::from_env()?;
        Ok(Self { pool: Pool::new(threads(app))?, level })
    }

    fn run(&self) -> Exec<'_> {
        Exec { pool: &self.pool, level: self.level }
    }
}

/// `--threads`, or the cores that this process may use.
fn threads(app: &App) -> usize {
    app.global.threads.map_or_else(scrimp_kernels::exec::available_threads, std::num::NonZeroUsize::get)
}
