//! Common fields of chat and completions: sampling, stop strings, limits, KV cache.

mod format;
mod kv;

pub(crate) use format::ResponseFormat;
pub(crate) use kv::KV_FIELDS;

use super::{error::ApiError, fields::Fields};
use crate::{
    constraint::Constraint,
    engine::{Generate, KvOptions},
};
use kv::kv_choice;
use scrimp_llm::{
    Error,
    generate::{DraftKind, Speculation},
    sampling::SamplingParams,
};
use serde_json::Value;

/// Maximum number of stop strings.
pub(crate) const MAX_STOPS: usize = 16;
/// Maximum number of answers per prompt.
const MAX_N: i64 = 16;
/// Maximum number of alternatives per token.
const MAX_LOGPROBS: i64 = 20;
/// Maximum number of entries of `logit_bias`.
const MAX_BIAS: usize = 1024;

/// Fields of common clients that do not change the answer of this server.
const HARMLESS: [&str; 27] = [
    "cache_prompt",
    "caching",
    "extra_headers",
    "include_reasoning",
    "separate_reasoning",
    "length_penalty",
    "metadata",
    "modalities",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "provider",
    "request_id",
    "return_token_ids",
    "route",
    "safety_identifier",
    "service_tier",
    "spaces_between_special_tokens",
    "store",
    "stream_interval",
    "timings_per_token",
    "transforms",
    "truncation",
    "usage",
    "verbosity",
];

/// Fields of common clients that do not change the answer if they are false.
const HARMLESS_FALSE: [&str; 4] =
    ["early_stopping", "include_stop_str_in_output", "return_tokens_as_token_ids", "use_beam_search"];

/// Parameters of a request.
#[derive(Debug)]
pub(crate) struct Params {
    /// Number of answers per prompt.
    pub(crate) n: usize,
    /// Stream the answers.
    pub(crate) stream: bool,
    /// End the stream with a chunk of token counts.
    pub(crate) include_usage: bool,
    /// Sampling parameters.
    pub(crate) sampling: SamplingParams,
    /// Maximum number of tokens per answer.
    pub(crate) max_tokens: Option<usize>,
    /// Minimum number of tokens per answer.
    pub(crate) min_tokens: usize,
    /// Continue after end tokens.
    pub(crate) ignore_eos: bool,
    /// Strings that end the answer.
    pub(crate) stop: Vec<String>,
    /// Tokens that end the answer.
    pub(crate) stop_tokens: Vec<u32>,
    /// Added to the logits of these tokens.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Grammar of the answer.
    pub(crate) format: ResponseFormat,
    /// Format and compression of the KV cache.
    pub(crate) kv: KvOptions,
    /// The source of drafts; `None`: the server's default.
    pub(crate) speculation: Option<DraftKind>,
    /// Leave special tokens out of the text.
    pub(crate) skip_special: bool,
    /// The end user, for the fair queue.
    pub(crate) user: Option<String>,
}

impl Params {
    /// One answer with the default parameters.
    pub(crate) fn new(kv: &KvOptions) -> Self {
        Self {
            n: 1,
            stream: false,
            include_usage: false,
            sampling: SamplingParams { temperature: 1.0, ..SamplingParams::default() },
            max_tokens: None,
            min_tokens: 0,
            ignore_eos: false,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            logit_bias: Vec::new(),
            format: ResponseFormat::Text,
            kv: kv.clone(),
            speculation: None,
            skip_special: true,
            user: None,
        }
    }

