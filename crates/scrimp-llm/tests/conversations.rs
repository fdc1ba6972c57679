//! Prompts of conversations with each family's chat template: nothing vanishes, and nothing is refused.

use std::fs;

use scrimp_llm::{
    Result,
    chat::{ChatTemplate, Conversation, Message},
};
use scrimp_testkit::testdata;
use serde_json::{Value, json};

const TEMPLATES: [&str; 8] =
    ["gemma3", "gemma4", "llama3", "llama3_tools", "mistral", "phi3", "qwen2.5", "smollm2"];

fn template(name: &str) -> ChatTemplate {
    let source = fs::read_to_string(testdata(&format!("chat/{name}.jinja"))).unwrap();
    ChatTemplate::new(&source, "<s>", "</s>").unwrap()
}

/// Templates that refuse what a family's original refuses.
fn strict(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "", "").unwrap()
}

fn prompt(template: &ChatTemplate, messages: Value, tools: Value) -> Result<String> {
    let conversation = Conversation::new(messages.as_array().unwrap())?;
    template.prompt(&conversation.tools(tools.as_array().unwrap().clone()))
}

/// Asserts that the texts occur in this order.
fn in_order(text: &str, parts: &[&str]) {
    let mut at = 0;
    for part in parts {
        let found = text[at..].find(part);
        at += found.unwrap_or_else(|| panic!("{part:?} is missing or early in\n{text}")) + part.len();
    }
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}})
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn developer_messages_are_system_messages() {
    for name in TEMPLATES {
        let with = |role: &str| {
            prompt(
                &template(name),
                json!([{"role": role, "content": "Be BRIEF"}, {"role": "user", "content": "Hi"}]),
                json!([]),
            )
        };
        let text = with("developer").unwrap();
        assert!(text.contains("Be BRIEF"), "{name}: {text}");
        assert_eq!(text, with("system").unwrap(), "{name}");
    }
}

#[test]
fn unknown_roles_are_errors() {
    for name in TEMPLATES {
        for role in ["narrator", "asistant", "System", ""] {
            let e = prompt(
                &template(name),
                json!([{"role": "user", "content": "a"}, {"role": role, "content": "b"}]),
                json!([]),
            );
            let e = e.unwrap_err().to_string();
            assert!(
                e.contains(&format!("messages[1].role is {role:?}"))
                    && e.contains("developer, user, assistant"),
                "{e}"
            );
        }
        assert!(Conversation::new(&[json!({"content": "x"})]).is_err());
    }
    // The same for the messages of the library.
    assert!(Conversation::new(&[Message::new("robot", "x")]).is_err());
}

#[test]
fn system_messages_anywhere_are_kept() {
    for name in TEMPLATES {
        let messages = json!([
            {"role": "system", "content": "FIRST"},
            {"role": "developer", "content": "SECOND"},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "system", "content": "THIRD"},
            {"role": "user", "content": "Go"},
        ]);
        let text = prompt(&template(name), messages, json!([])).unwrap_or_else(|e| panic!("{name}: {e}"));
        for part in ["FIRST", "SECOND", "THIRD", "Hello", "Yes?", "Go"] {
            assert!(text.contains(part), "{name}: {part} is missing in {text}");
        }
    }
    // Some templates refuse system messages.
    let template = strict(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}",
    );
    let text = prompt(
        &template,
        json!([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]),
        json!([]),
    );
    assert_eq!(text.unwrap(), "[user]S\n\nU");
}

#[test]
fn tools_and_system_messages_go_together() {
    for name in TEMPLATES {
        let messages =
            json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add"}]);
        let text = prompt(&template(name), messages, json!([tool("add"), tool("subtract")]));
        let text = text.unwrap_or_else(|e| panic!("{name}: {e}"));
        for part in ["Be brief.", "add", "subtract", "Add"] {
            assert!(text.contains(part), "{name}: {part} is missing in {text}");
        }
    }
}

