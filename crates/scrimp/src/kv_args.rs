//! The options of the KV cache. Every verb that runs a model has them.
//!
//! Possible values and their help texts come from the registries of scrimp-kv.

use crate::cli::Usage;
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use scrimp_kv::{
    KvError, KvFormat,
    compress::{
        Budget, Compression, Crush, DEFAULT_POLICY, DEFAULT_SHARE, GRANULARITIES, Granularity, MASSES, Mass,
        ORDERS, Order, Shrink, mass, order,
    },
    policy::{PolicyChoice, policy},
};

/// The options of the KV cache.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "KV cache")]
pub(crate) struct KvArgs {
    /// Make the cache this many times smaller than a whole cache in bf16: 4, 8 or 16. Selects budget, policy and format
    #[arg(long, value_name = "FACTOR", value_parser = shrink, conflicts_with_all = [
        "kv_budget", "kv_policy", "kvcrush", "kv_format", "kv_sparsity", "kv_granularity", "kv_rerotate",
    ])]
    pub(crate) kv_shrink: Option<Shrink>,
    /// Tokens that each KV head keeps of the prompt, or a share of it (0.25) [default: all]
    #[arg(long, value_name = "N|F", value_parser = budget)]
    pub(crate) kv_budget: Option<Budget>,
    /// The policy that selects tokens: full, streaming, h2o, snapkv, ... or adakv:POLICY (heads share one budget) [default: expected-max]
    #[arg(long, value_name = "POLICY", value_parser = |s: &str| policy(s).map_err(|e| e.to_string()))]
    pub(crate) kv_policy: Option<PolicyChoice>,
    /// Share of the budget for representatives of dropped tokens (KVCrush); 0: off [default: 0.5, with --kv-policy 0]
    #[arg(long, value_name = "F", value_parser = share)]
    pub(crate) kvcrush: Option<f64>,
    /// The attention that a representative receives for its segment
    #[arg(long, value_name = "MASS", default_value = Crush::default().mass.name(), value_parser = masses())]
    pub(crate) kvcrush_mass: &'static dyn Mass,
    /// The order in which dropped tokens are cut into segments
    #[arg(long, value_name = "ORDER", default_value = Crush::default().order.name(), value_parser = orders())]
    pub(crate) kvcrush_order: &'static dyn Order,
    /// Fit the values of the kept tokens to the attention over all tokens: on or off [default: on
    /// for expected-max, kvzip and kvzip-query]
    #[arg(long, value_name = "on|off", value_parser = on_off())]
    pub(crate) kv_fit: Option<bool>,
    /// Compress long prompts while they are read: the cache never exceeds the budget by more than 3,100 tokens
    #[arg(long, value_name = "on|off", default_value = "off", value_parser = on_off(), action = clap::ArgAction::Set)]
    pub(crate) kv_chunks: bool,
    /// First tokens, which are always kept
    #[arg(long, value_name = "N", default_value_t = Compression::DEFAULT_SINKS)]
    pub(crate) kv_sinks: usize,
    /// Last tokens, which are always kept [default: a sixth of the budget, 32 to 128]
    #[arg(long, value_name = "N")]
    pub(crate) kv_recent: Option<usize>,
    /// The unit that is kept or dropped as a whole
    #[arg(long, value_name = "UNIT", default_value = Granularity::Token.name(), value_parser = granularities())]
    pub(crate) kv_granularity: Granularity,
    /// Tokens of a page, for --kv-granularity page
    #[arg(long, value_name = "N", default_value_t = Compression::DEFAULT_PAGE, value_parser = at_least_one)]
    pub(crate) kv_page: usize,
    /// Rotate kept keys to consecutive positions
    #[arg(long)]
    pub(crate) kv_rerotate: bool,
    /// Storage format of keys and values [default: bf16]
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    pub(crate) kv_format: Option<KvFormat>,
    /// Drop these shares of the elements of keys and values, the smallest ones of each old token (0.3,0.5)
    #[arg(long, value_name = "K,V", value_parser = sparsity)]
    pub(crate) kv_sparsity: Option<KvFormat>,
}

