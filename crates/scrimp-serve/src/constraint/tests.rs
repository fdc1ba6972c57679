//! Which JSON a schema allows.

use super::*;
use scrimp_llm::checkpoint::Checkpoint;
use scrimp_testkit::testdata;

fn constraints() -> (Tokenizer, Constraints) {
    let tokenizer = Checkpoint::open(&testdata("tiny/llama")).unwrap().tokenizer().unwrap();
    let constraints = Constraints::new(&tokenizer).unwrap();
    (tokenizer, constraints)
}

/// Whether `constraint` allows the whole `text`, token by token, and then its end.
fn allows(tokenizer: &Tokenizer, constraint: Result<Box<dyn Constraint>>, text: &str) -> bool {
    let mut constraint = constraint.unwrap_or_else(|e| panic!("{text}: {e}"));
    let mut is_complete = false;
    let mut allowed = |token: u32| {
        if is_complete {
            // The grammar has ended before the end token.
            return tokenizer.is_end(token);
        }
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        constraint.mask(&mut logits).unwrap();
        let ok = logits[token as usize] > f32::NEG_INFINITY;
        if ok {
            is_complete = constraint.accept(token).unwrap();
        }
        ok
    };
    let mut tokens = tokenizer.encode(text, false, false).unwrap();
    tokens.push(*tokenizer.ends().first().unwrap());
    tokens.into_iter().all(&mut allowed)
}

/// Asserts which texts `schema` allows.
fn check(schema: Value, strict: bool, yes: &[&str], no: &[&str]) {
    let (tokenizer, constraints) = constraints();
    for text in yes {
        assert!(allows(&tokenizer, constraints.schema(&schema, strict), text), "{schema} must allow {text}");
    }
    for text in no {
        assert!(
            !allows(&tokenizer, constraints.schema(&schema, strict), text),
            "{schema} must not allow {text}"
        );
    }
}

#[test]
fn white_space_is_fixed_and_numbers_end() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "number"}}});
    let digits = |n: usize| "1".repeat(n);
    check(
        schema,
        false,
        &[
            r#"{"a": 5, "b": -0.25e-3}"#,
            r#"{"b": 2}"#,
            "{}",
            &format!("{{\"a\": -{}}}", digits(19)),
            &format!("{{\"b\": {0}.{0}e12}}", digits(19)),
        ],
        &[
            "{ }",
            "{\n}",
            r#"{"a":  5}"#,
            r#"{"a": 5 }"#,
            &format!("{{\"a\": {}}}", digits(20)),
            &format!("{{\"b\": 0.{}}}", digits(20)),
            r#"{"b": 1e123}"#,
        ],
    );
    let (tokenizer, constraints) = constraints();
    for (text, yes) in [("{}", true), (r#"{"x": [1, {"y": null}]}"#, true), ("{ }", false), ("[]", false)] {
        assert_eq!(allows(&tokenizer, constraints.json_object(), text), yes, "{text}");
    }
    // A schema that demands more digits gets them.
    let long = "1".repeat(25);
    check(
        json!({"enum": [serde_json::from_str::<Value>(&format!("\"{long}\"")).unwrap()]}),
        false,
        &[&format!("\"{long}\"")],
        &[],
    );
}

