//! The forms of calls: JSON, XML, and those of Mistral and FunctionGemma.

use super::{Call, python};
use serde_json::{Deserializer, Map, Value};

/// Name and parameters of an offered tool.
#[derive(Debug, Clone)]
pub(crate) struct Signature {
    name: String,
    /// JSON schema of the arguments.
    parameters: Value,
}

impl Signature {
    /// A tool in OpenAI's form. `None`: without a name.
    pub(crate) fn new(tool: &Value) -> Option<Self> {
        let function = &tool["function"];
        Some(Self { name: function["name"].as_str()?.to_owned(), parameters: function["parameters"].clone() })
    }

    /// The value of a parameter that is written as text: JSON, unless the schema has a string there.
    fn value(&self, parameter: &str, text: &str) -> Value {
        let kind = &self.parameters["properties"][parameter]["type"];
        let is_text = kind == "string"
            || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "string"));
        let parsed = (!is_text).then(|| serde_json::from_str(text.trim()).ok()).flatten();
        parsed.unwrap_or_else(|| Value::String(text.to_owned()))
    }
}

/// The tool with this name.
pub(super) fn find<'a>(tools: &'a [Signature], name: &str) -> Option<&'a Signature> {
    tools.iter().find(|tool| tool.name == name)
}

/// A call of an offered tool.
pub(super) fn call(tools: &[Signature], name: &str, arguments: &Value) -> Option<Call> {
    find(tools, name)?;
    let arguments = match arguments {
        Value::Null => "{}".to_owned(),
        // Some models write the arguments as a string that contains JSON.
        Value::String(text) if text.trim().is_empty() => "{}".to_owned(),
        Value::String(text) if serde_json::from_str::<Map<String, Value>>(text).is_ok() => text.clone(),
        other => other.to_string(),
    };
    Some(Call { name: name.to_owned(), arguments })
}

/// Calls in brackets. `None`: `text` contains anything else.
pub(super) fn calls(text: &str, tools: &[Signature]) -> Option<Vec<Call>> {
    let text = text.trim();
    if let Some((used, calls)) = json(text, tools, false)
        && text[used..].trim().is_empty()
    {
        return Some(calls);
    }
    xml(text, tools)
        .or_else(|| mistral(text, tools))
        .or_else(|| function_gemma(text, tools))
        .or_else(|| python::script(text, tools))
}

/// Calls without brackets at the beginning of `text`, and their length.
pub(super) fn bare(text: &str, tools: &[Signature]) -> Option<(usize, Vec<Call>)> {
    json(text, tools, true).or_else(|| python::script(text, tools).map(|calls| (text.len(), calls)))
}

/// Whether the beginning of an answer can be that of calls without brackets.
pub(super) fn may_be_bare(text: &str, tools: &[Signature]) -> bool {
    let text = text.trim_start().trim_start_matches('[').trim_start();
    let Some(object) = text.strip_prefix('{') else {
        // A list of calls in Python.
        let name: String = text.chars().take_while(|c| c.is_alphanumeric() || "_-.".contains(*c)).collect();
        return match text.len() == name.len() {
            true => tools.iter().any(|tool| tool.name.starts_with(&name)),
            false => find(tools, &name).is_some() && text[name.len()..].starts_with('('),
        };
    };
    let object = object.trim_start();
    match object.strip_prefix('"').and_then(|key| key.split_once('"')) {
        Some((key, _)) => {
            ["name", "arguments", "parameters", "type", "function", "tool", "id"].contains(&key)
        }
        None => object.is_empty() || object.starts_with('"'),
    }
}

/// Whether `text` is the beginning of JSON.
pub(super) fn is_incomplete(text: &str) -> bool {
    serde_json::from_str::<Value>(text.trim()).is_err_and(|e| e.is_eof())
}

/// JSON objects, or lists of them, at the beginning of `text`, all of them calls, and their length. White space, commas
/// and semicolons separate them. With `strict`, a call without arguments is none.
fn json(text: &str, tools: &[Signature], strict: bool) -> Option<(usize, Vec<Call>)> {
    let (mut used, mut calls) = (0, Vec::new());
    loop {
        let rest = text[used..].trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == ',');
        let start = text.len() - rest.len();
        let mut values = Deserializer::from_str(rest).into_iter::<Value>();
        let found = match values.next() {
            Some(Ok(Value::Array(list))) if !list.is_empty() => {
                list.iter().map(|value| json_call(value, tools, strict)).collect::<Option<Vec<_>>>()
            }
            Some(Ok(value @ Value::Object(_))) => json_call(&value, tools, strict).map(|call| vec![call]),
            _ => None,
        };
        let Some(found) = found else { break };
        calls.extend(found);
        used = start + values.byte_offset();
    }
    (!calls.is_empty()).then_some((used, calls))
}

