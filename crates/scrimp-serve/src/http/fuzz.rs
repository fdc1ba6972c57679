//! Fuzzing: parsing any JSON neither panics nor returns parameters out of range.

use super::{
    ApiError,
    apis::{anthropic, ollama, responses},
    chat,
    fields::Fields,
    parts::AnswerParser,
    rerank,
    turn::Turn,
};
use crate::engine::KvOptions;
use proptest::prelude::*;
use scrimp_llm::chat::Conversation;
use serde_json::{Value, json};

/// The parser of an API's requests.
struct Parser {
    /// Takes all fields but `model`.
    take: fn(&mut Fields, &KvOptions) -> Result<Turn, ApiError>,
    /// The body of an error.
    error: fn(&ApiError) -> Value,
    /// Valid requests that together have every known field.
    seeds: Vec<Value>,
}

fn parsers() -> Vec<Parser> {
    vec![
        Parser { take: chat::take, error: ApiError::body, seeds: chat_seeds() },
        Parser { take: anthropic::take, error: anthropic::API.error, seeds: anthropic_seeds() },
        Parser { take: ollama::take, error: ollama::API.error, seeds: ollama_seeds() },
        Parser {
            take: |fields, kv| responses::take(fields, kv).map(|request| request.turn),
            error: responses::API.error,
            seeds: responses_seeds(),
        },
    ]
}

fn chat_seeds() -> Vec<Value> {
    vec![
        json!({
            "model": "m", "n": 2, "best_of": 2, "stream": true, "stream_options": {"include_usage": true},
            "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1,
            "frequency_penalty": 0.5, "presence_penalty": -0.5, "seed": 7, "max_tokens": 5, "min_tokens": 1,
            "ignore_eos": false, "stop": ["a", "b"], "stop_token_ids": [1, 2], "logit_bias": {"5": -100, "7": 3.5},
            "user": "u", "kv_budget": 0.25, "kv_policy": "snapkv", "kvcrush": 0.5, "kv_format": "int8",
            "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
        }),
        json!({
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null,
                 "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "3"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
            "max_completion_tokens": 9, "logprobs": true, "top_logprobs": 3,
        }),
        json!({"messages": [{"role": "user", "content": "z"}], "tools": [], "tool_choice": "none",
               "response_format": {"type": "json_object"}, "kv_budget": 64, "chat_template_kwargs": {"a": [1]}}),
    ]
}

fn anthropic_seeds() -> Vec<Value> {
    vec![
        json!({
            "max_tokens": 9, "stream": true, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "stop_sequences": ["a"],
            "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
            "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 5}, "service_tier": "auto",
            "messages": [{"role": "user", "content": "y"}, {"role": "assistant", "content": "z"}], "kv_budget": 64,
        }),
        json!({
            "max_tokens": 9, "system": "x", "thinking": {"type": "disabled"},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "b"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "3"}]},
                    {"type": "text", "text": "c"}]},
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
        }),
        json!({"max_tokens": 9, "messages": [{"role": "user", "content": "z"}], "tools": [],
               "thinking": {"type": "adaptive"}, "tool_choice": {"type": "none"},
               "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}}),
    ]
}

fn ollama_seeds() -> Vec<Value> {
    vec![
        json!({
            "stream": false, "think": true, "format": "json", "keep_alive": "5m", "kv_shrink": 8,
            "options": {"num_predict": 9, "temperature": 0.5, "top_k": 4, "repeat_penalty": 1.1, "stop": ["a"], "seed": 7, "num_ctx": 64},
            "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y", "images": []}],
        }),
        json!({
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "", "thinking": "t", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "3", "tool_name": "f"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        }),
        json!({"messages": [{"role": "user", "content": "z"}], "think": "low", "format": {"type": "object"}}),
    ]
}

fn responses_seeds() -> Vec<Value> {
    vec![
        json!({
            "input": "a", "instructions": "b", "max_output_tokens": 9, "stream": true, "store": false, "top_p": 0.9,
            "text": {"format": {"type": "json_schema", "name": "s", "strict": true, "schema": {"type": "object"}}},
            "reasoning": {"effort": "low", "summary": "auto"}, "metadata": {"k": "v"}, "truncation": "auto", "user": "u",
        }),
        json!({
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "3"},
                {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "x"},
                {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "y"}]},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true},
                      {"type": "custom", "name": "g", "description": "d"}],
            "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false, "previous_response_id": "p",
        }),
        json!({
            "input": [{"role": "user", "content": "z"}], "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
        }),
    ]
}

/// Arbitrary JSON with many extreme numbers.
fn odd() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![-1i64, 0, 1, 127, 128, 1 << 20, i64::MAX, i64::MIN]).prop_map(Value::from),
        prop::sample::select(vec![-0.0, 1e-9, 0.5, 1e9, f64::MAX, f64::MIN_POSITIVE]).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec![
            "auto",
            "required",
            "function",
            "text",
            "f",
            "snapkv",
            "adakv:h2o",
            "int4",
            "user",
            "text",
            "tool_result",
            "tool_use",
            "thinking",
            "enabled",
            "low",
            "none",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name(), inner), 0..4).prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

/// Names of fields, known ones more often than others.
fn name() -> impl Strategy<Value = String> {
    let known = [
        "role",
        "content",
        "type",
        "text",
        "function",
        "name",
        "arguments",
        "schema",
        "json_schema",
        "tool_calls",
        "n",
        "stop",
        "kv_policy",
        "kvcrush",
        "kv_budget",
        "temperature",
        "include_usage",
        "logit_bias",
    ];
    prop_oneof![prop::sample::select(known.map(str::to_owned).to_vec()), ".{0,6}"]
}

