//! Tool calling. The prompt lists the tools. The model writes a call as JSON between `<tool_call>` tags (the format of
//! Qwen and Hermes), or as plain JSON if a call is required.

use super::{error::ApiError, fields::Fields};
use crate::constraint::{Constraint, Constraints};
use serde_json::{Value, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Maximum number of tools per request.
const MAX_TOOLS: usize = 64;

/// `tools` and `tool_choice` of a request.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    tools: Vec<Value>,
    choice: Choice,
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
        fields.ignore(&["parallel_tool_calls"]);
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
        Ok(Self { tools, choice })
    }

    /// Whether no call is possible.
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_offered()
    }

    /// Whether the prompt lists the tools.
    pub(crate) fn is_offered(&self) -> bool {
        !self.tools.is_empty() && self.choice != Choice::Never
    }

    /// The list for chat templates with tools.
    pub(crate) fn list(&self) -> Value {
        Value::Array(self.tools.clone())
    }

    /// A system message for chat templates without tools.
    pub(crate) fn instructions(&self) -> String {
        let list: Vec<String> = self.tools.iter().map(Value::to_string).collect();
        format!(
            "You may call these functions:\n{}\nTo call one, answer with nothing but\n{OPEN}\n\
             {{\"name\": \"the function\", \"arguments\": {{...}}}}\n{CLOSE}",
            list.join("\n")
        )
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
        let one = |tool: &&Value| {
            let parameters =
                tool["function"].get("parameters").cloned().unwrap_or_else(|| json!({ "type": "object" }));
            json!({
                "type": "object",
                "properties": { "name": { "const": name_of(tool) }, "arguments": parameters },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        // Without flexible whitespace the model cannot generate endless spaces.
        let spaces = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        let schema = json!({ "anyOf": wanted.iter().map(one).collect::<Vec<_>>(), "x-guidance": spaces });
        Ok(Some(constraints.schema(schema)?))
    }

    /// Content (null: only calls) and calls of an answer.
    pub(crate) fn parse(&self, text: &str) -> (Value, Vec<Value>) {
        if self.is_empty() {
            return (Value::String(text.to_owned()), Vec::new());
        }
        let (mut content, mut calls, mut rest) = (String::new(), Vec::new(), text);
        while let Some((before, behind)) = rest.split_once(OPEN) {
            let (inside, after) = behind.split_once(CLOSE).unwrap_or((behind, ""));
            match self.call(inside, calls.len()) {
                Some(call) => {
                    content += before;
                    calls.push(call);
                }
                None => content += &rest[..rest.len() - after.len()],
            }
            rest = after;
        }
        match self.call(rest, calls.len()).filter(|_| calls.is_empty()) {
            Some(call) => calls.push(call),
            None => content += rest,
        }
        let content = content.trim();
        let content = if content.is_empty() && !calls.is_empty() { Value::Null } else { content.into() };
        (content, calls)
    }

    /// A call in the API's format, if `json` is a call of one of the tools.
    fn call(&self, json: &str, index: usize) -> Option<Value> {
        let call: Value = serde_json::from_str(json.trim()).ok()?;
        let name = call.get("name")?.as_str()?;
        let arguments = call.get("arguments").or_else(|| call.get("parameters"))?;
        self.tools.iter().find(|tool| name_of(tool) == Some(name))?;
        let id = format!("call_{:016x}", super::hash_of(Some(&format!("{index}{json}"))));
        let function = json!({ "name": name, "arguments": arguments.to_string() });
        Some(json!({ "id": id, "type": "function", "function": function }))
    }
}

fn name_of(tool: &Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

/// Length of the prefix of `text` that cannot be part of a call: it ends before a complete or incomplete tag. As long as no
/// text was `said`, JSON can be a call without tags.
pub(crate) fn settled(text: &str, said: bool) -> usize {
    if !said && (text.trim_start().is_empty() || text.trim_start().starts_with('{')) {
        return 0;
    }
    let begun = |n: &usize| text.as_bytes().ends_with(&OPEN.as_bytes()[..*n]);
    text.find(OPEN).unwrap_or_else(|| text.len() - (1..OPEN.len()).rev().find(begun).unwrap_or(0))
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
    fn calls_are_found() {
        let t = tools("\"auto\"").unwrap();
        let call = r#"{"name": "add", "arguments": {"a": 1}}"#;
        for text in
            [call.to_owned(), format!("<tool_call>\n{call}\n</tool_call>"), format!("<tool_call>{call}")]
        {
            let (content, calls) = t.parse(&text);
            assert!(content.is_null(), "{text}");
            assert_eq!(calls[0]["function"]["arguments"], r#"{"a":1}"#);
        }
        let (content, calls) =
            t.parse(&format!("So: <tool_call>{call}</tool_call><tool_call>{call}</tool_call>"));
        assert_eq!((content.as_str(), calls.len()), (Some("So:"), 2));
        // A call of an unknown tool stays text.
        let other = r#"{"name": "sub", "arguments": {}}"#;
        assert_eq!(t.parse(other), (other.into(), vec![]));
        assert_eq!(tools("\"none\"").unwrap().parse(call), (call.into(), vec![]));
    }

    #[test]
    fn choices_are_checked() {
        let named = r#"{"type": "function", "function": {"name": "add"}}"#;
        assert_eq!(tools(named).unwrap().choice, Choice::Named("add".into()));
        assert!(tools(&named.replace("add", "sub")).is_err() && tools("5").is_err());
    }

    #[test]
    fn only_possible_calls_are_held_back() {
        for (text, said, out) in [
            ("", false, ""),
            ("  ", false, ""),
            (" {\"na", false, ""),
            ("{\"na", true, "{\"na"),
            ("<tool", false, ""),
            ("<b>", false, "<b>"),
            ("Hello", false, "Hello"),
            ("Hello <", false, "Hello "),
            ("a < b, <tool_", true, "a < b, "),
            ("<<tool_call", true, "<"),
            ("So: <tool_call>{} é", true, "So: "),
        ] {
            assert_eq!(&text[..settled(text, said)], out, "{text}");
        }
    }
}