/// `{"name": ..., "arguments": ...}` and its variants.
fn json_call(value: &Value, tools: &[Signature], strict: bool) -> Option<Call> {
    let value = match value.get("function") {
        Some(function @ Value::Object(_)) => function,
        _ => value,
    };
    let name = ["name", "function", "tool"].into_iter().find_map(|key| value.get(key)?.as_str())?;
    let arguments = ["arguments", "parameters", "args"].into_iter().find_map(|key| value.get(key));
    if arguments.is_none() && strict {
        return None;
    }
    call(tools, name, arguments.unwrap_or(&Value::Null))
}

/// `<function=NAME>`, then `<parameter=KEY>VALUE</parameter>` for each argument or a JSON object, then `</function>`.
fn xml(text: &str, tools: &[Signature]) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.trim().is_empty() {
        let (name, inside) = rest.trim_start().strip_prefix("<function=")?.split_once('>')?;
        let (body, behind) = inside.split_once("</function>").unwrap_or((inside, ""));
        rest = behind;
        let tool = find(tools, name.trim())?;
        if body.trim_start().starts_with('{') {
            let arguments: Map<String, Value> = serde_json::from_str(body.trim()).ok()?;
            calls.push(call(tools, &tool.name, &Value::Object(arguments))?);
            continue;
        }
        let mut arguments = Map::new();
        let mut parameters = body;
        while let Some((_, parameter)) = parameters.split_once("<parameter=") {
            let (key, value) = parameter.split_once('>')?;
            let (value, behind) = value.split_once("</parameter>").unwrap_or((value, ""));
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            arguments.insert(key.trim().to_owned(), tool.value(key.trim(), value));
            parameters = behind;
        }
        calls.push(call(tools, &tool.name, &Value::Object(arguments))?);
    }
    (!calls.is_empty()).then_some(calls)
}

/// `NAME[ARGS]{...}`, perhaps with `[CALL_ID]ID` before `[ARGS]`, repeatedly, perhaps separated by `[TOOL_CALLS]`.
fn mistral(text: &str, tools: &[Signature]) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.trim().is_empty() {
        rest = rest.trim_start();
        rest = rest.strip_prefix("[TOOL_CALLS]").unwrap_or(rest);
        let at = rest.find('{')?;
        let head = rest[..at].trim().trim_end_matches("[ARGS]");
        let name = head.split("[CALL_ID]").next()?.trim();
        let mut values = Deserializer::from_str(&rest[at..]).into_iter::<Value>();
        let arguments = values.next()?.ok()?;
        calls.push(call(tools, name, &arguments)?);
        rest = &rest[at + values.byte_offset()..];
    }
    (!calls.is_empty()).then_some(calls)
}

/// `call:NAME{KEY:VALUE,...}`; strings are between two `<escape>`.
fn function_gemma(text: &str, tools: &[Signature]) -> Option<Vec<Call>> {
    let (name, inside) = text.strip_prefix("call:")?.split_once('{')?;
    let tool = find(tools, name.trim())?;
    let mut rest = inside.trim_end().strip_suffix('}')?;
    let mut arguments = Map::new();
    while !rest.trim().is_empty() {
        let (key, behind) = rest.trim_start().split_once(':')?;
        let value;
        (value, rest) = match behind.trim_start().strip_prefix("<escape>") {
            Some(behind) => {
                let (text, behind) = behind.split_once("<escape>")?;
                (Value::String(text.to_owned()), behind)
            }
            None => {
                let at = behind.find(',').unwrap_or(behind.len());
                (tool.value(key.trim(), behind[..at].trim()), &behind[at..])
            }
        };
        rest = rest.trim_start().strip_prefix(',').unwrap_or(rest);
        arguments.insert(key.trim().to_owned(), value);
    }
    Some(vec![call(tools, &tool.name, &Value::Object(arguments))?])
}