#[test]
fn calls_and_results_in_the_history_are_kept() {
    let history = json!([
        {"role": "user", "content": "2+3, and 4+5?"},
        {"role": "assistant", "content": null, "tool_calls": [
            call("call_1", "add", "{\"a\": 2, \"b\": 3}"),
            call("call_2", "sum", "{\"c\": 4, \"d\": 55}"),
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "RESULT1"},
        {"role": "tool", "tool_call_id": "call_2", "content": "RESULT2"},
        {"role": "assistant", "content": "They are 5 and 9."},
        {"role": "user", "content": "Thanks"},
    ]);
    for name in TEMPLATES {
        for tools in [json!([tool("add"), tool("sum")]), json!([])] {
            let text =
                prompt(&template(name), history.clone(), tools).unwrap_or_else(|e| panic!("{name}: {e}"));
            in_order(&text, &["2+3, and 4+5?", "add", "2", "3", "RESULT1"]);
            in_order(&text, &["sum", "4", "55", "RESULT2", "They are 5 and 9.", "Thanks"]);
        }
    }
    // The last message can be a result.
    for name in TEMPLATES {
        let short = json!([history[0], history[1], history[2], history[3]]);
        let text =
            prompt(&template(name), short, json!([tool("add")])).unwrap_or_else(|e| panic!("{name}: {e}"));
        in_order(&text, &["RESULT1", "RESULT2"]);
    }
}

#[test]
fn templates_with_demands_get_calls_in_their_form() {
    // Llama 3.1: one call per message, and `tool_calls` only where there are calls.
    let llama = strict(
        "{% for m in messages %}{% if not (m.role == 'tool' or 'tool_calls' in m) %}[{{ m.role }}]{{ m.content }}{% elif 'tool_calls' in m %}{% if not m.tool_calls|length == 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}[call]{{ m.tool_calls[0].function.name }}{{ m.tool_calls[0].function.arguments | tojson }}{% else %}[result]{{ m.content }}{% endif %}{% endfor %}",
    );
    let history = json!([
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call("c1", "f", "{\"a\": 1}"), call("c2", "g", "{}")]},
        {"role": "tool", "tool_call_id": "c2", "content": "G"},
        {"role": "tool", "tool_call_id": "c1", "content": "F"},
    ]);
    let text = prompt(&llama, history, json!([])).unwrap();
    assert_eq!(text, "[user]U[assistant]Wait.[call]f{\"a\": 1}[result]F[call]g{}[result]G");
    for none in [json!(null), json!([])] {
        let history = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "ok", "tool_calls": none},
            {"role": "user", "content": "b", "tool_calls": none},
        ]);
        assert_eq!(prompt(&llama, history, json!([])).unwrap(), "[user]a[assistant]ok[user]b");
    }
    // Mistral: identifiers of nine letters and digits.
    let mistral = strict(
        "{% for m in messages %}{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{% if c.id|length != 9 %}{{ raise_exception('ids') }}{% endif %}[{{ c.id }}]{{ c.function.name }}{{ c.function.arguments|tojson }}{% endfor %}{% elif m.role == 'tool' %}{% if m.tool_call_id|length != 9 %}{{ raise_exception('ids') }}{% endif %}[{{ m.tool_call_id }}]{{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    );
    let history = json!([
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "", "tool_calls": [call("call_0123456789abcdef", "f", "{}")]},
        {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "F"},
    ]);
    let text = prompt(&mistral, history, json!([])).unwrap();
    let id = &text[2..11];
    assert_eq!(text, format!("U[{id}]f{{}}[{id}]F"));
}

#[test]
fn older_forms_of_calls_are_kept() {
    for name in TEMPLATES {
        let history = json!([
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": null, "function_call": {"name": "ffff", "arguments": "{\"a\": 17}"}},
            {"role": "function", "name": "ffff", "content": "RESULT"},
        ]);
        let text = prompt(&template(name), history, json!([])).unwrap_or_else(|e| panic!("{name}: {e}"));
        in_order(&text, &["ffff", "17", "RESULT"]);
    }
}

#[test]
fn the_assistants_last_message_is_continued() {
    for name in TEMPLATES {
        let user = json!({"role": "user", "content": "Name a color."});
        for begun in ["The color is", "```python\n", " x"] {
            let messages = json!([user, {"role": "assistant", "content": begun}]);
            let text = prompt(&template(name), messages, json!([])).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(text.ends_with(begun), "{name}: {text:?}");
            // Beside the beginning of the answer, and white space before it, it is the prompt for a new answer.
            let new = prompt(&template(name), json!([user]), json!([])).unwrap();
            // Gemma 4's prompt of a new answer ends with empty reasoning.
            let new = new.trim_end_matches("<|channel>thought\n<channel|>");
            assert_eq!(text[..text.len() - begun.len()].trim_end(), new.trim_end(), "{name}");
        }
        let empty = json!([user, {"role": "assistant", "content": ""}]);
        let new = prompt(&template(name), json!([user]), json!([])).unwrap();
        assert_eq!(prompt(&template(name), empty, json!([])).unwrap(), new, "{name}");
        let messages = [user, json!({"role": "assistant", "content": "Blue"})];
        let conversation = Conversation::new(&messages).unwrap().begin_answer();
        assert!(!template(name).prompt(&conversation).unwrap().ends_with("Blue"), "{name}");
    }
}

#[test]
fn one_message_is_rendered_as_before() {
    for name in TEMPLATES {
        let messages = [Message::new("user", "Hello")];
        let plain = template(name).render(&messages, true, &serde_json::Map::new()).unwrap();
        assert_eq!(template(name).prompt(&Conversation::new(&messages).unwrap()).unwrap(), plain, "{name}");
    }
}
