//! Fuzzing: parsing any JSON neither panics nor returns parameters out of range.

use super::{ApiError, fields::Fields, messages, params::Params, tools::Tools};
use crate::engine::KvOptions;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Valid requests that together have every known field.
fn seeds() -> Vec<Value> {
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
            "user"
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

/// What the handlers do with a body before they need a model.
fn taken(body: &[u8]) -> Result<Params, ApiError> {
    let mut fields = Fields::parse(body)?;
    fields.string("model")?;
    messages::take(&mut fields)?;
    let tools = Tools::take(&mut fields)?;
    fields.object("chat_template_kwargs")?;
    let kv = KvOptions { compression: None, format: "bf16".into() };
    let params = Params::take(&mut fields, &kv, 1)?;
    fields.boolean("logprobs")?;
    super::params::alternatives(&mut fields, "top_logprobs")?;
    fields.finish()?;
    let _ = (tools.list(), tools.parse("<tool_call>{\"name\": \"f\"}</tool_call>"));
    Ok(params)
}

fn check(body: &[u8]) -> Result<(), TestCaseError> {
    match taken(body) {
        Err(e) => {
            prop_assert!(e.status.is_client_error(), "{}", e.status);
            prop_assert!(!e.message.is_empty() && e.message.len() < 4096);
            let shape = e.body();
            prop_assert!(shape["error"]["message"].is_string() && shape["error"]["type"].is_string());
        }
        Ok(p) => {
            let s = &p.sampling;
            let floats = [s.temperature, s.top_p, s.min_p, s.repetition_penalty, s.frequency_penalty];
            prop_assert!(floats.iter().all(|x| x.is_finite()));
            prop_assert!((1..=128).contains(&p.n) && s.temperature >= 0.0 && s.repetition_penalty > 0.0);
            prop_assert!(p.max_tokens != Some(0) && p.logit_bias.iter().all(|(_, x)| x.is_finite()));
        }
    }
    Ok(())
}

#[test]
fn the_seeds_are_good_requests() {
    for seed in seeds() {
        taken(seed.to_string().as_bytes()).unwrap_or_else(|e| panic!("{seed}: {}", e.message));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn values_are_replaced(which in 0usize..3, changes in prop::collection::vec((0usize..60, odd()), 1..4)) {
        let mut body = seeds().swap_remove(which);
        for (at, value) in changes {
            if let Ok(place) = place(&mut body, at) {
                *place = value;
            }
        }
        check(body.to_string().as_bytes())?;
    }

    #[test]
    fn fields_are_added(which in 0usize..3, more in prop::collection::vec((name(), odd()), 1..4)) {
        let mut body = seeds().swap_remove(which);
        body.as_object_mut().expect("an object").extend(more);
        check(body.to_string().as_bytes())?;
    }

    #[test]
    fn bytes_are_damaged(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let mut body = seeds()[which].to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if !whole {
            body.truncate(cut.index(body.len()));
        }
        check(&body)?;
    }

    #[test]
    fn bytes_are_anything(body: Vec<u8>) {
        check(&body)?;
    }
}
