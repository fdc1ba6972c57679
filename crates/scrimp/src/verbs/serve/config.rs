//! `--config FILE.toml`: options by their names. They are parsed as if they preceded the options of the command line: one
//! parser checks both, and the command line takes precedence.

use crate::cli::{
    Usage,
    serve::{ServeArgs, ServeLine},
};
use anyhow::Context as _;
use clap::Parser as _;
use std::{ffi::OsString, path::Path};
use toml::{Table, Value};

/// The options of a file and of the command line `args`.
pub(super) fn read(path: &Path, args: &[OsString]) -> anyhow::Result<ServeArgs> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let words = args.iter().cloned().skip_while(|word| word != "serve").skip(1);
    parse(&text, words).map_err(|what| Usage(format!("{}: {what}", path.display())).into())
}

fn parse(text: &str, command_line: impl Iterator<Item = OsString>) -> Result<ServeArgs, String> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
    let mut words = Vec::new();
    let mut models = Vec::new();
    for (name, value) in table {
        match (name.as_str(), value) {
            ("model", Value::Array(values)) => {
                for value in &values {
                    models.push(plain(&name, value)?);
                }
            }
            ("model", value) => models.push(plain(&name, &value)?),
            ("config", _) => {
                return Err("a configuration file cannot contain `config`".into());
            }
            (_, Value::Boolean(true)) => words.push(format!("--{name}")),
            (_, Value::Boolean(false)) => {}
            (_, Value::Array(values)) => {
                for value in &values {
                    words.push(format!("--{name}={}", plain(&name, value)?));
                }
            }
            (_, value) => words.push(format!("--{name}={}", plain(&name, &value)?)),
        }
    }
    let all: Vec<OsString> = words.into_iter().map(OsString::from).chain(command_line).collect();
    let parsed = ServeLine::try_parse_from(&all).map_err(|e| {
        let text = e.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })?;
    let mut args = parsed.serve;
    if args.model.is_empty() {
        args.model = models;
    }
    Ok(args)
}

fn plain(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        // A fraction has a decimal point: 0.25, and 1.0 for all.
        Value::Float(x) => Ok(format!("{x:?}")),
        _ => Err(format!("`{name}` must be a text, a number, true, false, or a list of texts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, line: &str) -> Result<ServeArgs, String> {
        parse(text, line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_line_wins() {
        let text = "model = \"smollm2\"\nport = 9000\nkv-budget = 0.25\nno-prefix-caching = true\ncors = [\"https://a\", \"https://b\"]";
        let args = read(text, "--config x.toml --port 9001 --threads 2").unwrap();
        assert_eq!((args.model.as_slice(), args.port), (&["smollm2".to_owned()][..], 9001));
        assert!(args.limits.no_prefix_caching && args.kv.kv_budget.is_some());
        assert_eq!(args.access.cors, ["https://a", "https://b"]);
        assert_eq!(read(text, "other --config x.toml").unwrap().model, ["other"]);
        assert_eq!(read("model = [\"a\", \"b\"]", "--config x.toml").unwrap().model, ["a", "b"]);
    }

    #[test]
    fn wrong_files_are_explained() {
        for (text, part) in [
            ("port = \"x\"", "port"),
            ("prot = 5", "--prot"),
            ("port = ", "TOML"),
            ("config = \"y\"", "cannot contain"),
            ("port = { a = 1 }", "must be a text"),
        ] {
            let error = read(text, "--config x.toml").unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
