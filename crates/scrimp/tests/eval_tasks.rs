//! `scrimp eval needle`, `longbench` and `ruler` with a tiny random model: errors, results, and resuming a killed run.

use assert_cmd::Command;
use scrimp_testkit::copy_tiny_model;
use serde_json::Value;
use std::{fs, path::PathBuf};
use tempfile::TempDir;

/// A directory with the tiny model, with a longer context.
fn folder() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("model");
    copy_tiny_model("qwen2", &model, |config| config["max_position_embeddings"] = 4096.into());
    (dir, model)
}

fn scrimp(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("scrimp").unwrap();
    command.args(args).env_remove("SCRIMP_TIER");
    command
}

fn results(args: &[&str]) -> Vec<Value> {
    let out = scrimp(args).arg("--json").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn error(args: &[&str]) -> String {
    let out = scrimp(args).output().unwrap();
    assert!(!out.status.success() && out.stdout.is_empty());
    String::from_utf8(out.stderr).unwrap()
}

const NIAH: &str = r#"{"input":"Listen.\nOne of the special magic words for red is: owl.\nOne of the special magic words for blue is: cat.\nWhat is the special magic word for red mentioned in the text? The special magic word for red mentioned in the text is","outputs":["owl"]}"#;

#[test]
fn ruler_compares_settings_and_goes_on_where_it_was_killed() {
    let (dir, model) = folder();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("niah_single_1.jsonl"), format!("{NIAH}\n{NIAH}\n")).unwrap();
    fs::write(
        path("settings"),
        "full\n--kv-policy snapkv --kv-budget 0.5\n--kv-policy h2o --kv-budget 0.5 --kvcrush 0.5\n\
         --kv-format int8\n",
    )
    .unwrap();
    let (model, data, settings, state) =
        (model.to_str().unwrap().to_owned(), path("niah_single_1.jsonl"), path("settings"), path("state"));
    let args = [
        "eval",
        "ruler",
        &model,
        "--data",
        &data,
        "--compare",
        &settings,
        "--state",
        &state,
        "--threads",
        "1",
    ];
    let first = results(&args);
    let names: Vec<&str> = first.iter().map(|r| r["setting"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["full", "snapkv 0.5"]);
    assert!(names[2].starts_with("h2o 0.5 kvcrush 0.5 order ") && names[3] == "full int8", "{names:?}");
    for result in &first {
        assert_eq!(
            (&result["task"], &result["metric"]),
            (&"niah_single_1".into(), &"string_match_all".into())
        );
        assert_eq!((&result["samples"], &result["score"]), (&2.into(), &0.0.into()));
    }
    let share = |result: &Value| result["kv_share"].as_f64().unwrap();
    assert!(share(&first[0]) == 1.0 && first[1..].iter().all(|result| share(result) < 1.0));

    // Two answers are declared right, one line and a half are lost: only what is missing is asked again.
    let lines: Vec<String> = fs::read_to_string(&state).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 1 + 8);
    let right = |line: &str| line.replace("\"score\":0.0", "\"score\":1.0");
    let kept = [&lines[0], &right(&lines[1]), &right(&lines[2]), &lines[3], &lines[4], &lines[5][..20]];
    fs::write(&state, kept.map(|line| format!("{line}\n")).concat().trim_end()).unwrap();
    let scores: Vec<f64> = results(&args).iter().map(|r| r["score"].as_f64().unwrap()).collect();
    assert_eq!(scores, [50.0, 50.0, 0.0, 0.0]);
    assert_eq!(fs::read_to_string(&state).unwrap().lines().count(), 1 + 8);
    // The file is of these results and no others.
    let message = error(&[&args[..], &["--question", "after"]].concat());
    assert!(message.contains("holds other results"), "{message}");
    let after: Vec<Value> = results(&[
        "eval",
        "ruler",
        &model,
        "--data",
        &data,
        "--question",
        "second",
        "--limit",
        "1",
        "--kv-budget",
        "40",
    ]);
    assert_eq!((&after[0]["question"], &after[0]["samples"]), (&"second".into(), &1.into()));
}

