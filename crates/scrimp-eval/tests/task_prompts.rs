//! Prompts of the benchmarks with questions: the prefilled part, the forks, the continuation; and their files.

use scrimp_eval::{
    longbench, needle, ruler,
    tasks::prompt::{Builder, Prompt, Question, Text},
};
use scrimp_llm::{chat::ChatTemplate, tokenizer::Tokenizer};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_hf_dir(&scrimp_testkit::tiny_model("qwen2")).unwrap()
}

const TEMPLATE: &str =
    "{% for m in messages %}<|bos|>{{ m.role }}:{{ m.content | trim }}<|end|>{% endfor %}<|bos|>answer:";

fn builder<'a>(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>, max: usize) -> Builder<'a> {
    Builder { tokenizer, template, max_tokens: max }
}

fn text() -> Text {
    Text {
        context: "The cat sat. The dog ran.".into(),
        question: "\nWho sat?\n".into(),
        other: Some("\nWho ran?\n".into()),
        answer_prefix: " It was".into(),
        other_prefix: " Then".into(),
    }
}

/// Prefilled and kept, prefilled and forgotten, fed afterwards.
fn parts(tokenizer: &Tokenizer, prompt: &Prompt) -> [String; 3] {
    let text = |ids: &[u32]| tokenizer.decode_with(ids, false);
    let (kept, forgotten) = prompt.prefill.split_at(prompt.keep);
    [text(kept), text(forgotten), text(&prompt.question)]
}

#[test]
fn the_question_before_after_and_second() {
    let tokenizer = tokenizer();
    let build = |when| parts(&tokenizer, &builder(&tokenizer, None, 500).build(&text(), when).unwrap());
    let context = "The cat sat. The dog ran.";
    assert_eq!(build(Question::Before), [&format!("{context}\nWho sat?\n It was"), "", ""]);
    // Both parts together are the same tokens as in one piece.
    assert_eq!(build(Question::After), [context, "", "\nWho sat?\n It was"]);
    let [kept, forgotten, question] = build(Question::Second);
    assert_eq!(kept, context);
    assert_eq!((forgotten.as_str(), question.as_str()), ("\nWho ran?\n Then", "\nWho sat?\n It was"));
    let lonely = Text { other: None, ..text() };
    let error = builder(&tokenizer, None, 500).build(&lonely, Question::Second).unwrap_err();
    assert!(error.to_string().contains("no second question"));
}

#[test]
fn chat_models_get_their_template_and_then_the_beginning_of_the_answer() {
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
    let build =
        |when| parts(&tokenizer, &builder(&tokenizer, Some(&template), 500).build(&text(), when).unwrap());
    let (head, tail) = ("<|bos|>user:The cat sat. The dog ran.", "\nWho sat?<|end|><|bos|>answer: It was");
    assert_eq!(build(Question::Before), [&format!("{head}{tail}"), "", ""]);
    assert_eq!(build(Question::After), [head, "", tail]);
    assert_eq!(build(Question::Second), [head, "\nWho ran?<|end|><|bos|>answer: Then", tail]);
}

#[test]
fn of_long_texts_the_middle_is_left_out() {
    let tokenizer = tokenizer();
    let long = Text { context: "abcdefghij".repeat(30), question: " why?".into(), ..Text::default() };
    let ids = tokenizer.encode(&format!("{}{}", long.context, long.question), true, true).unwrap();
    let got = builder(&tokenizer, None, 41).build(&long, Question::Before).unwrap();
    let want = tokenizer.decode(&ids[..20]) + &tokenizer.decode(&ids[ids.len() - 20..]);
    assert_eq!(parts(&tokenizer, &got)[0], want);
    assert!(want.ends_with(" why?") && want.len() < 200);
    // So little that the question goes too.
    let error = builder(&tokenizer, None, 4).build(&long, Question::Before).unwrap_err().to_string();
    assert!(error.contains("no room for the question"), "{error}");
}

fn file(name: &str, lines: &[&str]) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, lines.join("\n")).unwrap();
    (dir, path)
}

