//! `scrimp serve`: a server for language models, embedding models, rerankers and recommenders.

mod config;
mod models;

use crate::{
    App,
    cli::{
        Usage,
        serve::{LogFormat, Pressure, ServeArgs},
    },
    interrupt,
};
use anyhow::Context as _;
use scrimp_serve::{KvOptions, ServeOptions, Server, digest};
use serde::Serialize;
use std::{net::SocketAddr, time::Duration};

/// Environment variable with an API key.
const KEY_VARIABLE: &str = "SCRIMP_API_KEY";

#[derive(Serialize)]
struct Listening<'a> {
    url: &'a str,
    models: &'a [String],
}

/// Serves until Ctrl-C or SIGTERM.
pub(crate) fn run(app: &App, args: &ServeArgs) -> anyhow::Result<()> {
    let with_file;
    let args = match &args.config {
        Some(path) => {
            with_file = config::read(path, &app.args)?;
            &with_file
        }
        None => args,
    };
    let options = options(app, args)?;
    log_to_stderr(args.log);
    if !options.address.ip().is_loopback() && options.api_keys.is_empty() {
        app.printer
            .note("warning: every client that reaches this address can use the server; set --api-key-file");
    }
    let models = models::load(app, args, &options)?;
    let names = models.names();
    let address = options.address;
    let server = Server::bind(options, models).with_context(|| format!("cannot serve at {address}"))?;
    let url = format!("http://{}", server.address()?);
    app.printer.result(&Listening { url: &url, models: &names }, |l| format!("listening at {}", l.url))?;
    let _graceful = interrupt::Graceful::begin();
    server.run(interrupt::flag())?;
    // A requested shutdown is a success.
    interrupt::clear();
    Ok(())
}

fn options(app: &App, args: &ServeArgs) -> anyhow::Result<ServeOptions> {
    let defaults = ServeOptions::default();
    let limits = &args.limits;
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Ok(ServeOptions {
        address: SocketAddr::new(args.host, args.port),
        api_keys: keys(args)?,
        cors: args.access.cors.clone(),
        limits: scrimp_serve::scheduler::Limits {
            max_num_seqs: limits.max_seqs.get(),
            max_num_batched_tokens: limits.max_step_tokens.get().max(limits.max_seqs.get()),
            max_waiting: limits.max_queue,
            ..defaults.limits
        },
        memory: limits.memory,
        kv_bytes: bytes(limits.kv_memory),
        compress_under_pressure: limits.kv_pressure == Pressure::Compress,
        prefix_caching: !limits.no_prefix_caching,
        prefix_store: limits.kv_dir.clone().map(|dir| (dir, limits.kv_dir_size)),
        kv: KvOptions {
            compression: args.kv.compression(app.global.seed)?,
            format: args.kv.format()?.to_string(),
        },
        speculation: args.speculate.kind(),
        reasoning: args.think.map(|think| (think.wanted, think.limit)),
        max_model_len: limits.max_model_len.map_or(usize::MAX, Into::into),
        max_body: bytes(limits.max_body),
        read_timeout: Duration::from_secs(limits.read_timeout.max(1)),
        request_timeout: Duration::from_secs(limits.timeout.max(1)),
        drain: Duration::from_secs(args.drain),
        ..defaults
    })
}

/// API keys of the command line, a file and the environment.
fn keys(args: &ServeArgs) -> anyhow::Result<Vec<[u8; 32]>> {
    let mut keys: Vec<String> = args.access.api_key.iter().cloned().collect();
    keys.extend(std::env::var(KEY_VARIABLE).ok());
    if let Some(path) = &args.access.api_key_file {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let before = keys.len();
        keys.extend(
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned),
        );
        if keys.len() == before {
            return Err(Usage(format!("{} contains no key", path.display())).into());
        }
    }
    if keys.iter().any(|key| key.trim().is_empty()) {
        return Err(Usage(format!("an API key is empty (--api-key or {KEY_VARIABLE})")).into());
    }
    Ok(keys.iter().map(|key| digest(key.trim())).collect())
}

fn log_to_stderr(format: LogFormat) {
    let level = if format == LogFormat::Off { tracing::Level::ERROR } else { tracing::Level::INFO };
    let builder =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
    // This is the only subscriber of the process.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text | LogFormat::Off => builder.with_ansi(false).try_init(),
    };
}