impl KvArgs {
    /// A full cache in bf16, the reference of comparisons.
    pub(crate) fn full() -> Self {
        Self {
            kv_shrink: None,
            kv_budget: None,
            kv_policy: None,
            kvcrush: None,
            kvcrush_mass: Crush::default().mass,
            kvcrush_order: Crush::default().order,
            kv_fit: None,
            kv_chunks: false,
            kv_sinks: Compression::DEFAULT_SINKS,
            kv_recent: None,
            kv_granularity: Granularity::Token,
            kv_page: Compression::DEFAULT_PAGE,
            kv_rerotate: false,
            kv_format: None,
            kv_sparsity: None,
        }
    }

    /// The compression after a prompt of any length; `None` for a full cache.
    ///
    /// # Errors
    /// When options do not go together. Callers check this before they fetch a model.
    pub(crate) fn compression(&self, seed: Option<u64>) -> anyhow::Result<Option<Compression>> {
        self.format()?;
        let policy = match (self.kv_policy, self.kv_budget) {
            (Some(policy), _) => policy,
            (None, Some(_)) => policy(DEFAULT_POLICY)?,
            (None, None) => PolicyChoice::FULL,
        };
        if let Some(Shrink { compression, .. }) = &self.kv_shrink {
            let fit = self.kv_fit.unwrap_or(compression.fit);
            let (recent, seed) = (self.kv_recent, seed.unwrap_or(0));
            let (sinks, chunks) = (self.kv_sinks, self.chunks());
            return Ok(Some(Compression { fit, chunks, sinks, recent, seed, ..compression.clone() }));
        }
        let Some(budget) = self.kv_budget else {
            if self.kvcrush.is_some_and(|share| share > 0.0) {
                return Err(usage("--kvcrush needs --kv-budget: it is a share of that"));
            }
            return Ok(None);
        };
        let share = self.kvcrush.unwrap_or(if self.kv_policy.is_none() { DEFAULT_SHARE } else { 0.0 });
        let how = Compression {
            crush: Crush { share, mass: self.kvcrush_mass, order: self.kvcrush_order },
            fit: self.kv_fit.unwrap_or_else(|| policy.policy.fits_values()),
            chunks: self.chunks(),
            sinks: self.kv_sinks,
            recent: self.kv_recent,
            granularity: match self.kv_granularity {
                Granularity::Token => Granularity::Token,
                Granularity::Page(_) => Granularity::Page(self.kv_page),
            },
            rerotate: self.kv_rerotate,
            seed: seed.unwrap_or(0),
            ..Compression::new(policy, budget)
        };
        how.check().map_err(|e| usage(&e.to_string()))?;
        Ok(Some(how).filter(|how| !how.keeps_everything()))
    }

    fn chunks(&self) -> Option<usize> {
        self.kv_chunks.then_some(Compression::DEFAULT_CHUNK)
    }

    /// The storage format of keys and values.
    ///
    /// # Errors
    /// When sparsity is combined with another format than bf16.
    pub(crate) fn format(&self) -> anyhow::Result<KvFormat> {
        if let Some(shrink) = &self.kv_shrink {
            return Ok(shrink.kv_format());
        }
        let format = self.kv_format.unwrap_or_default();
        match self.kv_sparsity {
            Some(_) if format.name() != KvFormat::default().name() => {
                Err(usage("--kv-sparsity keeps elements in bf16; leave --kv-format out"))
            }
            Some(sparse) => Ok(sparse),
            None => Ok(format),
        }
    }

    /// Refuses compression, for verbs that have no prompt.
    pub(crate) fn only_format(&self, verb: &str) -> anyhow::Result<()> {
        match self.compression(None)? {
            None => Ok(()),
            Some(_) => Err(usage(&format!(
                "`{verb}` scores every token with a full cache; `eval kv` measures the effect of a smaller one"
            ))),
        }
    }

    /// As [`KvArgs::compression`], for a prompt of `prompt_tokens` tokens: also refuses budgets that are larger than the prompt, or
    /// smaller than the sinks and recent tokens.
    pub(crate) fn compression_of(
        &self,
        prompt_tokens: usize,
        seed: Option<u64>,
    ) -> anyhow::Result<Option<Compression>> {
        let how = self.compression(seed)?;
        if let Some(how) = &how {
            how.tokens(prompt_tokens).map_err(|e| usage(&e.to_string()))?;
        }
        Ok(how)
    }
}

/// Refuses a budget that is larger than the model's context of `context_length` tokens.
pub(crate) fn check_context(how: Option<&Compression>, context_length: usize) -> scrimp_llm::Result<()> {
    match how.map(|how| how.budget) {
        Some(Budget::Tokens(n)) if n > context_length => Err(scrimp_llm::Error::bad_input(format!(
            "a KV budget of {n} tokens is larger than the model's context of {context_length}"
        ))
        .with_hint("use a smaller --kv-budget")),
        _ => Ok(()),
    }
}

