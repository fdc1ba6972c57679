//! Calls in the forms of all families, whole and token by token.

use super::*;
use serde_json::{Value, json};

fn signatures() -> Vec<Signature> {
    let tool = |name: &str, properties: Value| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}});
    let tools = [
        tool("get_weather", json!({"city": {"type": "string"}, "days": {"type": "integer"}})),
        tool("add", json!({"a": {"type": "integer"}, "b": {"type": "integer"}})),
        tool("now", json!({})),
    ];
    tools.iter().map(|tool| Signature::new(tool).unwrap()).collect()
}

/// The parts of `text`, which arrives in pieces of `step` characters.
fn parts(text: &str, step: usize) -> Vec<Piece> {
    let mut parser = CallParser::new(signatures());
    let mut pieces = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    for chunk in chars.chunks(step) {
        pieces.extend(parser.push(&chunk.iter().collect::<String>()));
    }
    pieces.extend(parser.finish());
    let mut parts: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (parts.last_mut(), piece) {
            (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
            (_, piece) => parts.push(piece),
        }
    }
    parts
}

/// Text without calls, and the calls as `NAME{...}`.
fn found(text: &str) -> (String, Vec<String>) {
    let whole = parts(text, text.chars().count().max(1));
    for step in [1, 2, 7] {
        assert_eq!(parts(text, step), whole, "{text} in pieces of {step}");
    }
    let (mut said, mut calls) = (String::new(), Vec::new());
    for part in whole {
        match part {
            Piece::Text(text) => said += &text,
            Piece::Call(call) => {
                let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                calls.push(format!("{}{arguments}", call.name));
            }
        }
    }
    (said.trim().to_owned(), calls)
}

const PARIS: &str = r#"get_weather{"city":"Paris"}"#;
const SUM: &str = r#"add{"a":2,"b":3}"#;

