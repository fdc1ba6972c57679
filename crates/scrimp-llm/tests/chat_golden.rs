//! Chat templates against Jinja2's renderings (`testdata/chat/make.py`), and templates that mean harm.

use std::{
    fs,
    time::{Duration, Instant},
};

use scrimp_llm::chat::{ChatTemplate, Message, chat_template_from_hf_dir};
use scrimp_testkit::testdata;
use serde_json::{Map, Value};

fn hello() -> Vec<Message> {
    vec![Message::new("user", "Hello")]
}

#[test]
fn as_jinja2_renders_them() {
    let dir = testdata("chat");
    let golden: Value = serde_json::from_slice(&fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let source = fs::read_to_string(dir.join(format!("{}.jinja", text("template")))).unwrap();
        let template = ChatTemplate::new(&source, text("bos"), text("eos")).unwrap();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let extra = case["extra"].as_object().unwrap();
        let got = template.render(&messages, case["add_generation_prompt"].as_bool().unwrap(), extra);
        let as_wanted = match (&got, case.get("error")) {
            (Ok(got), None) => got == text("text"),
            (Err(e), Some(error)) => e.to_string().ends_with(error.as_str().unwrap()),
            _ => false,
        };
        if !as_wanted {
            wrong.push(format!("{} / {}:\n{got:?}\n{:?}", text("template"), text("talk"), case.get("text")));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn extra_variables_come_first() {
    let template = ChatTemplate::new("{{ bos_token }}{{ eos_token }}{{ mood }}", "B", "E").unwrap();
    let mut extra = Map::new();
    assert_eq!(template.render::<Message>(&[], false, &extra).unwrap(), "BE");
    extra.insert("bos_token".into(), "b".into());
    extra.insert("mood".into(), "!".into());
    assert_eq!(template.render::<Message>(&[], false, &extra).unwrap(), "bE!");
}

#[test]
fn today() {
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", "", "").unwrap();
    let date = template.render::<Message>(&[], false, &Map::new()).unwrap();
    assert_eq!((date.len(), &date[..2]), (10, "20"));
}

#[test]
fn errors_say_what_and_where() {
    let e = ChatTemplate::new("a\n{% for %}", "", "").unwrap_err();
    assert!(e.to_string().contains("not valid (line 2)"), "{e}");
    assert!(e.hint().unwrap().as_str().contains("`raw`"));
    let render = |source: &str| {
        ChatTemplate::new(source, "", "")
            .unwrap()
            .render(&hello(), true, &Map::new())
            .unwrap_err()
            .to_string()
    };
    assert!(
        render("{{ raise_exception('no system role') }}").ends_with("refuses these messages: no system role")
    );
    assert!(render("\n\n{{ messages.x.y }}").contains("(line 3)"));
    assert!(render("{{ no_such() }}").contains("no_such"));
}

/// Each must fail, and soon; most would otherwise not end, or fill the memory.
#[test]
fn harmful_templates_end_in_an_error() {
    let grow =
        |statement: &str| format!("{{% set x = 'aaaaaaaaaaaaaaaa' %}}{}{{{{ x }}}}", statement.repeat(60));
    let attacks = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for a in range(99999) %}{{ a * 1000 }}{% for b in range(99999) %}x{% endfor %}{% endfor %}".to_owned(),
        "{{ range(1000000000000) | list | length }}".to_owned(),
        "{{ 'a' * 10000000000 }}".to_owned(),
        "{{ ['a'] * 10000000000 }}".to_owned(),
        "{{ 9 ** 9999999 }}".to_owned(),
        "{{ '%9999999999d' | format(1) }}".to_owned(),
        "{{ 'x'.ljust(9999999999) }}".to_owned(),
        "{{ 'x' | center(9999999999) }}".to_owned(),
        grow("{% set x = x ~ x %}"),
        grow("{% set x = x + x %}"),
        grow("{% set x = x | replace('a', x) %}"),
        grow("{% set x = x.replace('a', x) %}"),
        grow("{% set x = [x, x] | join('') %}"),
        grow("{% set x %}{{ x }}{{ x }}{% endset %}"),
        grow("{% set x = x | tojson | tojson | tojson %}"),
        "{% set x = [1] %}".to_owned() + &"{% set x = x + x %}".repeat(30) + "{% for y in x %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".to_owned(),
        "{% for m in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(2000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}".to_owned(),
        "{% include '/etc/passwd' %}".to_owned(),
        "{% extends '/etc/passwd' %}".to_owned(),
        "{% import 'os' as os %}{{ os.x() }}".to_owned(),
        "{% from 'chat' import x %}{{ x() }}".to_owned(),
        "{% include 'chat' %}".to_owned(),
        "{{ messages.__class__.__mro__ }}".to_owned(),
        "{{ ''.__class__.__base__.__subclasses__() }}".to_owned(),
        "(".repeat(3) + "{{ " + &"(".repeat(100_000) + "1" + &")".repeat(100_000) + " }}",
        "{{ ".to_owned() + &"[".repeat(50_000) + &"]".repeat(50_000) + " }}",
        "{{ ".to_owned() + &"not ".repeat(30_000) + "no() }}",
        "{{ ".to_owned() + &"not ".repeat(7_990) + "no() }}",
        "{{ ".to_owned() + &"-".repeat(7_990) + "no() }}",
        "{{ no()".to_owned() + &"+a".repeat(7_990) + " }}",
        "{{ no()".to_owned() + &" if 1".repeat(20_000) + " }}",
        "{% if no() %}".to_owned() + &"{% elif a %}".repeat(3_000) + "{% endif %}",
        "{{ ".to_owned() + &"-".repeat(100_000) + "'a' }}",
        "{{ 1".to_owned() + &"+1".repeat(60_000) + "+'a' }}",
        "{{ 1".to_owned() + &" if 1 else 1".repeat(10_000) + " }}{{ no() }}",
        "{{ a".to_owned() + &"[0".repeat(60_000),
        "{{ ".to_owned() + &"a.".repeat(60_000) + "a }}",
        "{% if 1 %}".repeat(5_000) + &"{% endif %}".repeat(5_000) + "{{ no() }}",
        "{% for x in [1] %}".repeat(7_000),
        "{{ x".to_owned() + &"|upper".repeat(20_000) + "(1, 2) }}",
        " ".repeat(2 << 20),
        "{%".repeat(60_000),
        "{#".repeat(60_000),
    ];
    let mut bad = Vec::new();
    for attack in attacks {
        let name: String = attack.chars().take(100).collect();
        eprintln!("{name}"); // a crash would not say which it was
        let start = Instant::now();
        let done = ChatTemplate::new(&attack, "", "").and_then(|t| t.render(&hello(), true, &Map::new()));
        let took = start.elapsed();
        match done {
            Ok(text) => bad.push(format!("{name}: rendered {} bytes", text.len())),
            // Without limits they would take hours; a loaded machine may need seconds.
            Err(_) if took > Duration::from_secs(600) => bad.push(format!("{name}: took {took:?}")),
            Err(e) => assert!(e.to_string().len() < 1000, "{name}: {e}"),
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// The budget grows with the messages; it must not suffice to overflow the stack.
#[test]
fn nested_values_are_printed_and_freed() {
    let long = [Message::new("user", "x".repeat(6 << 20))];
    for depth in [40_000, 90_000, 99_999] {
        for end in
            ["", "{{ ns.x | length }}", "{{ ns.x }}", "{{ ns.x | string | length }}", "{{ ns.x == ns.x }}"]
        {
            let source = format!(
                "{{% set ns = namespace(x=[]) %}}{{% for i in range({depth}) %}}{{% set ns.x = [ns.x] %}}{{% endfor %}}{end}"
            );
            let template = ChatTemplate::new(&source, "", "").unwrap();
            let done = template.render(&long, true, &Map::new());
            assert!(done.is_ok(), "{depth} {end}: {done:?}");
        }
    }
}

#[test]
fn long_conversations_are_within_the_budget() {
    let dir = testdata("chat");
    for name in ["qwen2.5", "llama3_tools", "gemma3", "mistral"] {
        let source = fs::read_to_string(dir.join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, "<s>", "</s>").unwrap();
        let word = "A long message, again and again. ".repeat(100);
        let messages: Vec<Message> = (0..1001)
            .map(|i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, word.as_str()))
            .collect();
        let text = template.render(&messages, true, &Map::new()).unwrap();
        assert!(text.len() > 1001 * (word.len() - 1), "{name}");
    }
}

#[test]
fn hugging_face_directories() {
    let template = chat_template_from_hf_dir(&testdata("tokenizer/tiny_bytelevel")).unwrap().unwrap();
    assert_eq!(template.render(&hello(), true, &Map::new()).unwrap(), "user: Hello<|im_end|>");
    assert!(chat_template_from_hf_dir(&testdata("tokenizer/tiny_sentencepiece")).unwrap().is_none());

    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let render = || {
        chat_template_from_hf_dir(dir.path())
            .map(|t| t.unwrap().render::<Message>(&[], true, &Map::new()).unwrap())
    };
    assert!(chat_template_from_hf_dir(dir.path()).unwrap().is_none());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": null, "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d{{ bos_token }}"}]}"#,
    );
    write("special_tokens_map.json", r#"{"bos_token": {"content": "<s>"}}"#);
    assert_eq!(render().unwrap(), "d<s>");
    write("chat_template.jinja", "file");
    assert_eq!(render().unwrap(), "file");
    write("tokenizer_config.json", "{");
    assert!(render().unwrap_err().to_string().contains("tokenizer_config.json"));
}