    /// Takes the parameters from a request. `least_tokens`: the smallest value of `max_tokens`.
    ///
    /// # Errors
    /// A value is out of range.
    pub(crate) fn take(
        fields: &mut Fields,
        default_kv: &KvOptions,
        least_tokens: i64,
    ) -> Result<Self, ApiError> {
        let n = fields.integer("n", 1..=MAX_N)?.unwrap_or(1) as usize;
        let best_of = fields.integer("best_of", 1..=MAX_N)?;
        if best_of.is_some_and(|best| best as usize != n) {
            return Err(ApiError::field("best_of", "best_of must equal n: answers are not ranked"));
        }
        let mut options = Fields::of(fields.object("stream_options")?.unwrap_or_default());
        let include_usage = options.boolean("include_usage")?.unwrap_or(false);
        options.ignore(&["include_obfuscation", "continuous_usage_stats"]);
        options.finish()?;
        let most = fields.integer("max_completion_tokens", 1..=i64::MAX)?;
        let max_tokens = fields.integer("max_tokens", least_tokens..=i64::MAX)?.or(most).map(|n| n as usize);
        let format = match fields.object("response_format")? {
            Some(format) => ResponseFormat::take("response_format", format)?,
            None => ResponseFormat::Text,
        };
        let common = Self::take_common(fields, default_kv)?;
        if format.is_constrained() && common.format.is_constrained() {
            return Err(ApiError::field("response_format", "the request has several grammars: give one"));
        }
        let format = if format.is_constrained() { format } else { common.format.clone() };
        let params = Self {
            n,
            include_usage,
            max_tokens,
            stop: fields.strings("stop", MAX_STOPS)?,
            format,
            user: fields.string("user")?,
            ..common
        };
        fields.ignore(&HARMLESS);
        fields.ignore_false(&HARMLESS_FALSE);
        params.checked()
    }

    /// Takes the fields that all APIs share: `stream`, sampling, the extensions of vLLM and of this server.
    ///
    /// # Errors
    /// A value is out of range.
    pub(crate) fn take_common(fields: &mut Fields, default_kv: &KvOptions) -> Result<Self, ApiError> {
        let float = |x: Option<f64>, default: f32| x.map_or(default, |x| x as f32);
        let top_k = fields.integer("top_k", -1..=1 << 20)?.unwrap_or(0).max(0) as usize;
        let sampling = SamplingParams {
            temperature: float(fields.number("temperature", 0.0..=100.0)?, 1.0),
            top_k,
            top_p: float(fields.number("top_p", 0.0..=1.0)?, 1.0),
            min_p: float(fields.number("min_p", 0.0..=1.0)?, 0.0),
            repetition_penalty: float(fields.number("repetition_penalty", 0.01..=100.0)?, 1.0),
            frequency_penalty: float(fields.number("frequency_penalty", -2.0..=2.0)?, 0.0),
            presence_penalty: float(fields.number("presence_penalty", -2.0..=2.0)?, 0.0),
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| seed as u64),
        };
        Ok(Self {
            stream: fields.boolean("stream")?.unwrap_or(false),
            sampling,
            min_tokens: fields.integer("min_tokens", 0..=i64::MAX)?.unwrap_or(0) as usize,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            stop_tokens: token_ids(fields, "stop_token_ids")?,
            logit_bias: logit_bias(fields)?,
            speculation: speculation(fields)?,
            skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            format: ResponseFormat::take_others(fields)?.unwrap_or(ResponseFormat::Text),
            ..Self::new(&kv_choice(fields, default_kv)?)
        })
    }

    /// With the grammar `format`, unless that is any text.
    #[must_use]
    pub(crate) fn with_format(self, format: ResponseFormat) -> Self {
        if format.is_constrained() { Self { format, ..self } } else { self }
    }

    /// Checks the fields together.
    ///
    /// # Errors
    /// `min_tokens` is above `max_tokens`.
    pub(crate) fn checked(self) -> Result<Self, ApiError> {
        if self.max_tokens.is_some_and(|most| self.min_tokens > most) {
            return Err(ApiError::field("min_tokens", "min_tokens must not be above max_tokens"));
        }
        Ok(self)
    }

    /// The parameters of answer `index`. `room`: tokens that fit into the context.
    pub(crate) fn generate(
        &self,
        index: usize,
        room: usize,
        default_tokens: usize,
        logprobs: Option<usize>,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Generate {
        let seed = self.sampling.seed.map(|seed| seed.wrapping_add(index as u64));
        Generate {
            sampling: SamplingParams { seed, ..self.sampling.clone() },
            max_tokens: self.max_tokens.unwrap_or(default_tokens).min(room),
            min_tokens: self.min_tokens,
            ignore_eos: self.ignore_eos,
            stop: self.stop.clone(),
            stop_tokens: self.stop_tokens.clone(),
            written: Vec::new(),
            scores_prompt: false,
            logprobs,
            logit_bias: self.logit_bias.clone(),
            constraint,
            speculation: Speculation::Off,
            reasoning: None,
        }
    }
}