#[test]
fn objects_with_listed_properties_are_closed() {
    let a = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let (yes, invented) = (r#"{"a": 1}"#, r#"{"a": 1, "x": 2}"#);
    check(a.clone(), false, &[yes], &[invented]);
    // Also inside of lists, alternatives and definitions.
    check(json!({"type": "array", "items": a}), false, &[r#"[{"a": 1}]"#], &[r#"[{"a": 1, "x": 2}]"#]);
    check(json!({"$defs": {"A": a}, "$ref": "#/$defs/A"}), false, &[yes], &[invented]);
    check(json!({"anyOf": [a, {"type": "null"}]}), false, &[yes, "null"], &[invented]);
    // A schema may say otherwise.
    let mut open = a.clone();
    open["additionalProperties"] = json!(true);
    check(open.clone(), false, &[yes, invented], &[]);
    check(open, true, &[yes, invented], &[]);
    // Without properties, an object is open unless the schema is strict.
    check(json!({"type": "object"}), false, &["{}", invented], &[]);
    check(json!({"type": "object"}), true, &["{}"], &[invented]);
    check(json!({"type": "object", "unevaluatedProperties": false}), false, &["{}"], &[invented]);
    check(
        json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        true,
        &[invented],
        &[r#"{"a": ""}"#],
    );
}

#[test]
fn the_parts_of_an_object_are_closed_together() {
    let property =
        |name: &str| json!({"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]});
    let both = r#"{"a": 1, "b": 2}"#;
    let invented = r#"{"a": 1, "b": 2, "x": 3}"#;
    check(json!({"allOf": [property("a"), property("b")]}), false, &[both], &[invented, r#"{"a": 1}"#]);
    let mut sibling = property("a");
    sibling["allOf"] = json!([{"$ref": "#/$defs/B"}]);
    sibling["$defs"] = json!({"B": property("b")});
    check(sibling.clone(), false, &[both], &[invented]);
    sibling["$ref"] = json!("#/$defs/B");
    sibling.as_object_mut().unwrap().remove("allOf");
    check(sibling, false, &[both], &[invented]);
    let mut alternatives = property("a");
    alternatives["anyOf"] = json!([property("b"), property("c")]);
    check(
        alternatives.clone(),
        false,
        &[both, r#"{"a": 1, "c": 2}"#],
        &[invented, r#"{"a": 1, "b": 2, "c": 3}"#],
    );
    alternatives["anyOf"] = json!([{"required": ["a"]}, {"required": ["b"]}]);
    alternatives["properties"]["b"] = json!({"type": "integer"});
    check(alternatives, false, &[both, r#"{"a": 1}"#], &[invented]);
    let closed = json!({"type": "object", "properties": {"a": true}, "additionalProperties": false});
    check(json!({"allOf": [closed]}), false, &[r#"{"a": 1}"#], &[both]);
}

#[test]
fn references_are_resolved_where_they_stand() {
    let tree = json!({
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["v", "next"],
    });
    check(
        tree.clone(),
        false,
        &[r#"{"v": 1, "next": {"v": 2, "next": null}}"#],
        &[r#"{"v": 1, "next": {"v": "x"}}"#],
    );
    for (name, reference) in [
        ("A<int>", "#/$defs/A%3Cint%3E"),
        ("A<int>", "#/$defs/A<int>"),
        ("a/b", "#/$defs/a~1b"),
        ("a~b", "#/$defs/a~0b"),
        ("a b", "#/$defs/a%20b"),
        ("%41", "#/$defs/%2541"),
        ("é", "#/$defs/%C3%A9"),
    ] {
        check(json!({"$defs": {name: {"const": 7}}, "$ref": reference}), false, &["7"], &["8"]);
    }
    check(
        json!({"definitions": {"A": {"const": 7}}, "items": {"$ref": "#/definitions/A"}, "type": "array"}),
        false,
        &["[7]"],
        &["[8]"],
    );
    check(json!({"$defs": {"A": {"$anchor": "here", "const": 7}}, "$ref": "#here"}), false, &["7"], &["8"]);
    check(
        json!({"$id": "urn:x", "$defs": {"A": {"const": 7}}, "$ref": "urn:x#/$defs/A"}),
        false,
        &["7"],
        &["8"],
    );
    check(
        json!({"properties": {"x": {"const": 7}, "y": {"$ref": "#/properties/x"}}, "type": "object"}),
        false,
        &[r#"{"y": 7}"#],
        &[r#"{"y": 8}"#],
    );

    let (tokenizer, constraints) = constraints();
    let pair = json!({"$defs": {"A": {"const": 7}}, "type": "object", "properties": {"x": {"$ref": "#/$defs/A"}}, "required": ["x"]});
    let other = json!({"$defs": {"A": {"const": 8}}, "type": "object", "properties": {"x": {"$ref": "#/$defs/A"}}, "required": ["x"]});
    let functions = |names: &[(&'static str, &'static Value)]| {
        names
            .iter()
            .map(|&(name, schema)| Callable { name, parameters: Some(schema), strict: false })
            .collect::<Vec<_>>()
    };
    let (pair, other, tree): (&Value, &Value, &Value) =
        (Box::leak(Box::new(pair)), Box::leak(Box::new(other)), Box::leak(Box::new(tree)));
    let all = functions(&[("f", pair), ("g", other), ("h", tree)]);
    for (text, yes) in [
        (r#"{"name": "f", "arguments": {"x": 7}}"#, true),
        (r#"{"name": "g", "arguments": {"x": 8}}"#, true),
        (r#"{"name": "g", "arguments": {"x": 7}}"#, false),
        (r#"{"name": "h", "arguments": {"v": 1, "next": {"v": 2, "next": null}}}"#, true),
        (r#"{"name": "h", "arguments": {"v": 1, "next": {"name": "h", "arguments": {}}}}"#, false),
    ] {
        assert_eq!(allows(&tokenizer, constraints.call(&all), text), yes, "{text}");
    }
    let e = constraints.schema(&json!({"$ref": "https://example.org/x.json"}), false).unwrap_err();
    assert!(e.to_string().contains("\"https://example.org/x.json\""), "{e}");
}

#[test]
fn chains_of_references_have_any_length() {
    let mut definitions = Map::new();
    for i in 0..1000 {
        definitions.insert(format!("a{i}"), json!({ "$ref": format!("#/$defs/a{}", i + 1) }));
    }
    definitions.insert("a1000".into(), json!({ "const": 7 }));
    let (_, constraints) = constraints();
    // llguidance may refuse it, but nothing overflows.
    let _ = constraints.schema(&json!({ "allOf": [{ "$ref": "#/$defs/a0" }], "$defs": definitions }), false);
    let round = json!({ "allOf": [{ "$ref": "#/$defs/b" }], "$defs": { "b": { "$ref": "#/$defs/c" }, "c": { "$ref": "#/$defs/b" } } });
    let _ = constraints.schema(&round, false);
}

#[test]
fn unknown_formats_are_annotations() {
    for format in [
        "password",
        "path",
        "binary",
        "byte",
        "uri-reference",
        "int64",
        "regex",
        "json-pointer",
        "iri",
        "unknown",
        "my own",
    ] {
        check(json!({"type": "string", "format": format}), false, &["\"\"", "\"any text\""], &["5"]);
    }
    check(json!({"type": "integer", "format": "int32"}), false, &["5"], &["\"\""]);
    for (format, good) in [
        ("date", "2024-02-29"),
        ("date-time", "2024-02-29T10:00:00Z"),
        ("duration", "P1D"),
        ("email", "a@b.org"),
        ("hostname", "b.org"),
        ("ipv4", "127.0.0.1"),
        ("ipv6", "::1"),
        ("time", "10:00:00Z"),
        ("uri", "https://b.org/"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000"),
    ] {
        check(
            json!({"type": "string", "format": format}),
            false,
            &[&format!("\"{good}\"")],
            &["\"\"", "\"?\""],
        );
    }
}

#[test]
fn names_of_properties_are_bounded() {
    // As pydantic writes dict[Kind, int].
    let by_enum = json!({
        "$defs": {"Kind": {"enum": ["x", "y"], "title": "Kind", "type": "string"}},
        "type": "object",
        "properties": {"counts": {
            "type": "object", "propertyNames": {"$ref": "#/$defs/Kind"}, "additionalProperties": {"type": "integer"},
        }},
        "required": ["counts"],
    });
    for strict in [false, true] {
        check(
            by_enum.clone(),
            strict,
            &[r#"{"counts": {"x": 1, "y": 2}}"#, r#"{"counts": {"y": 2}}"#, r#"{"counts": {}}"#],
            &[r#"{"counts": {"z": 1}}"#, r#"{"counts": {"x": ""}}"#],
        );
    }
    check(
        json!({"type": "object", "propertyNames": {"pattern": "^[a-c]{2}$"}, "additionalProperties": {"type": "boolean"}}),
        false,
        &[r#"{"ab": true, "cc": false}"#, "{}"],
        &[r#"{"abc": true}"#, r#"{"ad": true}"#, r#"{"ab": 1}"#],
    );
    check(
        json!({"type": "object", "propertyNames": {"maxLength": 2, "minLength": 1}}),
        false,
        &[r#"{"ab": [1]}"#, r#"{"a": null}"#],
        &[r#"{"": 1}"#, r#"{"abc": 1}"#],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "propertyNames": {"enum": ["a", "c"]}}),
        false,
        &[r#"{"a": 1}"#, "{}"],
        &[r#"{"b": 1}"#, r#"{"a": ""}"#],
    );
    let (_, constraints) = constraints();
    let e = constraints
        .schema(&json!({"type": "object", "propertyNames": {"not": {"const": "a"}}}), false)
        .unwrap_err();
    assert!(e.to_string().contains("propertyNames"), "{e}");
}

#[test]
fn keywords_that_allow_everything_are_accepted() {
    check(
        json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": false}),
        false,
        &["[1, 1]"],
        &[],
    );
    check(
        json!({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}),
        false,
        &[r#"{"a": 1}"#],
        &[r#"{"a": ""}"#],
    );
    // The alternatives of `oneOf` may overlap.
    let variant = |kind: &str| json!({"type": "object", "properties": {"kind": {"const": kind}, kind: {"type": "integer"}}, "required": ["kind", kind]});
    let one_of = json!({
        "$defs": {"A": variant("a"), "B": variant("b")},
        "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "discriminator": {"propertyName": "kind", "mapping": {"a": "#/$defs/A", "b": "#/$defs/B"}},
    });
    check(one_of, false, &[r#"{"kind": "b", "b": 1}"#], &[r#"{"kind": "b", "a": 1}"#, r#"{"kind": "c"}"#]);
    // Clients cannot set options of llguidance.
    check(
        json!({"type": "object", "properties": {"a": {}}, "x-guidance": {"whitespace_flexible": true}}),
        false,
        &["{}"],
        &["{ }"],
    );
    let (_, constraints) = constraints();
    let e =
        constraints.schema(&json!({"type": "array", "uniqueItems": true}), false).unwrap_err().to_string();
    assert!(e.contains("uniqueItems"), "{e}");
}

/// Asserts which texts a grammar allows.
fn check_text(notation: &Notation, yes: &[&str], no: &[&str]) {
    let (tokenizer, constraints) = constraints();
    for text in yes {
        assert!(allows(&tokenizer, constraints.text(notation), text), "{notation:?} must allow {text:?}");
    }
    for text in no {
        assert!(
            !allows(&tokenizer, constraints.text(notation), text),
            "{notation:?} must not allow {text:?}"
        );
    }
}

#[test]
fn choices_and_regular_expressions_match_the_whole_answer() {
    let choice = |texts: &[&str]| Notation::Choice(texts.iter().map(|&text| text.to_owned()).collect());
    check_text(&choice(&["yes", "yes/no", "a.b"]), &["yes", "yes/no", "a.b"], &["ye", "no", "axb", "yesyes"]);
    let regex = |text: &str| Notation::Regex(text.to_owned());
    check_text(&regex("[0-9]{25}"), &[&"7".repeat(25)], &[&"7".repeat(24), "x"]);
    check_text(&regex("a/b|c+"), &["a/b", "ccc"], &["ab", "a/bc"]);
}

#[test]
fn lark_is_that_of_llguidance() {
    let lark = Notation::detect("start: \"<\" inner \">\"\ninner: /[a-z]+/ | start".to_owned());
    check_text(&lark, &["<ab>", "<<a>>"], &["<>", "<a", "<<a>"]);
}

const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::= "[" ws ( value ("," ws value)* )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn gbnf_is_that_of_llama_cpp() {
    let gbnf = |text: &str| Notation::detect(text.to_owned());
    check_text(
        &gbnf(JSON),
        &[r#"{}"#, r#"{"a": [1, -2.5, {"b": "x\n"}], "c": null}"#, "{\"a\":true}", "{ \"é\": \"\\u00e9\" }"],
        &["[]", r#"{"a": }"#, r#"{"a" 1}"#, r#"{"a": "\x"}"#, r#"{"a": 1"#],
    );
    // A lexer with the longest match would read all letters.
    check_text(&gbnf("root ::= [a-z]* \"x\""), &["x", "abx", "xx"], &["ab", ""]);
    check_text(
        &gbnf("root ::= a-b{2,3} . \"\\x41\"\na-b ::= [^a-c] # no letter"),
        &["ddzA", "ddd\nA"],
        &["dzA", "aazA"],
    );
    check_text(
        &gbnf("root ::= s\ns ::= \"(\" s* \")\" |\n  \"-\""),
        &["-", "()", "(()(-))"],
        &["(", "())", ")("],
    );
    check_text(&gbnf("root ::= \"a\" (\"b\" | ) \"c\"?"), &["a", "ab", "abc", "ac"], &["b", "abb"]);
}

#[test]
fn errors_of_grammars_name_their_place() {
    let (_, constraints) = constraints();
    let error = |text: &str| constraints.text(&Notation::Gbnf(text.to_owned())).unwrap_err().to_string();
    for (text, part) in [
        ("", "no rule `root`"),
        ("a ::= \"x\"", "no rule `root`"),
        ("root ::= b", "no rule \"b\""),
        ("root ::= \"x\"\nb := \"y\"", "line 2"),
        ("root ::= \"x", "no end"),
        ("root ::= [a-", "no end"),
        ("root ::= []", "empty"),
        ("root ::= [b-a]", "ends before"),
        ("root ::= (\"x\"", "expected `)`"),
        ("root ::= \"x\"{9999999}", "up to 4096"),
        ("root ::= \"\\q\"", "escape"),
        ("root ::= \"x\" )", "end of the rule"),
    ] {
        let found = error(text);
        assert!(found.contains(part), "{text:?}: {found}");
    }
    let deep = format!("root ::= {}\"x\"{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(error(&deep[..60_000]).contains("deep"));
    assert!(error(&"x".repeat(70_000)).contains("at most"));
    let other = |notation: Notation| constraints.text(&notation).unwrap_err().to_string();
    assert!(other(Notation::Regex("(".into())).contains("grammar cannot be enforced"));
    assert!(other(Notation::Lark("start: (".into())).contains("grammar cannot be enforced"));
}

mod fuzz {
    use super::super::gbnf;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_a_grammar_or_an_error(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "root", " ::= ", "\n", "a", "\"x\"", "\"", "[a-z]", "[", "^", "]", "(", ")", "|", "*", "+", "?", "{2}",
                    "{1,", "}", "\\", "#", ".", " ", "é", "-",
                ]),
                0..24,
            ),
        ) {
            let _ = gbnf::to_lark(&parts.concat());
            let _ = gbnf::to_lark(&format!("root ::= {}\na ::= root?", parts.concat()));
        }
    }
}
