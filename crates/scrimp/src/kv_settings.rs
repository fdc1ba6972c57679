//! A file with settings of the KV cache to compare: one line of options per setting.

use crate::{cli::Usage, kv_args::KvArgs};
use clap::Parser;
use scrimp_eval::{
    read_text,
    tasks::{CacheSetting, suite::Named},
};
use std::path::Path;

#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    kv: KvArgs,
}

/// The settings in the file `compare`, or the setting `kv` of the command line without a file. A line has options as
/// on the command line; `full` is a full cache. Empty lines and lines that begin with `#` are skipped. A line without
/// a format has the format of the command line.
pub(crate) fn settings(
    kv: &KvArgs,
    compare: Option<&Path>,
    seed: Option<u64>,
) -> anyhow::Result<Vec<Named<CacheSetting>>> {
    let Some(path) = compare else {
        return Ok(vec![named(CacheSetting { compression: kv.compression(seed)?, format: None })]);
    };
    let mut settings: Vec<Named<CacheSetting>> = Vec::new();
    for (i, line) in read_text(path)?.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: String| Usage(format!("{}: line {}: {what}", path.display(), i + 1));
        let words = line.split_whitespace().filter(|word| *word != "full");
        let args = Line::try_parse_from(words).map_err(|e| {
            wrong(e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
        })?;
        let setting = named(setting(&args.kv, kv, seed).map_err(|e| wrong(e.to_string()))?);
        if settings.iter().any(|s| s.name == setting.name) {
            return Err(wrong(format!("`{}` is there already", setting.name)).into());
        }
        settings.push(setting);
    }
    if settings.is_empty() {
        return Err(Usage(format!("{} holds no settings", path.display())).into());
    }
    Ok(settings)
}

/// The setting of a line. The cache of the prompt has the format of `base`.
fn setting(line: &KvArgs, base: &KvArgs, seed: Option<u64>) -> anyhow::Result<CacheSetting> {
    let compression = line.compression(seed)?;
    let given = line.kv_format.is_some() || line.kv_sparsity.is_some() || line.kv_shrink.is_some();
    let format = if given { Some(line.format()?) } else { None };
    if let Some(format) = &format {
        base.format()?.check_switch(format)?;
    }
    Ok(CacheSetting { compression, format })
}

fn named(setting: CacheSetting) -> Named<CacheSetting> {
    let mut name = setting.compression.as_ref().map_or_else(|| "full".to_owned(), ToString::to_string);
    if let Some(format) = &setting.format {
        name += &format!(" {format}");
    }
    Named { name, setting }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let settings = settings(&KvArgs::full(), Some(file.path()), Some(0)).map_err(|e| e.to_string())?;
        Ok(settings.into_iter().map(|s| s.name).collect())
    }

    #[test]
    fn a_line_per_setting() {
        let text = "full\n\n# plain\n--kv-policy h2o --kv-budget 0.25\n--kv-budget 128 --kvcrush 0.5 --kvcrush-mass none \
                    --kvcrush-order signature --kv-sinks 2 --kv-granularity page --kv-page 16\n";
        let crush = "expected-max 128 kvcrush 0.5 mass none order signature fit sinks 2 page 16";
        assert_eq!(read(text).unwrap(), ["full", "h2o 0.25", crush]);
        let text = "full\n--kv-format int8\n--kv-budget 0.5 --kv-format int8 --kv-policy h2o\n\
             --kv-budget 0.5 --kv-sparsity 0.3,0.5 --kv-policy h2o";
        assert_eq!(read(text).unwrap(), ["full", "full int8", "h2o 0.5 int8", "h2o 0.5 sparse:0.3,0.5"]);
    }

    #[test]
    fn wrong_lines_are_named() {
        assert!(read("full\n--kv-policy h3o\n").unwrap_err().contains("line 2: "));
        assert!(
            read("--kv-policy h2o --kv-budget 0.25\n--kv-policy h2o --kv-budget 0.25")
                .unwrap_err()
                .contains("line 2: `h2o 0.25` is there already")
        );
        let error = read("full\n--kv-format f32").unwrap_err();
        assert!(
            error.contains("line 2: a cache whose new tokens are stored in bf16 cannot be stored as f32")
        );
        assert!(read("--kv-format int3").unwrap_err().contains("line 1: invalid value 'int3'"));
        assert!(read("--kvcrush 0.5").unwrap_err().contains("line 1: --kvcrush needs --kv-budget"));
        assert!(read("# nothing\n").unwrap_err().contains("holds no settings"));
    }
}
