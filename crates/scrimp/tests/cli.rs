//! Output and exit status of the command: help, errors, JSON.
#![cfg(unix)]

use assert_cmd::Command;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// The command in an isolated environment: no network, an empty cache.
fn scrimp(cache: &TempDir) -> Command {
    let mut command = Command::cargo_bin("scrimp").unwrap();
    command
        .env("SCRIMP_CACHE", cache.path())
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .env("SCRIMP_PIP", "/nowhere/pip")
        .env_remove("SCRIMP_TIER")
        .env_remove("HF_TOKEN")
        .env("COLUMNS", "100")
        .timeout(Duration::from_secs(20));
    command
}

fn run(args: &[&str]) -> (Output, TempDir) {
    let cache = TempDir::new().unwrap();
    let output = scrimp(&cache).args(args).output().unwrap();
    (output, cache)
}

/// Exit status and both streams, without paths and versions.
fn shown((output, cache): &(Output, TempDir)) -> String {
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes)
            .replace(&cache.path().display().to_string(), "CACHE")
            .replace(env!("CARGO_PKG_VERSION"), "VERSION")
    };
    let status = output.status.code().unwrap_or(-1);
    format!("status {status}\n--- stdout\n{}--- stderr\n{}", text(&output.stdout), text(&output.stderr))
}

fn lines_of_json(output: &Output) -> Vec<serde_json::Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

#[test]
fn help_of_every_verb() {
    let verbs: [&[&str]; 33] = [
        &[],
        &["run"],
        &["pull"],
        &["models"],
        &["inspect"],
        &["embed"],
        &["eval", "ppl"],
        &["eval", "kl"],
        &["eval", "kv"],
        &["compress"],
        &["fit"],
        &["bench"],
        &["bench", "decode"],
        &["bench", "linear"],
        &["eval", "needle"],
        &["eval", "longbench"],
        &["eval", "ruler"],
        &["report"],
        &["report", "kv"],
        &["bench", "embedding"],
        &["serve"],
        &["bench", "serve"],
        &["doctor"],
        &["completions"],
        &["eval"],
        &["rec"],
        &["rec", "generate"],
        &["rec", "prepare"],
        &["rec", "train"],
        &["rec", "eval"],
        &["rec", "compress"],
        &["rec", "score"],
        &["rec", "inspect"],
    ];
    for verb in verbs {
        let result = run(&[verb, &["--help"]].concat());
        assert_eq!(result.0.status.code(), Some(0));
        let short = run(&[verb, &["-h"]].concat());
        assert!(String::from_utf8_lossy(&short.0.stdout).contains("Examples:\n  "), "{verb:?}");
        insta::assert_snapshot!(format!("help-{}", [&["scrimp"], verb].concat().join("-")), shown(&short));
    }
}

#[test]
fn without_arguments_help_is_shown() {
    let (output, _cache) = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: scrimp"));
}

#[test]
fn wrong_usage_is_status_2() {
    let cases: [(&str, &[&str]); 8] = [
        ("unknown-verb", &["rum", "smollm2"]),
        ("missing-model", &["pull"]),
        ("bad-temperature", &["run", "smollm2", "--temperature=-1", "hi"]),
        ("bad-top-p", &["run", "smollm2", "--top-p", "1.5", "hi"]),
        ("zero-threads", &["--threads", "0", "models"]),
        ("bench-needs-a-model", &["bench", "decode"]),
        ("bench-linear-sparsity", &["bench", "linear", "--sparsity", "1"]),
        ("bench-linear-format", &["bench", "linear", "--formats", "bf16,int5"]),
    ];
    for (name, args) in cases {
        let result = run(args);
        assert_eq!(result.0.status.code(), Some(2), "{name}");
        insta::assert_snapshot!(format!("usage-{name}"), shown(&result));
    }
}