/// Takes the number of alternatives per token.
///
/// # Errors
/// The number is out of range.
pub(crate) fn alternatives(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    Ok(fields.integer(name, 0..=MAX_LOGPROBS)?.map(|n| n as usize))
}

fn speculation(fields: &mut Fields) -> Result<Option<DraftKind>, ApiError> {
    let parsed = |name: String| name.parse().map_err(|e: Error| ApiError::field("speculate", e.to_string()));
    fields.string("speculate")?.map(parsed).transpose()
}

fn token_ids(fields: &mut Fields, name: &str) -> Result<Vec<u32>, ApiError> {
    let wrong = || ApiError::field(name, format!("{name} must be a list of up to {MAX_STOPS} token ids"));
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) if ids.len() <= MAX_STOPS => {
            ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = || {
        let what = "logit_bias must map up to 1024 token ids to numbers from -100 to 100";
        ApiError::field("logit_bias", what)
    };
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    if map.len() > MAX_BIAS {
        return Err(wrong());
    }
    map.iter()
        .map(|(id, bias)| {
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            Ok((id.parse().map_err(|_| wrong())?, bias.ok_or_else(wrong)? as f32))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scrimp_kv::compress::Budget;

    pub(super) fn take(text: &str) -> Result<Params, String> {
        let mut fields = Fields::parse(text.as_bytes()).map_err(|e| e.message)?;
        let kv = KvOptions { compression: None, format: "bf16".into() };
        let params = Params::take(&mut fields, &kv, 1).map_err(|e| e.message)?;
        fields.finish().map_err(|e| e.message)?;
        Ok(params)
    }

    #[test]
    fn values_arrive() {
        let p = take(
            r#"{"n": 2, "seed": -1, "temperature": 0.5, "top_k": -1, "stop": "x", "logit_bias": {"5": -100},
                "kv_budget": 0.25, "kvcrush": 0.5, "kv_format": "int8", "max_completion_tokens": 7, "user": null}"#,
        )
        .unwrap();
        assert_eq!((p.n, p.sampling.top_k, p.max_tokens, p.stop.len()), (2, 0, Some(7), 1));
        assert_eq!(p.logit_bias, [(5, -100.0)]);
        assert_eq!(p.kv.format, "int8");
        let how = p.kv.compression.clone().unwrap();
        assert_eq!((how.budget, how.crush.share), (Budget::Fraction(0.25), 0.5));
        let (a, b) = (p.generate(0, 9, 16, None, None), p.generate(1, 9, 16, None, None));
        assert_ne!(a.sampling.seed, b.sampling.seed);
        assert_eq!(p.generate(0, 3, 16, None, None).max_tokens, 3);
    }

    #[test]
    fn invalid_values_are_rejected() {
        for text in [
            r#"{"temperature": -1}"#,
            r#"{"temperature": "hot"}"#,
            r#"{"temperature": 1e999}"#,
            r#"{"max_tokens": 0}"#,
            r#"{"max_tokens": -5}"#,
            r#"{"n": 1000}"#,
            r#"{"stop": [""]}"#,
            r#"{"top_p": -0.1}"#,
            r#"{"top_p": 1.1}"#,
            r#"{"logit_bias": {"x": 1}}"#,
            r#"{"response_format": {"type": "xml"}}"#,
            r#"{"kv_budget": 0}"#,
            r#"{"kv_budget": 1.5}"#,
            r#"{"kv_policy": "h3o", "kv_budget": 64}"#,
            r#"{"kvcrush": 0.5}"#,
            r#"{"kv_format": "int3"}"#,
            r#"{"min_tokens": 5, "max_tokens": 4}"#,
            r#"{"speculate": "words"}"#,
            r#"{"speculate": 3}"#,
            r#"{"temprature": 1}"#,
        ] {
            assert!(take(text).is_err(), "{text}");
        }
    }
}
