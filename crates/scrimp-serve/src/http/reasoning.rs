//! Fields of a request that switch or bound the reasoning before an answer.

use super::{error::ApiError, fields::Fields};
use serde_json::Value;

/// Efforts of OpenAI's API and the largest number of reasoning tokens. `None`: no limit; 0: no reasoning.
const EFFORTS: [(&str, Option<usize>); 7] = [
    ("none", Some(0)),
    ("minimal", Some(512)),
    ("low", Some(1024)),
    ("medium", Some(4096)),
    ("high", None),
    ("xhigh", None),
    ("max", None),
];

/// The reasoning that a request demands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ReasoningOptions {
    /// Whether the answer begins with reasoning; `None`: the chat template decides.
    pub(crate) wanted: Option<bool>,
    /// Maximum number of reasoning tokens.
    pub(crate) limit: Option<usize>,
    /// The effort, a variable of some chat templates.
    pub(crate) effort: Option<&'static str>,
}

impl ReasoningOptions {
    /// The default of a server: whether models reason, and the maximum number of tokens.
    pub(crate) fn of_server(default: Option<(bool, Option<usize>)>) -> Self {
        default.map_or_else(Self::default, |(wanted, limit)| Self {
            wanted: Some(wanted),
            limit,
            effort: None,
        })
    }

    /// The options of a request, or else those of the server.
    pub(crate) fn or<'a>(&'a self, server: &'a Self) -> &'a Self {
        if self.wanted.is_none() { server } else { self }
    }

    /// Reasoning of at most `limit` tokens; 0: none.
    pub(crate) fn limited(limit: usize) -> Self {
        Self { wanted: Some(limit > 0), limit: Some(limit), effort: None }
    }

    /// Reasoning is on or off.
    pub(crate) fn switched(wanted: bool) -> Self {
        Self { wanted: Some(wanted), ..Self::default() }
    }

    /// The reasoning of an effort, the value of the field `name`.
    ///
    /// # Errors
    /// The effort is unknown.
    pub(crate) fn of_effort(name: &str, effort: &str) -> Result<Self, ApiError> {
        let Some(&(effort, limit)) = EFFORTS.iter().find(|(known, _)| *known == effort) else {
            let known: Vec<_> = EFFORTS.iter().map(|effort| effort.0).collect();
            return Err(ApiError::field(name, format!("{name} must be one of {}", known.join(", "))));
        };
        Ok(Self { wanted: Some(limit != Some(0)), limit, effort: Some(effort) })
    }

    /// Takes the fields of chat requests: `reasoning_effort`, `reasoning` (`effort`, `max_tokens`, `enabled`),
    /// `enable_thinking`, and `thinking_budget` or `thinking_token_budget`.
    ///
    /// # Errors
    /// A value is invalid.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let mut options = Self::default();
        if let Some(effort) = fields.string("reasoning_effort")? {
            options = Self::of_effort("reasoning_effort", &effort)?;
        }
        if let Some(map) = fields.object("reasoning")? {
            options.take_object(Fields::of(map))?;
        }
        if let Some(thinks) = fields.boolean("enable_thinking")? {
            options.wanted = Some(thinks);
        }
        for name in ["thinking_budget", "thinking_token_budget"] {
            // -1: no limit.
            if let Some(limit) = fields.integer(name, -1..=i64::MAX)? {
                options.limit = usize::try_from(limit).ok();
                options.wanted = Some(limit != 0);
            }
        }
        Ok(options)
    }

    /// Takes the fields of OpenAI's or OpenRouter's object `reasoning`.
    ///
    /// # Errors
    /// A value is invalid.
    pub(crate) fn take_object(&mut self, mut fields: Fields) -> Result<(), ApiError> {
        if let Some(effort) = fields.string("effort")? {
            *self = Self::of_effort("effort", &effort)?;
        }
        if let Some(limit) = fields.integer("max_tokens", 0..=i64::MAX)? {
            *self = Self::limited(limit as usize);
        }
        if let Some(wanted) = fields.boolean("enabled")? {
            self.wanted = Some(wanted);
        }
        fields.ignore(&["exclude", "generate_summary", "summary"]);
        fields.finish()
    }

    /// The variables of the chat template.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (String, Value)> {
        self.effort.map(|effort| ("reasoning_effort".to_owned(), effort.into())).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<ReasoningOptions, String> {
        let mut fields = Fields::parse(text.as_bytes()).unwrap();
        let options = ReasoningOptions::take(&mut fields).map_err(|e| e.message)?;
        fields.finish().map_err(|e| e.message)?;
        Ok(options)
    }

    #[test]
    fn every_form_switches_and_bounds() {
        for (text, wanted, limit) in [
            ("{}", None, None),
            (r#"{"reasoning_effort": "none"}"#, Some(false), Some(0)),
            (r#"{"reasoning_effort": "low"}"#, Some(true), Some(1024)),
            (r#"{"reasoning_effort": "high"}"#, Some(true), None),
            (r#"{"reasoning": {"effort": "medium", "summary": "auto"}}"#, Some(true), Some(4096)),
            (r#"{"reasoning": {"max_tokens": 7}}"#, Some(true), Some(7)),
            (r#"{"enable_thinking": false}"#, Some(false), None),
            (r#"{"enable_thinking": true, "thinking_budget": 5}"#, Some(true), Some(5)),
            (r#"{"thinking_budget": -1}"#, Some(true), None),
            (r#"{"thinking_token_budget": 0}"#, Some(false), Some(0)),
        ] {
            let options = take(text).unwrap();
            assert_eq!((options.wanted, options.limit), (wanted, limit), "{text}");
        }
        for text in [
            r#"{"reasoning_effort": "much"}"#,
            r#"{"reasoning": {"efort": 1}}"#,
            r#"{"thinking_budget": -2}"#,
        ] {
            assert!(take(text).is_err(), "{text}");
        }
    }
}