#[test]
fn longbench_files() {
    let line = r#"{"input":"Who?","context":"C1","answers":["A"],"all_classes":null,"dataset":"qasper"}"#;
    let second = r#"{"input":"When?","context":"C2","answers":["B"],"all_classes":null,"dataset":"qasper"}"#;
    let (_dir, path) = file("x.jsonl", &[line, second]);
    let suite = longbench::load(&path, None, Question::Second).unwrap();
    assert_eq!(
        (suite.task.as_str(), suite.metric.name(), suite.answer_tokens, suite.chat),
        ("qasper", "f1", 128, true)
    );
    let sample = &suite.samples[0];
    assert!(
        sample.text.context.starts_with("You are given a scientific article")
            && sample.text.context.ends_with("C1")
    );
    assert!(sample.text.question.ends_with("Question: Who?\n\nAnswer:"));
    assert!(sample.text.other.as_ref().unwrap().ends_with("Question: When?\n\nAnswer:"));
    assert_eq!(longbench::load(&path, Some(1), Question::Before).unwrap().samples.len(), 1);

    let error = |name: &str, lines: &[&str], when| {
        let (_dir, path) = file(name, lines);
        longbench::load(&path, None, when).unwrap_err().to_string()
    };
    assert!(error("x.jsonl", &[line, "{\"input\": 1}"], Question::Before).contains("line 2: "));
    assert!(
        error("x.jsonl", &[line, &line.replace("qasper", "trec")], Question::Before)
            .contains("line 2 is not of qasper")
    );
    assert!(error("x.jsonl", &[""], Question::Before).contains("holds no samples"));
    let nameless = line.replace(r#","dataset":"qasper""#, "");
    assert!(error("x.jsonl", &[&nameless], Question::Before).contains("'x' is no task of LongBench"));
    assert!(error("gov_report.jsonl", &[&nameless], Question::Second).contains("no second question"));
    // The file's name names the task where its lines do not; LongBench-E has the same tasks.
    let (_dir, path) = file("trec_e.jsonl", &[&nameless]);
    let suite = longbench::load(&path, None, Question::Before).unwrap();
    assert!(suite.first_line && !suite.chat);
    assert_eq!(suite.score("\nA\nB", &suite.samples[0]), 0.0);
}

#[test]
fn ruler_files() {
    let input = "Memorize it.\\nOne of the special magic numbers for red is: 11.\\nOne of the special magic numbers for blue is: 22.\\n\
                 What is the special magic number for red mentioned in the provided text? \
                 The special magic number for red mentioned in the provided text is";
    let line = format!(r#"{{"index":0,"input":"{input}","outputs":["11"],"length":9}}"#);
    let (_dir, path) = file("niah_multikey_2.jsonl", &[&line]);
    let suite = ruler::load(&path, None, None).unwrap();
    assert_eq!((suite.metric.name(), suite.answer_tokens), ("string_match_all", 128));
    let text = &suite.samples[0].text;
    assert!(text.context.ends_with("for blue is: 22."));
    assert_eq!(text.question, "\nWhat is the special magic number for red mentioned in the provided text?");
    assert_eq!(text.answer_prefix, " The special magic number for red mentioned in the provided text is");
    // The second question is about another needle of the same text.
    assert_eq!(
        text.other.as_deref(),
        Some("\nWhat is the special magic number for blue mentioned in the provided text?")
    );
    assert_eq!(text.other_prefix, " The special magic number for blue mentioned in the provided text is");

    let (_dir, path) = file("data.jsonl", &[&line]);
    assert!(ruler::load(&path, None, None).unwrap_err().to_string().contains("named after a task"));
    assert_eq!(ruler::load(&path, None, Some("niah_single_1")).unwrap().task, "niah_single_1");
    assert!(
        ruler::load(&path, None, Some("vt")).unwrap_err().to_string().contains("line 1: no question of vt")
    );
    let (_dir, path) = file("qa_1.jsonl", &[&line, "{"]);
    assert!(ruler::load(&path, None, None).unwrap_err().to_string().contains("line 2: "));
}

#[test]
fn needles_are_where_they_are_said_to_be() {
    let tokenizer = tokenizer();
    let hay = "It rained all day. The streets were wet, and nobody was out. ".repeat(3);
    let builder = builder(&tokenizer, None, 5000);
    let (suite, cells) = needle::suite(&builder, &hay, &[900, 2000], &[0.0, 0.4, 1.0], 7).unwrap();
    assert_eq!(cells.iter().map(|c| c.length).collect::<Vec<_>>(), [900, 900, 900, 2000, 2000, 2000]);
    for (sample, cell) in suite.samples.iter().zip(&cells) {
        let tokens = builder.build(&sample.text, Question::Before).unwrap().prefill.len();
        assert!(tokens <= cell.length && tokens + 40 > cell.length, "{tokens} of {}", cell.length);
        let context = &sample.text.context;
        let hay = context.split_once("\n\n").unwrap().1;
        let start = hay[..hay.find(&sample.truths[0]).unwrap()].rfind("One of").unwrap();
        // Without needles, which have some 58 characters.
        let plain = |text: &str| text.len().saturating_sub(58 * text.matches("One of").count()) as f64;
        let at = plain(&hay[..start]) / plain(hay);
        assert!((at - cell.depth).abs() < 0.12, "{at}, not {}", cell.depth);
        assert_eq!(context.matches("special magic number").count(), 3, "the introduction and two needles");
        assert_ne!(sample.text.other.as_ref(), Some(&sample.text.question));
        assert!(builder.build(&sample.text, Question::Second).unwrap().keep > 0);
    }
    // Another seed hides other numbers.
    let (other, _) = needle::suite(&builder, &hay, &[900], &[0.0], 8).unwrap();
    assert_ne!(other.samples[0].truths, suite.samples[0].truths);
    let error = |text: &str, length, depth| {
        needle::suite(&builder, text, &[length], &[depth], 0).unwrap_err().to_string()
    };
    assert!(error("", 900, 0.5).contains("haystack is empty"));
    assert!(error(&hay, 900, 1.5).contains("not inside the text"));
    assert!(error(&hay, 50, 0.5).contains("too few for a needle"));
    assert!(error(&hay, 6000, 0.5).contains("more than the 5000"));
}