/// The `at`-th place of a tree, counted from its root.
fn place(value: &mut Value, at: usize) -> Result<&mut Value, usize> {
    if at == 0 {
        return Ok(value);
    }
    let mut left = at - 1;
    let children: Box<dyn Iterator<Item = &mut Value>> = match value {
        Value::Array(list) => Box::new(list.iter_mut()),
        Value::Object(map) => Box::new(map.values_mut()),
        _ => return Err(left),
    };
    for child in children {
        match place(child, left) {
            Ok(found) => return Ok(found),
            Err(rest) => left = rest,
        }
    }
    Err(left)
}

impl Parser {
    /// What the handler does with a body before it needs a model.
    fn take(&self, body: &[u8]) -> Result<Turn, ApiError> {
        let mut fields = Fields::parse(body)?;
        fields.string("model")?;
        let kv = KvOptions { compression: None, format: "bf16".into() };
        let turn = (self.take)(&mut fields, &kv)?;
        fields.finish()?;
        let mut answer = AnswerParser::new(None, turn.tools.parser(), turn.tools.is_single());
        let _ = (turn.tools.list(), answer.finish("<tool_call>{\"name\": \"f\"}</tool_call>"));
        // Conversations of any form are accepted or refused.
        let _ = Conversation::new(&turn.messages);
        Ok(turn)
    }

    fn check(&self, body: &[u8]) -> Result<(), TestCaseError> {
        match self.take(body) {
            Err(e) => {
                prop_assert!(e.status.is_client_error(), "{}", e.status);
                prop_assert!(!e.message.is_empty() && e.message.len() < 4096);
                let shape = (self.error)(&e);
                prop_assert!(shape["error"].is_string() || shape["error"]["message"].is_string());
            }
            Ok(Turn { params: p, .. }) => {
                let s = &p.sampling;
                let floats = [s.temperature, s.top_p, s.min_p, s.repetition_penalty, s.frequency_penalty];
                prop_assert!(floats.iter().all(|x| x.is_finite()));
                prop_assert!((1..=128).contains(&p.n) && s.temperature >= 0.0 && s.repetition_penalty > 0.0);
                prop_assert!(p.max_tokens != Some(0) && p.logit_bias.iter().all(|(_, x)| x.is_finite()));
            }
        }
        Ok(())
    }
}

#[test]
fn the_seeds_are_good_requests() {
    for parser in parsers() {
        for seed in &parser.seeds {
            parser.take(seed.to_string().as_bytes()).unwrap_or_else(|e| panic!("{seed}: {}", e.message));
        }
    }
}

/// A parser, and one of its seeds.
fn choose(which: usize) -> (Parser, Value) {
    let mut all = parsers();
    let mut parser = all.swap_remove(which % all.len());
    let n = parser.seeds.len();
    let seed = parser.seeds.swap_remove((which / 16) % n);
    (parser, seed)
}

/// Requests for rankings and for scores of pairs.
fn rankings() -> [Value; 2] {
    [
        json!({"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": true, "instruction": "i"}),
        json!({"text_1": ["p", "q"], "text_2": ["a", "b"], "instruction": "i", "user": "u"}),
    ]
}

/// Takes a ranking or pairs, all of whose texts have documents.
fn take_ranking(body: &Value) -> Result<(), ApiError> {
    let parse = || Fields::parse(body.to_string().as_bytes());
    let mut fields = parse()?;
    if fields.get("query").is_some() {
        rerank::take(&mut fields)?;
    } else {
        let groups = rerank::take_pairs(&mut fields)?;
        assert!(groups.iter().all(|(_, texts)| !texts.is_empty()), "{groups:?}");
    }
    fields.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6000))]

    #[test]
    fn rankings_are_taken_or_refused(which in 0usize..2, changes in prop::collection::vec((0usize..12, odd()), 0..3)) {
        let mut body = rankings()[which].clone();
        prop_assert!(take_ranking(&body).is_ok());
        for (at, value) in changes {
            if let Ok(place) = place(&mut body, at) {
                *place = value;
            }
        }
        if let Err(e) = take_ranking(&body) {
            prop_assert!(e.status.is_client_error() && !e.message.is_empty() && e.message.len() < 4096);
        }
    }

    #[test]
    fn values_are_replaced(which in 0usize..4096, changes in prop::collection::vec((0usize..60, odd()), 1..4)) {
        let (parser, mut body) = choose(which);
        for (at, value) in changes {
            if let Ok(place) = place(&mut body, at) {
                *place = value;
            }
        }
        parser.check(body.to_string().as_bytes())?;
    }

    #[test]
    fn fields_are_added(which in 0usize..4096, more in prop::collection::vec((name(), odd()), 1..4)) {
        let (parser, mut body) = choose(which);
        body.as_object_mut().expect("an object").extend(more);
        parser.check(body.to_string().as_bytes())?;
    }

    #[test]
    fn bytes_are_damaged(
        which in 0usize..4096,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let (parser, body) = choose(which);
        let mut body = body.to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if !whole {
            body.truncate(cut.index(body.len()));
        }
        parser.check(&body)?;
    }

    #[test]
    fn bytes_are_anything(which in 0usize..4096, body: Vec<u8>) {
        choose(which).0.check(&body)?;
    }
}