#[test]
fn each_familys_calls_are_found() {
    let json = r#"{"name": "get_weather", "arguments": {"city": "Paris"}}"#;
    let sum = r#"{"name": "add", "arguments": {"a": 2, "b": 3}}"#;
    let llama = r#"{"name": "get_weather", "parameters": {"city": "Paris"}}"#;
    for (text, calls) in [
        // Qwen, Hermes, SmolLM.
        (format!("<tool_call>\n{json}\n</tool_call>"), vec![PARIS]),
        (format!("<tool_call>{json}"), vec![PARIS]),
        (format!("<tool_call>\n{json}\n</tool_call>\n<tool_call>\n{sum}\n</tool_call>"), vec![PARIS, SUM]),
        (format!("<tool_call>[{json}, {sum}]</tool_call>"), vec![PARIS, SUM]),
        (format!("<tool_call>\n{json}\n{sum}\n</tool_call>"), vec![PARIS, SUM]),
        // Fenced.
        (format!("```json\n{json}\n```"), vec![PARIS]),
        (format!("```\n{json}\n```"), vec![PARIS]),
        (format!("```json\n[{json}, {sum}]\n```"), vec![PARIS, SUM]),
        (format!("```json\n{json}\n```\n\n```json\n{sum}\n```"), vec![PARIS, SUM]),
        (format!("```json\n{json}"), vec![PARIS]),
        (format!("```tool_call\n{json}\n```"), vec![PARIS]),
        ("```xml\n<function=add><parameter=a>2</parameter><parameter=b>3</parameter></function>\n```".to_owned(), vec![SUM]),
        // Llama 3.
        (llama.to_owned(), vec![PARIS]),
        (format!("{llama}; {sum}"), vec![PARIS, SUM]),
        (format!("[{llama}]"), vec![PARIS]),
        (format!("<|python_tag|>{llama}"), vec![PARIS]),
        ("<|python_tag|>get_weather.call(city=\"Paris\")".to_owned(), vec![PARIS]),
        ("<function=get_weather>{\"city\": \"Paris\"}</function>".to_owned(), vec![PARIS]),
        ("[get_weather(city='Paris'), add(a=2, b=3)]".to_owned(), vec![PARIS, SUM]),
        (r#"{"type": "function", "function": {"name": "add", "parameters": {"a": 2, "b": 3}}}"#.to_owned(), vec![SUM]),
        (r#"{"type": "function", "name": "add", "parameters": {"a": 2, "b": 3}}"#.to_owned(), vec![SUM]),
        (r#"{"function": "add", "parameters": {"a": 2, "b": 3}}"#.to_owned(), vec![SUM]),
        // Mistral.
        (format!("[TOOL_CALLS] [{json}]"), vec![PARIS]),
        (r#"[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}"#.to_owned(), vec![PARIS]),
        (
            r#"[TOOL_CALLS]get_weather[CALL_ID]a1[ARGS]{"city": "Paris"}[TOOL_CALLS]add[ARGS]{"a": 2, "b": 3}"#.to_owned(),
            vec![PARIS, SUM],
        ),
        // Qwen3-Coder.
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>".to_owned(),
            vec![PARIS],
        ),
        ("<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=b>3</parameter>\n</function>".to_owned(), vec![SUM]),
        ("<function=now>\n</function>".to_owned(), vec!["now{}"]),
        // Gemma.
        ("```tool_code\nprint(get_weather(city=\"Paris\"))\n```".to_owned(), vec![PARIS]),
        ("```tool_code\nadd(a=2, b=3)\n```".to_owned(), vec![SUM]),
        ("<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>".to_owned(), vec![PARIS]),
        ("<start_function_call>call:add{a:2,b:3}<end_function_call>".to_owned(), vec![SUM]),
        // Phi-4.
        (format!("<|tool_call|>[{json}]<|/tool_call|>"), vec![PARIS]),
    ] {
        assert_eq!(found(&text), (String::new(), calls.into_iter().map(str::to_owned).collect()), "{text}");
    }
}

#[test]
fn text_beside_calls_stays() {
    let json = r#"{"name": "add", "arguments": {"a": 2, "b": 3}}"#;
    for (text, said) in [
        (format!("I add.\n<tool_call>{json}</tool_call>"), "I add."),
        (format!("I add.\n```json\n{json}\n```\nDone."), "I add.\n\nDone."),
        (format!("{json}\n\nThis adds."), "This adds."),
        (format!("I add. [TOOL_CALLS][{json}]"), "I add."),
    ] {
        assert_eq!(found(&text), (said.to_owned(), vec![SUM.to_owned()]), "{text}");
    }
}

#[test]
fn arguments_in_a_string_are_not_encoded_twice() {
    let text = r#"{"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}"#;
    assert_eq!(found(text).1, [PARIS]);
    assert_eq!(found(r#"{"name": "now", "arguments": ""}"#).1, ["now{}"]);
    assert_eq!(found(r#"<tool_call>{"name": "now"}</tool_call>"#).1, ["now{}"]);
    // Brackets within arguments do not end a call.
    let text = r#"<tool_call>{"name": "get_weather", "arguments": {"city": "</tool_call>```"}}</tool_call>"#;
    assert_eq!(found(text).1, [r#"get_weather{"city":"</tool_call>```"}"#]);
    let text = "```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"```\"}}\n```";
    assert_eq!(found(text).1, [r#"get_weather{"city":"```"}"#]);
}

#[test]
fn other_texts_are_no_calls() {
    for text in [
        "Hello",
        "a < b and c",
        r#"{"name": "sub", "arguments": {}}"#,
        r#"{"name": "add"}"#,
        r#"{"city": "Paris", "name": "add"}"#,
        "[1, 2, 3]",
        "[citation needed]",
        "```python\nadd(a=2, b=3)\n```",
        "```json\n{\"x\": 1}\n```",
        "```json\n{\"name\": \"sub\", \"arguments\": {}}\n```",
        "```\nadd\n```\nmore",
        "<tool_call>{\"name\": \"sub\", \"arguments\": {}}</tool_call>",
        "<tool_call>no</tool_call> more",
        "```tool_code\nprint(1)\n```",
        "add(a=2)",
        "[add]",
        "`<tool_call>` begins a call",
        "text with ``` in it",
    ] {
        assert_eq!(found(text), (text.to_owned(), vec![]), "{text}");
    }
}

#[test]
fn text_is_held_only_while_it_may_be_a_call() {
    for (text, out) in [
        ("  ", ""),
        (" {\"na", ""),
        ("{\"city", ""),
        ("{\"city\"", "{\"city\""),
        ("[1", "[1"),
        ("[get_w", ""),
        ("<tool", ""),
        ("<b>", "<b>"),
        ("Hello", "Hello"),
        ("Hello <", "Hello "),
        ("Hello ``", "Hello "),
        ("a < b, <tool_", "a < b, "),
        ("<<tool_call", "<"),
        ("So: <tool_call>{} é", "So: "),
        ("```rust\nfn", "```rust\nfn"),
        ("```json\n", ""),
        ("```json\n{", ""),
    ] {
        let mut parser = CallParser::new(signatures());
        let said: String = text
            .chars()
            .flat_map(|c| parser.push(&c.to_string()))
            .map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Call(call) => panic!("{call:?} in {text}"),
            })
            .collect();
        assert_eq!(said, out, "{text}");
    }
}
