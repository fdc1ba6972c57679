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
            (_, Piece::Begin(name)) => parts.push(Piece::Call(Call { name, arguments: String::new() })),
            (Some(Piece::Call(call)), Piece::Arguments(more)) => call.arguments.push_str(&more),
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
            Piece::Begin(_) | Piece::Arguments(_) => unreachable!("joined"),
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
                other => panic!("{other:?} in {text}"),
            })
            .collect();
        assert_eq!(said, out, "{text}");
    }
}

/// The forms whose arguments are streamed: the texts before and behind them.
const STREAMED: [(&str, &str); 9] = [
    (
        r#"<tool_call>
{"name": "add", "arguments": "#,
        "}\n</tool_call>",
    ),
    (r#"{"name": "add", "parameters": "#, r#", "id": {"x": "}"}} "#),
    (r#" { "name" : "add" , "arguments" : "#, "}"),
    (
        r#"```json
{"name": "add", "arguments": "#,
        "}\n```",
    ),
    (r#"<|python_tag|>{"name": "add", "parameters": "#, "}"),
    (r#"<tool_call>{"name": "add", "arguments": "#, ""),
    ("<function=add>", "</function>"),
    ("[TOOL_CALLS]add[ARGS]", ""),
    ("[TOOL_CALLS]add[CALL_ID]x1[ARGS] ", "\n"),
];

#[test]
fn arguments_are_returned_while_they_are_generated() {
    for arguments in [r#"{"a": 2, "b": [3, "}\"{\\"], "c": {"d": "</tool_call>```"}}"#, "{}", r#"{"é": "ü"}"#]
    {
        for (open, close) in STREAMED {
            let mut parser = CallParser::new(signatures());
            assert_eq!(parser.push(open), [], "{open}");
            let (mut found, mut begins) = (String::new(), 0);
            for (i, c) in arguments.char_indices() {
                for piece in parser.push(&c.to_string()) {
                    match piece {
                        Piece::Begin(name) if name == "add" && i < 3 => begins += 1,
                        Piece::Arguments(more) => found += &more,
                        other => panic!("{other:?} in {open}{arguments}"),
                    }
                }
                // The first two characters show that an object begins.
                assert!(i == 0 || found == arguments[..i + c.len_utf8()], "{open}: {found}");
            }
            assert_eq!((found.as_str(), begins), (arguments, 1));
            assert!(!parser.is_inside_call());
            assert_eq!([parser.push(close), parser.finish()], [[], []], "{open}{arguments}{close}");
        }
    }
}

#[test]
fn several_streamed_calls_follow_each_other() {
    let json = r#"{"name": "add", "arguments": {"a": 2, "b": 3}}"#;
    for (text, n) in [
        (format!("<tool_call>{json}{json}</tool_call><tool_call>{json}</tool_call>"), 3),
        (format!("{json}; {json}\n{json}"), 3),
        (format!("```json\n{json}\n{json}\n```"), 2),
        (r#"[TOOL_CALLS]add[ARGS]{"a": 2, "b": 3}[TOOL_CALLS]add[ARGS]{"a": 2, "b": 3}"#.to_owned(), 2),
        (
            r#"<function=add>{"a": 2, "b": 3}</function><function=add>{"a": 2, "b": 3}</function>"#
                .to_owned(),
            2,
        ),
    ] {
        assert_eq!(found(&text), (String::new(), vec![SUM.to_owned(); n]), "{text}");
    }
}

#[test]
fn a_call_that_is_cut_keeps_the_beginning_of_its_arguments() {
    for (open, close) in STREAMED {
        let mut parser = CallParser::new(signatures());
        let pieces = parser.push(&format!(r#"{open}{{"a": 2"#));
        assert_eq!(pieces, [Piece::Begin("add".into()), Piece::Arguments(r#"{"a": 2"#.into())], "{open}");
        assert!(parser.finish().is_empty() && parser.is_inside_call());
        // A call without its end is complete.
        assert_eq!(parser.push("}"), [Piece::Arguments("}".into())]);
        assert!(parser.finish().is_empty() && !parser.is_inside_call(), "{open}{close}");
    }
}

#[test]
fn objects_of_other_languages_are_no_arguments() {
    for text in [
        r#"<tool_call>{"name": "add", "arguments": {'a': 2}}</tool_call>"#,
        r#"{"name": "add", "arguments": {a: 2}}"#,
    ] {
        assert_eq!(found(text), (text.to_owned(), vec![]));
    }
}
