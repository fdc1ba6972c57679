//! Tool calling. The prompt lists the tools. The model writes a call in the form of its family ([`super::calls`]), or as
//! plain JSON if a call is required.

use super::{
    calls::{Call, CallParser, Piece, Signature},
    error::ApiError,
    fields::Fields,
};
use crate::constraint::{Callable, Constraint, Constraints};
use serde_json::{Value, json};

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

#[derive(Debug, Default, PartialEq)]
enum Choice {
    #[default]
    Auto,
    Never,
    Required,
    Named(String),
}

impl Tools {
    /// Takes `tools` and `tool_choice`.
    ///
    /// # Errors
    /// Invalid values.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let wrong = || {
            let what = format!(
                "tools must be a list of up to {MAX_TOOLS} objects of type function, each with a function.name"
            );
            ApiError::field("tools", what)
        };
        let tools = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) if tools.len() <= MAX_TOOLS => tools,
            Some(_) => return Err(wrong()),
        };
        if !tools.iter().all(|tool| name_of(tool).is_some()) {
            return Err(wrong());
        }
        let single = fields.boolean("parallel_tool_calls")? == Some(false);
        let choice = match fields.take("tool_choice") {
            None => Choice::Auto,
            Some(Value::String(s)) if s == "auto" => Choice::Auto,
            Some(Value::String(s)) if s == "none" => Choice::Never,
            Some(Value::String(s)) if s == "required" => Choice::Required,
            Some(choice) => match name_of(&choice) {
                Some(name) if tools.iter().any(|tool| name_of(tool) == Some(name)) => {
                    Choice::Named(name.to_owned())
                }
                _ => {
                    let what = "tool_choice must be auto, none, required, or name one of the tools";
                    return Err(ApiError::field("tool_choice", what));
                }
            },
        };
        if tools.is_empty() && matches!(choice, Choice::Required | Choice::Named(_)) {
            return Err(ApiError::field("tool_choice", "tool_choice needs tools"));
        }
        Ok(Self { tools, choice, single })
    }

    /// Whether the prompt lists the tools.
    pub(crate) fn is_offered(&self) -> bool {
        !self.tools.is_empty() && self.choice != Choice::Never
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

    /// Content (null: only calls) and calls of an answer.
    pub(crate) fn parse(&self, text: &str) -> (Value, Vec<Value>) {
        let Some(mut parser) = self.parser() else { return (Value::String(text.to_owned()), Vec::new()) };
        let (mut content, mut calls) = (String::new(), Vec::new());
        for piece in parser.push(text).into_iter().chain(parser.finish()) {
            match piece {
                Piece::Text(text) => content += &text,
                Piece::Call(call) => calls.extend(self.call(&call, calls.len())),
            }
        }
        match (calls.is_empty(), content.trim()) {
            (true, _) => (Value::String(content), calls),
            (false, "") => (Value::Null, calls),
            (false, content) => (content.into(), calls),
        }
    }

    /// A call in the API's format, the `index`-th of its answer. `None`: the answer has its only call already.
    pub(crate) fn call(&self, call: &Call, index: usize) -> Option<Value> {
        if self.single && index > 0 {
            return None;
        }
        let id =
            format!("call_{:016x}", super::hash_of(Some(&format!("{index}{}{}", call.name, call.arguments))));
        let function = json!({ "name": call.name, "arguments": call.arguments });
        Some(json!({ "id": id, "type": "function", "function": function }))
    }
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
    fn calls_have_the_apis_form() {
        let t = tools("\"auto\"").unwrap();
        let call = r#"{"name": "add", "arguments": {"a": 1}}"#;
        let (content, calls) =
            t.parse(&format!("So: <tool_call>{call}</tool_call><tool_call>{call}</tool_call>"));
        assert_eq!((content.as_str(), calls.len()), (Some("So:"), 2));
        assert_eq!(calls[0]["function"], json!({ "name": "add", "arguments": r#"{"a":1}"# }));
        assert_ne!(calls[0]["id"], calls[1]["id"]);
        assert!(t.parse(call).0.is_null());
        assert_eq!(tools("\"none\"").unwrap().parse(call), (call.into(), vec![]));
        let single = Tools { single: true, ..t };
        assert_eq!(single.parse(&format!("<tool_call>[{call}, {call}]</tool_call>")).1.len(), 1);
    }

    #[test]
    fn choices_are_checked() {
        let named = r#"{"type": "function", "function": {"name": "add"}}"#;
        assert_eq!(tools(named).unwrap().choice, Choice::Named("add".into()));
        assert!(tools(&named.replace("add", "sub")).is_err() && tools("5").is_err());
    }
}