fn usage(what: &str) -> anyhow::Error {
    Usage(what.to_owned()).into()
}

/// The orders of [`ORDERS`].
fn orders() -> impl TypedValueParser<Value = &'static dyn Order> {
    names(ORDERS.iter().map(|order| (order.name(), order.about()))).try_map(|name| order(&name))
}

/// The masses of [`MASSES`].
fn masses() -> impl TypedValueParser<Value = &'static dyn Mass> {
    names(MASSES.iter().map(|mass| (mass.name(), mass.about()))).try_map(|name| mass(&name))
}

/// The granularities of [`GRANULARITIES`].
fn granularities() -> impl TypedValueParser<Value = Granularity> {
    names(GRANULARITIES.iter().map(|unit| (unit.name(), unit.about())))
        .map(|name| GRANULARITIES.into_iter().find(|unit| unit.name() == name).unwrap_or(Granularity::Token))
}

/// The storage formats without parameters. `--kv-sparsity` selects the format that has some.
fn formats() -> impl TypedValueParser<Value = KvFormat> {
    let formats = KvFormat::names().filter_map(|name| name.parse::<KvFormat>().ok());
    let plain = formats.filter(|format| format.to_string() == format.name());
    names(plain.map(|format| (format.name(), format.about()))).try_map(|name| name.parse::<KvFormat>())
}

fn on_off() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["on", "off"]).map(|value| value == "on")
}

/// Possible values with their help texts.
fn names(values: impl Iterator<Item = (&'static str, &'static str)>) -> PossibleValuesParser {
    PossibleValuesParser::new(values.map(|(name, about)| PossibleValue::new(name).help(about)))
}

/// The shares of keys and values.
fn sparsity(s: &str) -> Result<KvFormat, String> {
    format!("sparse:{s}").parse().map_err(|e: KvError| e.to_string())
}

/// A number with a `.` is a share, one without a number of tokens.
fn budget(s: &str) -> Result<Budget, String> {
    let wrong = "must be a number of tokens, 1 or more, or a share of the prompt above 0.0 and at most 1.0";
    if s.contains('.') {
        let share: Option<f64> = s.parse().ok();
        return share.filter(|&f| f > 0.0 && f <= 1.0).map(Budget::Fraction).ok_or_else(|| wrong.to_owned());
    }
    at_least_one(s).map(Budget::Tokens).map_err(|_| wrong.to_owned())
}

fn shrink(s: &str) -> Result<Shrink, String> {
    let wrong = |_| "must be 4, 8 or 16".to_owned();
    Shrink::new(s.parse().map_err(wrong)?).map_err(|e| e.to_string())
}

fn share(s: &str) -> Result<f64, String> {
    let share: Option<f64> = s.parse().ok();
    share.filter(|f| (0.0..=1.0).contains(f)).ok_or_else(|| "must lie between 0 and 1".to_owned())
}

