//! `scrimp run`, `eval` and `bench`: refusals, which need no model, and answers, which need real ones.
//!
//! For the answers, SCRIMP_TEST_MODELS names a directory with the GGUF files; without it those tests say that they skip.

use assert_cmd::Command;
use scrimp_testkit::real_model;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA: &str = "gemma-3-270m-Q4_K_M.gguf";

fn scrimp(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("scrimp").unwrap();
    command.args(args).env_remove("SCRIMP_TIER");
    command
}

/// Exit status and stderr of a call that must fail, with nothing on stdout.
fn refused(mut command: Command) -> String {
    let out = command.output().unwrap();
    assert!(out.stdout.is_empty(), "{}", String::from_utf8_lossy(&out.stdout));
    let status = out.status.code().expect("not killed");
    assert_ne!(status, 0);
    format!("{status}\n{}", String::from_utf8(out.stderr).unwrap())
}

#[test]
fn prompts_that_cannot_be_answered() {
    insta::assert_snapshot!(refused(scrimp(&["run", "none.gguf", ""])), @"
    1
    error: the prompt is empty
    hint: give a PROMPT or pipe one into stdin
    ");
    let from_stdin = |bytes: &[u8]| {
        let mut command = scrimp(&["run", "none.gguf"]);
        command.write_stdin(bytes);
        refused(command)
    };
    insta::assert_snapshot!(from_stdin(b""), @"
    1
    error: the prompt is empty
    hint: give a PROMPT or pipe one into stdin
    ");
    insta::assert_snapshot!(from_stdin(b"\n"), @"
    1
    error: the prompt is empty
    hint: give a PROMPT or pipe one into stdin
    ");
    insta::assert_snapshot!(from_stdin(b"caf\xe9"), @"
    1
    error: the prompt on standard input is not UTF-8 text: invalid byte at offset 3
    hint: convert it, for example with iconv
    ");
    insta::assert_snapshot!(refused(scrimp(&["run", "./none.gguf", "Hi"])), @"
    1
    error: ./none.gguf: no such file or directory
    hint: check the path; `scrimp models` lists the models that have a short name
    ");
}

#[test]
fn options_that_make_no_sense() {
    insta::assert_snapshot!(refused(scrimp(&["run", "none.gguf", "Hi", "--kv-format", "kivi"])), @"
    2
    error: invalid value 'kivi' for '--kv-format <FORMAT>'
      [possible values: f32, f16, bf16, int8, int4]

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(refused(scrimp(&["bench", "decode", "none.gguf", "--prompt", "0"])), @"
    2
    error: invalid value '0' for '--prompt <N>': number would be zero for non-zero type

    For more information, try '--help'.
    ");
}

#[test]
fn texts_that_cannot_be_scored() {
    let dir = tempfile::tempdir().unwrap();
    let eval = |name: &str, more: &[&str]| {
        let mut command = scrimp(&["eval", "ppl", "none.gguf", "--text", name]);
        command.args(more).current_dir(dir.path());
        refused(command)
    };
    fs::write(dir.path().join("latin1.txt"), b"caf\xe9").unwrap();
    insta::assert_snapshot!(eval("latin1.txt", &[]), @"
    1
    error: latin1.txt: byte 3 does not belong to UTF-8 text
    hint: convert the text to UTF-8, for example with iconv
    ");
    insta::assert_snapshot!(eval("none.txt", &[]), @"
    1
    error: none.txt: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(eval("latin1.txt", &["--context", "1"]), @"
    2
    error: invalid value '1' for '--context <N>': must be a whole number, 2 or more

    For more information, try '--help'.
    ");
}

/// Path of a real model, if there is one.
fn model(name: &str) -> Option<String> {
    real_model(name).map(|path| path.into_os_string().into_string().unwrap())
}

fn json(args: &[&str]) -> serde_json::Map<String, serde_json::Value> {
    // One thread: several tests run at a time, and two pools on the same cores wait for each other.
    let out = scrimp(args).args(["--json", "--threads", "1"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let stdout = String::from_utf8(out.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn keys(object: &serde_json::Map<String, serde_json::Value>) -> Vec<&str> {
    object.keys().map(String::as_str).collect()
}

#[test]
fn an_answer_as_json_and_as_text() {
    let Some(path) = model(SMOLLM2) else { return };
    let args = ["run", &path, "The capital of France is", "--raw", "--max-tokens", "5"];
    let answer = json(&args);
    let fields = [
        "text",
        "prompt_tokens",
        "cached_tokens",
        "generated_tokens",
        "first_token_s",
        "prefill_tok_s",
        "decode_tok_s",
        "kv_bytes",
        "kv_bytes_peak",
        "kv_tokens",
        "drafted_tokens",
        "accepted_tokens",
        "draft_kv_bytes",
        "peak_rss_bytes",
    ];
    assert_eq!(keys(&answer), fields);
    let text = answer["text"].as_str().unwrap();
    assert!(text.starts_with(" Paris.\n"), "{text:?}");
    assert_eq!((answer["prompt_tokens"].as_u64(), answer["generated_tokens"].as_u64()), (Some(5), Some(5)));
    // The last token is printed, not computed.
    assert_eq!(answer["kv_tokens"], 9);
    // Drafts are off.
    assert_eq!((&answer["drafted_tokens"], &answer["accepted_tokens"]), (&0.into(), &0.into()));
    let zero = ["drafted_tokens", "accepted_tokens", "draft_kv_bytes"];
    for field in fields[3..].iter().filter(|field| !zero.contains(field)) {
        assert!(answer[*field].as_f64().unwrap() > 0.0, "{field}");
    }
    let out = scrimp(&args).output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim_end(), text.trim_end());
    assert!(String::from_utf8(out.stderr).unwrap().contains("tok/s"));
    // The same prompt through a pipe.
    let out = scrimp(&["run", &path, "-", "--raw", "--max-tokens", "5"])
        .write_stdin("The capital of France is\n")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim_end(), text.trim_end());
}

#[test]
fn a_stop_string_is_not_printed() {
    let Some(path) = model(SMOLLM2) else { return };
    let answer =
        json(&["run", &path, "The capital of France is", "--raw", "--max-tokens", "9", "--stop", "aris"]);
    assert_eq!(answer["text"], " P");
}

#[test]
fn a_seed_fixes_a_random_answer() {
    let Some(path) = model(SMOLLM2) else { return };
    let run = |seed: &str| {
        let args =
            ["run", &path, "Tell me a story.", "--max-tokens", "12", "--temperature", "1.2", "--seed", seed];
        json(&args)["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn a_base_model_has_no_chat_template() {
    let Some(path) = model(GEMMA) else { return };
    let message = refused(scrimp(&["run", &path, "Hi"]));
    assert!(message.starts_with("1\nerror: ") && message.contains("--raw"), "{message}");
    assert_eq!(json(&["run", &path, "Hi", "--raw", "--max-tokens", "2"])["generated_tokens"], 2);
}

#[test]
fn a_prompt_longer_than_the_context() {
    let Some(path) = model(SMOLLM2) else { return };
    let mut command = scrimp(&["run", &path, "--raw"]);
    command.write_stdin("word ".repeat(9000));
    let message = refused(command);
    assert!(message.contains("tokens, the model's context is 8192"), "{message}");
}

#[test]
fn ctrl_c_keeps_what_was_generated() {
    let Some(path) = model(SMOLLM2) else { return };
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("scrimp"))
        .args(["run", &path, "Once upon a time,", "--raw", "--stop", "never said", "--threads", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let first = out.fill_buf().unwrap().len();
    assert!(first > 0);
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut out, &mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text.ends_with(b"\n"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("interrupted"));
}

#[test]
fn perplexity_and_divergence() {
    let Some(path) = model(SMOLLM2) else { return };
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &scrimp_llm::builtin_text::TEXT[..4000]).unwrap();
    let text = text.to_str().unwrap();
    let ppl = json(&["eval", "ppl", &path, "--text", text, "--context", "128", "--max-tokens", "512"]);
    assert_eq!(keys(&ppl), ["ppl", "nll", "tokens"]);
    assert_eq!(ppl["tokens"], 4 * 127);
    let value = ppl["ppl"].as_f64().unwrap();
    assert!((10.0..40.0).contains(&value), "{value}");
    assert!((ppl["nll"].as_f64().unwrap().exp() - value).abs() < 1e-6 * value);

    let kl = json(&[
        "eval",
        "kl",
        &path,
        "--against",
        &path,
        "--text",
        text,
        "--context",
        "128",
        "--max-tokens",
        "256",
    ]);
    assert_eq!(keys(&kl), ["kl", "top1_agreement", "ppl", "ppl_reference", "tokens"]);
    assert_eq!((kl["kl"].as_f64(), kl["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
    assert_eq!(kl["ppl"], kl["ppl_reference"]);
    let mut other = scrimp(&["eval", "kl", &path, "--text", text, "--against"]);
    if let Some(gemma) = model(GEMMA) {
        other.arg(gemma);
        assert!(refused(other).contains("the vocabularies differ"));
    }
}

#[test]
fn bench_decode() {
    let Some(path) = model(SMOLLM2) else { return };
    let r = json(&["bench", "decode", &path, "--prompt", "32", "--tokens", "4", "--depth", "40"]);
    let fields =
        ["prefill_tok_s", "decode_tok_s", "accepted_per_step", "kv_bytes", "kv_bytes_peak", "peak_rss_bytes"];
    assert_eq!(keys(&r), fields);
    let positive = |(key, value): (&String, &serde_json::Value)| {
        *key == "accepted_per_step" || value.as_f64() > Some(0.0)
    };
    assert!(r.iter().all(positive), "{r:?}");
    let message = refused(scrimp(&["bench", "decode", &path, "--depth", "9000"]));
    assert!(message.contains("this needs 9064 tokens of context, the model has 8192"), "{message}");
}
