//! The grammar of an answer, in the fields of OpenAI, vLLM and llama-server.

use super::super::{error::ApiError, fields::Fields};
use crate::constraint::{Constraint, Constraints, Notation};
use serde_json::{Map, Value};

/// Maximum number of texts to choose from.
const MAX_CHOICES: usize = 1024;

/// Grammar of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that matches a schema; true: strictly.
    Schema(Value, bool),
    /// A text that matches a grammar.
    Grammar(Notation),
}

impl ResponseFormat {
    /// The format of an object with `type` and perhaps a schema, the value of the field `name`.
    ///
    /// # Errors
    /// The type is unknown, or the schema is missing.
    pub(crate) fn take(name: &str, map: Map<String, Value>) -> Result<Self, ApiError> {
        let mut fields = Fields::of(map);
        let wrong = |what: &str| ApiError::field(name, format!("{name}{what}"));
        match fields.string("type")?.as_deref() {
            Some("text") => Ok(Self::Text),
            // Some clients give the schema of a JSON object directly.
            Some("json_object") => match fields.take("schema") {
                None => Ok(Self::JsonObject),
                Some(schema @ Value::Object(_)) => Ok(Self::Schema(schema, false)),
                Some(_) => Err(wrong(".schema must be an object")),
            },
            Some("json_schema") => {
                let mut inner = Fields::of(fields.object("json_schema")?.unwrap_or_default());
                let schema = inner.take("schema").or_else(|| fields.take("schema"));
                let strict = inner.take("strict").or_else(|| fields.take("strict"));
                schema
                    .filter(Value::is_object)
                    .map(|schema| Self::Schema(schema, strict == Some(Value::Bool(true))))
                    .ok_or_else(|| wrong(".json_schema.schema must be an object"))
            }
            _ => Err(wrong(".type must be text, json_object or json_schema")),
        }
    }

    /// Whether it restricts the text.
    pub(crate) fn is_constrained(&self) -> bool {
        *self != Self::Text
    }

    /// A constraint for one answer.
    ///
    /// # Errors
    /// The grammar cannot be enforced.
    pub(crate) fn constraint(
        &self,
        constraints: Option<&Constraints>,
    ) -> Result<Option<Box<dyn Constraint>>, ApiError> {
        let known = || {
            constraints.ok_or_else(|| {
                ApiError::field(
                    "response_format",
                    "response_format needs an end token, and this model has none",
                )
            })
        };
        Ok(match self {
            Self::Text => None,
            Self::JsonObject => Some(known()?.json_object()?),
            Self::Schema(schema, strict) => Some(known()?.schema(schema, *strict)?),
            Self::Grammar(notation) => Some(known()?.text(notation)?),
        })
    }

    /// Takes the fields of llama-server and of vLLM: `grammar`; `guided_json`, `guided_regex`, `guided_choice`,
    /// `guided_grammar`; `structured_outputs` with `json`, `regex`, `choice`, `grammar` or `json_object`; `json_schema`.
    ///
    /// # Errors
    /// A value is invalid, or there are several grammars.
    pub(super) fn take_others(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let mut found = Vec::new();
        if let Some(grammar) = fields.string("grammar")?.filter(|grammar| !grammar.is_empty()) {
            found.push(Self::Grammar(Notation::detect(grammar)));
        }
        if let Some(schema) = fields.take("json_schema") {
            found.push(Self::Schema(schema, false));
        }
        let mut structured = Fields::of(fields.object("structured_outputs")?.unwrap_or_default());
        Self::take_guided(&mut structured, "", &mut found)?;
        if structured.boolean("json_object")? == Some(true) {
            found.push(Self::JsonObject);
        }
        structured.ignore_false(&["disable_any_whitespace", "disable_additional_properties"]);
        structured.finish()?;
        Self::take_guided(fields, "guided_", &mut found)?;
        // They select vLLM's implementation.
        fields.ignore(&["guided_decoding_backend", "guided_whitespace_pattern"]);
        if found.len() > 1 {
            let what = "the request has several grammars: give one";
            return Err(ApiError::field("structured_outputs", what));
        }
        Ok(found.pop())
    }

    /// Takes a schema (`json`), `regex`, `choice` and `grammar`; `prefix` begins their names.
    fn take_guided(fields: &mut Fields, prefix: &str, found: &mut Vec<Self>) -> Result<(), ApiError> {
        let name = |name: &str| format!("{prefix}{name}");
        if let Some(schema) = fields.take(&name("json")) {
            let schema = match schema {
                Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
                schema => schema,
            };
            if !schema.is_object() {
                return Err(ApiError::field(&name("json"), format!("{prefix}json must be a JSON schema")));
            }
            found.push(Self::Schema(schema, false));
        }
        if let Some(regex) = fields.string(&name("regex"))? {
            found.push(Self::Grammar(Notation::Regex(regex)));
        }
        let choices = fields.strings(&name("choice"), MAX_CHOICES)?;
        if !choices.is_empty() {
            found.push(Self::Grammar(Notation::Choice(choices)));
        }
        if let Some(grammar) = fields.string(&name("grammar"))? {
            found.push(Self::Grammar(Notation::detect(grammar)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::take, *};
    use serde_json::json;

    #[test]
    fn every_server_has_its_fields_of_grammars() {
        let grammar = |notation| ResponseFormat::Grammar(notation);
        let regex = || grammar(Notation::Regex("a+".into()));
        let schema = || ResponseFormat::Schema(json!({"type": "object"}), false);
        for (text, format) in [
            (r#"{"guided_regex": "a+"}"#, regex()),
            (r#"{"structured_outputs": {"regex": "a+"}}"#, regex()),
            (r#"{"guided_choice": ["a", "b"]}"#, grammar(Notation::Choice(vec!["a".into(), "b".into()]))),
            (r#"{"guided_json": {"type": "object"}}"#, schema()),
            (r#"{"guided_json": "{\"type\": \"object\"}"}"#, schema()),
            (r#"{"structured_outputs": {"json": {"type": "object"}}}"#, schema()),
            (r#"{"structured_outputs": {"json_object": true}}"#, ResponseFormat::JsonObject),
            (r#"{"grammar": "root ::= a"}"#, grammar(Notation::Gbnf("root ::= a".into()))),
            (r#"{"guided_grammar": "start: a"}"#, grammar(Notation::Lark("start: a".into()))),
            (r#"{"grammar": ""}"#, ResponseFormat::Text),
        ] {
            assert_eq!(take(text).unwrap().format, format, "{text}");
        }
        for text in [
            r#"{"guided_regex": "a", "grammar": "root ::= a"}"#,
            r#"{"guided_regex": "a", "response_format": {"type": "json_object"}}"#,
            r#"{"structured_outputs": {"regexp": "a"}}"#,
            r#"{"guided_json": "no"}"#,
            r#"{"guided_choice": [5]}"#,
        ] {
            assert!(take(text).is_err(), "{text}");
        }
    }
}