#[test]
fn longbench_and_needle_print_what_they_promise() {
    let (dir, model) = folder();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = model.to_str().unwrap();
    fs::write(path("lcc.jsonl"), r#"{"input":"","context":"x = 1\ny","answers":["y = 2"],"dataset":"lcc"}"#)
        .unwrap();
    let got = results(&["eval", "longbench", model, "--data", &path("lcc.jsonl")]);
    assert_eq!((&got[0]["task"], &got[0]["metric"]), (&"lcc".into(), &"edit_similarity".into()));
    assert!((0.0..=100.0).contains(&got[0]["score"].as_f64().unwrap()) && got.len() == 1);

    fs::write(path("hay.txt"), "It rained all day. Nobody was out. ".repeat(30)).unwrap();
    let hay = path("hay.txt");
    let args = ["eval", "needle", model, "--haystack", &hay, "--lengths", "800,1000", "--depths", "0,50,100"];
    let got = results(&args);
    let cells = got[0]["cells"].as_array().unwrap();
    assert_eq!(got[0]["accuracy"], 0.0);
    assert_eq!(cells.len(), 6);
    assert_eq!(cells[4], serde_json::json!({"length": 1000, "depth": 50.0, "correct": false}));
    let text = String::from_utf8(scrimp(&args).output().unwrap().stdout).unwrap();
    assert!(text.contains("at 50") && text.contains("accuracy 0.00"), "{text}");
}

#[test]
fn bad_files_and_options_are_refused_before_a_model_is_looked_for() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("niah_x.jsonl"), format!("{NIAH}\n{{\"input\":\n")).unwrap();
    fs::write(path("niah_empty.jsonl"), "").unwrap();
    fs::write(path("niah_good.jsonl"), NIAH).unwrap();
    fs::write(path("settings"), "--kv-policy none --kv-budget 0.5").unwrap();
    let ruler = |file: &str, more: &[&str]| {
        error(&[&["eval", "ruler", "./none.gguf", "--data", &path(file)], more].concat())
    };
    let message = ruler("niah_x.jsonl", &[]);
    assert!(message.contains("niah_x.jsonl: line 2: ") && message.contains("hint: "), "{message}");
    assert!(ruler("niah_empty.jsonl", &[]).contains("holds no samples"));
    assert!(ruler("niah_none.jsonl", &[]).contains("niah_none.jsonl"));
    assert!(ruler("niah_good.jsonl", &["--limit", "0"]).contains("--limit"));
    assert!(ruler("niah_good.jsonl", &["--compare", &path("settings")]).contains("settings: line 1: "));
    assert!(ruler("niah_good.jsonl", &["--kv-budget", "1.5"]).contains("--kv-budget"));
    assert!(ruler("niah_good.jsonl", &["--kvcrush", "0.5"]).contains("needs --kv-budget"));
    assert!(ruler("niah_good.jsonl", &[]).contains("none.gguf"));
}

#[test]
fn a_report_is_written_and_added_to() {
    let (dir, model) = folder();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, out, task) = (model.to_str().unwrap(), path("out"), path("niah_single_1.jsonl"));
    fs::write(&task, NIAH).unwrap();
    let args = |policies: &'static str| {
        let options = [
            "--policies",
            policies,
            "--budgets",
            "0.5,0.25",
            "--prompt-tokens",
            "200",
            "--score-tokens",
            "8",
        ];
        let seeds = ["--seeds", "2", "--task", &task, "--output", &out];
        [&["report", "kv", model][..], &options, &seeds]
            .concat()
            .iter()
            .map(|s| (*s).to_owned())
            .collect::<Vec<_>>()
    };
    let run = |policies| results(&args(policies).iter().map(String::as_str).collect::<Vec<_>>());
    let got = run("snapkv");
    assert_eq!(got.len(), 2);
    assert_eq!(
        (&got[0]["policy"], &got[0]["budget"], &got[0]["excerpts"]),
        (&"snapkv".into(), &0.5.into(), &2.into())
    );
    assert!(got[0]["kl"].as_f64().unwrap() > 0.0 && got[0]["kl_error"].as_f64().unwrap() > 0.0);
    assert!(got[0]["kv_share"].as_f64().unwrap() > got[1]["kv_share"].as_f64().unwrap());
    let lines = || fs::read_to_string(dir.path().join("out/kv.jsonl")).unwrap().lines().count();
    assert_eq!(lines(), 1 + 2 * 2 * 2);
    // Another policy adds to what is there, and nothing is measured twice.
    assert_eq!(run("snapkv,knorm").len(), 4);
    assert_eq!(lines(), 1 + 2 * 2 * 4);
    let table = fs::read_to_string(dir.path().join("out/kv.md")).unwrap();
    assert!(table.contains("| knorm | ") && table.contains("## niah_single_1 (string_match_all)"), "{table}");
    assert!(table.contains("| snapkv 0.25 kvcrush 0.5 order "), "{table}");
    assert!(fs::read_to_string(dir.path().join("out/kv.svg")).unwrap().contains("knorm + KVCrush"));
    let refused = |options: &[&str]| error(&[&["report", "kv", "./none.gguf"], options].concat());
    assert!(refused(&["--policies", "h3o"]).contains("h3o"));
    assert!(refused(&["--budgets", "0.001"]).contains("--budgets for h2o 0.001"));
    assert!(refused(&["--text", "./none.txt"]).contains("none.txt"));
}