fn at_least_one(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n >= 1).ok_or_else(|| "must be a whole number, 1 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        kv: KvArgs,
    }

    fn parse(line: &str) -> Result<KvArgs, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Command::try_parse_from(words).map(|c| c.kv).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_are_a_full_cache() {
        assert_eq!(format!("{:?}", parse("").unwrap()), format!("{:?}", KvArgs::full()));
        assert_eq!(parse("").unwrap().compression(None).unwrap(), None);
        assert_eq!(parse("--kv-policy full --kv-budget 64").unwrap().compression(None).unwrap(), None);
        assert_eq!(parse("--kv-policy h2o").unwrap().compression(None).unwrap(), None);
    }

    #[test]
    fn options_arrive() {
        let line = "--kv-budget 0.25 --kv-policy adakv:h2o --kvcrush 0.5 --kvcrush-mass none \
                    --kvcrush-order signature --kv-sinks 2 --kv-recent 3 --kv-granularity page --kv-page 16 --kv-rerotate";
        let how = parse(line).unwrap().compression(Some(7)).unwrap().unwrap();
        assert_eq!(
            (how.budget, how.policy.name().as_str(), how.seed),
            (Budget::Fraction(0.25), "adakv:h2o", 7)
        );
        let crush = Crush { share: 0.5, mass: mass("none").unwrap(), order: order("signature").unwrap() };
        assert_eq!(how.crush, crush);
        assert_eq!((how.sinks, how.recent, how.granularity), (2, Some(3), Granularity::Page(16)));
        assert!(how.rerotate);
        assert_eq!(how.tokens(1000), Ok(250));
        let how = parse("--kv-budget 100").unwrap().compression(None).unwrap().unwrap();
        assert_eq!((how.policy.name().as_str(), how.tokens(1000)), ("expected-max", Ok(100)));
        assert!(how.crush.share == 0.5 && how.fit);
        let how = parse("--kv-budget 100 --kv-policy kvzip --kv-fit off")
            .unwrap()
            .compression(None)
            .unwrap()
            .unwrap();
        assert!(how.crush.share == 0.0 && !how.fit);
        let args = parse("--kv-shrink 8 --kv-fit off").unwrap();
        let how = args.compression(Some(7)).unwrap().unwrap();
        assert_eq!(
            (args.format().unwrap().name(), how.policy.name().as_str(), how.seed),
            ("int4", "expected-max", 7)
        );
        assert!(!how.fit);
        assert_eq!([100, 480, 4000].map(|budget| how.recent_of(budget)), [32, 80, 128]);
        let format = |line: &str| parse(line).unwrap().format().unwrap().to_string();
        assert_eq!(format(""), "bf16");
        assert_eq!(format("--kv-format int8"), "int8");
        assert_eq!(format("--kv-sparsity 0.3,0.5"), "sparse:0.3,0.5");
        assert_eq!(format("--kv-format bf16 --kv-sparsity 0,0.5"), "sparse:0,0.5");
    }

    #[test]
    fn invalid_options_are_refused_before_a_model_is_loaded() {
        for (line, part) in [
            ("--kv-sparsity 1.0,0.5", "from 0 to below 1"),
            ("--kv-sparsity 0.5", "like 0.3,0.5"),
            ("--kv-sparsity 0.3,0.5,page", "like 0.3,0.5"),
            ("--kvcrush-order position", "possible values: keys, signature"),
            ("--kvcrush-mass count", "possible values: none, attention"),
            ("--kvcrush-anchor mean", "unexpected argument"),
            ("--kv-format int3", "int8, int4"),
            ("--kv-budget 0", "a number of tokens, 1 or more"),
            ("--kv-budget 0.0", "above 0.0"),
            ("--kv-budget 1.5", "at most 1.0"),
            ("--kv-budget x", "a number of tokens"),
            ("--kv-budget nan.0", "a number of tokens"),
            ("--kv-shrink 5", "there are 4, 8, 16"),
            ("--kv-shrink x", "must be 4, 8 or 16"),
            ("--kv-shrink 4 --kv-budget 0.5", "cannot be used with"),
            ("--kv-fit yes", "possible values: on, off"),
            ("--kvcrush 1.1", "between 0 and 1"),
            ("--kvcrush -0.1", "unexpected argument"),
            ("--kvcrush=-0.1", "between 0 and 1"),
            ("--kvcrush nan", "between 0 and 1"),
            ("--kv-policy h3o", "no KV policy `h3o`; there are full, streaming, h2o, snapkv"),
            ("--kv-policy adakv:", "no KV policy `adakv:`"),
            ("--kv-policy adakv:full", "no KV policy `adakv:full`"),
            ("--kv-page 0", "1 or more"),
        ] {
            let error = parse(line).map(|_| ()).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        let both = parse("--kv-sparsity 0.3,0.5 --kv-format int8").unwrap().format().unwrap_err().to_string();
        assert!(both.contains("--kv-sparsity keeps elements in bf16"), "{both}");
        let error = |line: &str, prompt| {
            parse(line).unwrap().compression_of(prompt, None).map(|_| ()).unwrap_err().to_string()
        };
        assert!(error("--kvcrush 0.5", 99).contains("needs --kv-budget"));
        assert!(error("--kv-budget 35", 99).contains("smaller than the 4 sinks and 32 recent"));
        assert!(error("--kv-budget 0.25", 99).contains("a KV budget of 25 tokens is smaller"));
        assert!(error("--kv-budget 100", 99).contains("larger than the 99 tokens"));
        assert!(parse("--kv-budget 99").unwrap().compression_of(99, None).is_ok());
        assert!(parse("--kv-budget 1 --kv-sinks 0 --kv-recent 0").unwrap().compression_of(9, None).is_ok());
    }
}
