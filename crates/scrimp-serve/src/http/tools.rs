//! Tool calling. The prompt lists the tools. The model writes a call in the form of its family ([`super::calls`]), or as
//! plain JSON if a call is required.

use super::{
    calls::{CallParser, Signature},
    error::ApiError,
    fields::Fields,
};
use crate::constraint::{Callable, Constraint, Constraints};
use serde_json::Value;

/// Maximum number of tools per request.
const MAX_TOOLS: usize = 64;

/// `tools` and `tool_choice` of a request.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    tools: Vec<Value>,
    choice: Choice,
    /// An answer has at most one call.
    single: bool,
}

/// The choice of tools.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Choice {
    /// The model decides.
    #[default]
    Auto,
    /// No call.
    Never,
    /// A call of any tool.
    Required,
    /// A call of this tool.
    Named(String),
}

impl Tools {
    /// Takes `tools` and `tool_choice`.
    ///
    /// # Errors
    /// Invalid values.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let tools = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) => tools,
            Some(_) => return Err(wrong()),
        };
        let single = fields.boolean("parallel_tool_calls")? == Some(false);
        let choice = match fields.take("tool_choice") {
            None => Choice::Auto,
            Some(Value::String(s)) if s == "auto" => Choice::Auto,
            Some(Value::String(s)) if s == "none" => Choice::Never,
            Some(Value::String(s)) if s == "required" => Choice::Required,
            Some(choice) => match name_of(&choice) {
                Some(name) => Choice::Named(name.to_owned()),
                None => return Err(wrong_choice()),
            },
        };
        Self::new(tools, choice, single)
    }

    /// Tools in the form of OpenAI's chat API.
    ///
    /// # Errors
    /// There are too many, one has no name, or the choice does not name one of them.
    pub(crate) fn new(tools: Vec<Value>, choice: Choice, single: bool) -> Result<Self, ApiError> {
        if tools.len() > MAX_TOOLS || !tools.iter().all(|tool| name_of(tool).is_some()) {
            return Err(wrong());
        }
        let known = match &choice {
            Choice::Auto | Choice::Never => true,
            Choice::Required if tools.is_empty() => {
                return Err(ApiError::field("tool_choice", "tool_choice needs tools"));
            }
            Choice::Required => true,
            Choice::Named(name) => tools.iter().any(|tool| name_of(tool) == Some(name)),
        };
        if !known {
            return Err(wrong_choice());
        }
        Ok(Self { tools, choice, single })
    }

    /// Whether the prompt lists the tools.
    pub(crate) fn is_offered(&self) -> bool {
        !self.tools.is_empty() && self.choice != Choice::Never
    }

    /// Whether the answer must be a call.
    pub(crate) fn is_required(&self) -> bool {
        matches!(self.choice, Choice::Required | Choice::Named(_))
    }

    /// Whether an answer has at most one call.
    pub(crate) fn is_single(&self) -> bool {
        self.single
    }

    /// The tools that the prompt lists.
    pub(crate) fn list(&self) -> Vec<Value> {
        if self.is_offered() { self.tools.clone() } else { Vec::new() }
    }

    /// A parser for one answer; `None`: no call is possible.
    pub(crate) fn parser(&self) -> Option<CallParser> {
        self.is_offered().then(|| CallParser::new(self.tools.iter().filter_map(Signature::new).collect()))
    }

    /// If a call is required: a constraint to JSON with its name and arguments.
    ///
    /// # Errors
    /// The schema of a tool's parameters cannot be enforced.
    pub(crate) fn constraint(
        &self,
        constraints: Option<&Constraints>,
    ) -> Result<Option<Box<dyn Constraint>>, ApiError> {
        let wanted: Vec<&Value> = match &self.choice {
            Choice::Auto | Choice::Never => return Ok(None),
            Choice::Required => self.tools.iter().collect(),
            Choice::Named(name) => self.tools.iter().filter(|tool| name_of(tool) == Some(name)).collect(),
        };
        let Some(constraints) = constraints else {
            return Err(ApiError::field(
                "tool_choice",
                "a required call needs an end token, and this model has none",
            ));
        };
        let functions: Vec<Callable<'_>> = wanted.into_iter().filter_map(callable).collect();
        Ok(Some(constraints.call(&functions)?))
    }
}

fn wrong() -> ApiError {
    let what = format!(
        "tools must be a list of up to {MAX_TOOLS} objects of type function, each with a function.name"
    );
    ApiError::field("tools", what)
}

fn wrong_choice() -> ApiError {
    ApiError::field("tool_choice", "tool_choice must be auto, none, required, or name one of the tools")
}

fn callable(tool: &Value) -> Option<Callable<'_>> {
    let function = &tool["function"];
    let parameters = function.get("parameters").filter(|schema| !schema.is_null());
    Some(Callable { name: name_of(tool)?, parameters, strict: function["strict"] == true })
}

fn name_of(tool: &Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: &str) -> Result<Tools, String> {
        let text = format!(
            r#"{{"tools": [{{"type": "function", "function": {{"name": "add", "parameters": {{"type": "object"}}}}}}],
                "tool_choice": {choice}}}"#
        );
        Tools::take(&mut Fields::parse(text.as_bytes()).unwrap()).map_err(|e| e.message)
    }

    #[test]
    fn choices_are_checked() {
        let named = r#"{"type": "function", "function": {"name": "add"}}"#;
        assert_eq!(tools(named).unwrap().choice, Choice::Named("add".into()));
        assert!(tools(&named.replace("add", "sub")).is_err() && tools("5").is_err());
    }
}
