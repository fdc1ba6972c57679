//! Names of settings: the libraries name a setting by its Rust name in backticks, the user knows a flag.

use clap::{Arg, ArgMatches, Command};
use scrimp_base::translate_settings;

/// Prefix of the flags of the KV cache. `scrimp-kv` names its settings without it.
const KV_PREFIX: &str = "kv_";

/// The options and arguments of the verb that runs.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Rust name, name on the command line.
    names: Vec<(String, String)>,
}

impl Settings {
    /// The settings of the verb that `matches` selects below `command`, and the global ones.
    pub(crate) fn new(mut command: &Command, mut matches: &ArgMatches) -> Self {
        let mut names: Vec<_> = command.get_arguments().flat_map(names).collect();
        while let Some((name, sub)) = matches.subcommand() {
            let Some(verb) = command.find_subcommand(name) else { break };
            (command, matches) = (verb, sub);
            names.extend(command.get_arguments().flat_map(self::names));
        }
        Self { names }
    }

    /// `text` with settings in backticks (`` `max_tokens` ``) replaced by their flags (`--max-tokens`).
    pub(crate) fn translate(&self, text: &str) -> String {
        let find = |name: &str| self.names.iter().find(|(n, _)| n == name).map(|(_, flag)| flag.clone());
        translate_settings(text, |name| find(name).or_else(|| find(&format!("{KV_PREFIX}{name}"))))
    }
}

/// The Rust names of an argument, each with its name on the command line: the argument's id and its long flag; a
/// positional argument is known by its value name.
fn names(arg: &Arg) -> Vec<(String, String)> {
    let id = arg.get_id().to_string();
    if let Some(long) = arg.get_long() {
        let flag = format!("--{long}");
        return vec![(long.replace('-', "_"), flag.clone()), (id, flag)];
    }
    let value = arg.get_value_names().and_then(<[_]>::first).map(ToString::to_string);
    vec![(id.clone(), value.unwrap_or_else(|| id.to_uppercase()))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory as _;

    #[test]
    fn settings_become_the_flags_of_the_verb_that_runs() {
        let translate = |line: &str, text: &str| {
            let mut command = Cli::command();
            let matches = command.try_get_matches_from_mut(line.split_whitespace()).unwrap();
            Settings::new(&command, &matches).translate(text)
        };
        let text = "a smaller `budget`, `max_tokens` or `threads`; `model`; `unknown_name` and `a.gguf`";
        assert_eq!(
            translate("scrimp run smollm2 hi", text),
            "a smaller --kv-budget, --max-tokens or --threads; MODEL; `unknown_name` and `a.gguf`"
        );
        assert_eq!(
            translate("scrimp rec train data -o model", "`budget`, `max_tokens`"),
            "--budget, `max_tokens`"
        );
        assert_eq!(translate("scrimp doctor", "`kv_format`"), "`kv_format`");
    }
}