#[test]
fn bench_embedding_prints_a_line_per_encoder() {
    let small = ["--rows-full", "2000", "--dim", "64", "--batch", "64", "--features", "3"];
    let (output, _) = run(&[&["bench", "embedding", "--json"][..], &small].concat());
    assert!(output.status.success());
    let lines = lines_of_json(&output);
    assert_eq!(lines[0]["encoder"], "full");
    assert_eq!(lines[0]["bytes"], 2000 * 64 * 4);
    assert_eq!(lines[0]["speedup_vs_full"], 1.0);
    assert!(lines.iter().any(|l| l["dtype"] == "int8" && l["encoder"] == "memrec k=4"));
    for line in &lines {
        assert!(
            line["ns_per_lookup"].as_f64().unwrap() > 0.0 && line["bytes"].as_u64().unwrap() <= 33_000_000
        );
    }
    let (output, _) = run(&["bench", "embedding", "--dim", "100", "--rows-full", "10"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn bench_linear_prints_a_line_per_format() {
    let formats = "sparse-int8,f32,bf16";
    let args = [
        "bench",
        "linear",
        "--rows",
        "4000",
        "--cols",
        "3000",
        "--batch",
        "2",
        "--formats",
        formats,
        "--json",
    ];
    let (output, _) = run(&args);
    assert!(output.status.success());
    let lines = lines_of_json(&output);
    let names: Vec<_> = lines.iter().map(|l| l["format"].as_str().unwrap()).collect();
    assert_eq!(names, formats.split(',').collect::<Vec<_>>());
    for line in &lines {
        let keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["format", "tier", "us", "gb_per_s", "bytes", "speedup_vs_dense_bf16"]);
        let number = |key: &str| line[key].as_f64().unwrap();
        assert!((number("bytes") / number("us") / 1e3 / number("gb_per_s") - 1.0).abs() < 1e-3);
    }
    assert_eq!(lines[2]["speedup_vs_dense_bf16"], 1.0);
}

#[test]
fn failures_are_status_1_with_a_hint() {
    let cases: [(&str, &[&str]); 7] = [
        ("unknown-alias", &["pull", "smolm2"]),
        ("unknown-alias-json", &["pull", "smolm2", "--json"]),
        ("missing-file", &["inspect", "./none.gguf"]),
        ("looks-like-a-repository", &["inspect", "org/repo"]),
        ("hf-without-network", &["pull", "hf:org/repo:model.gguf"]),
        ("alias-without-network", &["pull", "smollm2"]),
        ("bad-pypi", &["pull", "pypi:--index-url=evil"]),
    ];
    for (name, args) in cases {
        let result = run(args);
        assert_eq!(result.0.status.code(), Some(1), "{name}");
        assert!(result.0.stdout.is_empty(), "{name}");
        insta::assert_snapshot!(format!("error-{name}"), shown(&result));
    }
}

#[test]
fn files_that_are_no_models_are_refused() {
    let cache = TempDir::new().unwrap();
    let file = cache.path().join("note.gguf");
    for bytes in
        [&b""[..], b"hello world, this is no model at all", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        fs::write(&file, bytes).unwrap();
        let output = scrimp(&cache).arg("inspect").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.starts_with("error: ") && said.contains("note.gguf") && !said.contains("panicked"),
            "{said}"
        );
    }
}

#[test]
fn an_unwritable_cache_is_one_error() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let output = scrimp(&dir)
        .env("SCRIMP_CACHE", dir.path().join("file/cache"))
        .args(["pull", "smollm2"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cannot be written") && said.contains("hint: set SCRIMP_CACHE"), "{said}");
}

#[test]
fn models_as_json_lines() {
    let (output, _cache) = run(&["models", "--json"]);
    let rows = lines_of_json(&output);
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(row["cached"], false);
        assert!(row["bytes"].as_u64().unwrap() > 90_000_000);
    }
}

#[test]
fn models_as_a_table() {
    insta::assert_snapshot!("models", shown(&run(&["models"])));
}

#[test]
fn doctor_knows_the_machine() {
    let (output, _cache) = run(&["doctor", "--json", "--threads", "1"]);
    assert!(output.status.success());
    let rows = lines_of_json(&output);
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(row["threads"], 1);
    assert!(row["supported_tiers"].as_array().unwrap().contains(&row["tier"]));
    assert!(row["read_gb_per_s"].as_f64().unwrap() > 0.1);
    assert_eq!(row["models"].as_array().unwrap().len(), 4);
}

#[test]
fn an_unknown_level_is_an_error_that_names_the_known_ones() {
    let cache = TempDir::new().unwrap();
    let output = scrimp(&cache).env("SCRIMP_TIER", "avx3").arg("doctor").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("avx3") && said.contains("scalar"), "{said}");
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (output, _cache) = run(&["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("inspect") && script.contains("kv-format"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_ends_the_command_silently() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn ctrl_c_while_downloading_is_status_130() {
    let dir = TempDir::new().unwrap();
    let (pip, begun) = (dir.path().join("pip"), dir.path().join("begun"));
    fs::write(&pip, format!("#!/bin/sh\ntouch {}\nexec sleep 20\n", begun.display())).unwrap();
    fs::set_permissions(&pip, fs::Permissions::from_mode(0o755)).unwrap();
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_scrimp"))
        .args(["pull", "pypi:anything==1"])
        .env("SCRIMP_CACHE", dir.path().join("cache"))
        .env("SCRIMP_PIP", &pip)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..200 {
        if begun.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.is_empty());
}
