//! `scrimp rec` as a process: killed and started again, a full disk, bad rows, data that does not fit the model.
#![cfg(unix)]

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const SCRIMP: &str = env!("CARGO_BIN_EXE_scrimp");

/// A directory with rows to learn from: `data.csv`, two numbers and three categories.
struct Work(TempDir);

impl Work {
    fn new(rows: usize) -> Self {
        let work = Self(TempDir::new().unwrap());
        let rows = rows.to_string();
        let out = work.path("data.csv");
        let made = Command::new(SCRIMP)
            .args(["rec", "generate", "--rows", &rows, "--cardinalities", "400,30,2000", "--numeric", "2"])
            .arg("-o")
            .arg(out)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Training of `data.csv` into `model`; with the checkpoint `checkpoint`, if it is named.
    fn train(&self, model: &str, checkpoint: Option<&Path>) -> Vec<String> {
        let mut args: Vec<String> =
            ["rec", "train", "--epochs", "2", "--batch", "64", "--dim", "8", "--shuffle", "2000"]
                .map(str::to_owned)
                .into();
        args.extend(["--compression", "4", "--threads", "1", "--json"].map(str::to_owned));
        args.push(self.path("data.csv").display().to_string());
        args.extend(["-o".to_owned(), self.path(model).display().to_string()]);
        if let Some(path) = checkpoint {
            let options = ["--checkpoint-steps", "9", "--checkpoint"].map(str::to_owned);
            args.extend(options.into_iter().chain([path.display().to_string()]));
        }
        args
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Starts a training, and kills it when its checkpoint has changed. True if it was killed, not done.
    fn killed_after_a_checkpoint(&self, model: &str, checkpoint: &Path) -> bool {
        let changed = || fs::metadata(checkpoint).and_then(|m| m.modified()).ok();
        let before = changed();
        let mut child = Command::new(SCRIMP)
            .args(self.train(model, Some(checkpoint)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while changed() == before && child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(100), "no checkpoint");
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        child.wait().unwrap().signal() == Some(9)
    }

    /// The model of an interrupted training is, byte for byte, that of the uninterrupted one.
    fn assert_model_is_whole(&self) {
        assert!(
            fs::read(self.path("model")).unwrap() == fs::read(self.path("whole")).unwrap(),
            "not the same"
        );
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn scrimp<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(SCRIMP).args(args).output().unwrap()
}

fn succeeds<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> serde_json::Value {
    let output = scrimp(args);
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The command fails with status 1, an error that contains `error`, and a hint that contains `hint`.
fn fails(output: &Output, error: &str, hint: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: ") && said.contains(error) && !said.contains("panicked"), "{said}");
    assert!(hint.is_empty() || said.contains("hint: ") && said.contains(hint), "{said}");
}

#[test]
fn killed_trainings_go_on_to_the_same_model() {
    let work = Work::new(20_000);
    let uninterrupted = succeeds(work.train("whole", None));
    let checkpoint = work.path("checkpoint");
    let kills = (0..4).filter(|_| work.killed_after_a_checkpoint("model", &checkpoint)).count();
    assert_eq!(kills, 4, "the training is too short for this test");
    assert!(!work.path("model").exists());
    let report = succeeds(work.train("model", Some(&checkpoint)));
    assert_eq!((&report["rows"], &report["auc"]), (&uninterrupted["rows"], &uninterrupted["auc"]));
    work.assert_model_is_whole();
    assert_eq!(work.names(), ["data.csv", "model", "whole"]);
}

#[test]
fn a_file_that_may_not_grow_leaves_the_checkpoint_as_it_was() {
    let work = Work::new(20_000);
    succeeds(work.train("whole", None));
    let checkpoint = work.path("checkpoint");
    assert!(work.killed_after_a_checkpoint("model", &checkpoint));
    let before = fs::read(&checkpoint).unwrap();
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"", SCRIMP])
        .args(work.train("model", Some(&checkpoint)))
        .output()
        .unwrap();
    fails(&limited, "larger than this process may write; nothing was written", "ulimit -f");
    assert!(fs::read(&checkpoint).unwrap() == before);
    assert_eq!(work.names(), ["checkpoint", "data.csv", "whole"]);
    succeeds(work.train("model", Some(&checkpoint)));
    work.assert_model_is_whole();
}

/// On a disk that has room for one checkpoint, not for a second one beside it.
#[test]
fn a_full_disk_leaves_the_checkpoint_as_it_was() {
    let work = Work::new(20_000);
    let checkpoint = work.path("checkpoint");
    assert!(work.killed_after_a_checkpoint("model", &checkpoint));
    let size = fs::metadata(&checkpoint).unwrap().len();
    fs::remove_file(&checkpoint).unwrap();
    let disk = work.path("disk");
    fs::create_dir(&disk).unwrap();
    let on_disk = disk.join("checkpoint");
    let script = "mount -t tmpfs -o size=\"$SIZE\" none \"$DISK\" || exit 77
        \"$0\" \"$@\"; status=$?
        ls -A \"$DISK\" > \"$DISK.names\"; cp \"$DISK/checkpoint\" \"$DISK.checkpoint\"; exit $status";
    let run = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, SCRIMP])
        .args(work.train("model", Some(&on_disk)))
        .env("SIZE", (size * 3 / 2).to_string())
        .env("DISK", &disk)
        .output();
    let run = match run {
        Ok(run) if run.status.code() == Some(1) && !said(&run).contains("unshare:") => run,
        Ok(run) if run.status.success() => panic!("the disk did not fill up"),
        other => {
            eprintln!(
                "SKIPPED a_full_disk_leaves_the_checkpoint_as_it_was: no file system may be mounted: {other:?}"
            );
            return;
        }
    };
    fails(&run, "checkpoint: the disk is full; nothing was written", "free some space");
    assert_eq!(fs::read_to_string(work.path("disk.names")).unwrap(), "checkpoint\n");
    // What is left is a checkpoint that training goes on from.
    fs::rename(work.path("disk.checkpoint"), &checkpoint).unwrap();
    succeeds(work.train("whole", None));
    succeeds(work.train("model", Some(&checkpoint)));
    work.assert_model_is_whole();
}

#[test]
fn checkpoints_of_something_else_are_refused() {
    let work = Work::new(20_000);
    let checkpoint = work.path("checkpoint");
    assert!(work.killed_after_a_checkpoint("model", &checkpoint));
    let before = fs::read(&checkpoint).unwrap();
    let with = |options: &[&str]| {
        let args = work.train("model", Some(&checkpoint));
        scrimp(args.into_iter().map(|a| {
            options.iter().fold(a, |a, o| {
                let (from, to) = o.split_once('=').unwrap();
                if a == from { to.to_owned() } else { a }
            })
        }))
    };
    fails(&with(&["8=16"]), "a checkpoint of another model", "another file for the checkpoint");
    fails(&with(&["64=32"]), "a checkpoint with another --batch", "another file for the checkpoint");
    assert!(fs::read(&checkpoint).unwrap() == before);
}

#[test]
fn bad_rows_are_counted_and_nothing_is_half_written() {
    let work = Work::new(3000);
    let mut data = fs::read_to_string(work.path("data.csv")).unwrap();
    data.push_str("0,1\n7,1,0,1,2,3\n");
    fs::write(work.path("data.csv"), &data).unwrap();
    let train = |more: &[&str]| {
        let args = work.train("model", None).into_iter().chain(more.iter().map(|&s| s.to_owned()));
        scrimp(args.collect::<Vec<_>>())
    };
    fails(&train(&[]), "data.csv:3002: expected 6 columns, found 2", "--skip-bad-rows N");
    fails(&train(&["--skip-bad-rows", "1"]), "data.csv:3003: ", "--skip-bad-rows");
    assert_eq!(work.names(), ["data.csv"]);
    let output = train(&["--skip-bad-rows", "2"]);
    assert!(output.status.success(), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["bad_rows"], 2);

    let path = |name: &str| work.path(name).display().to_string();
    let (model, csv, scores) = (path("model"), path("data.csv"), path("scores"));
    fails(&scrimp(["rec", "eval", &model, &csv]), "data.csv:3002: ", "--skip-bad-rows");
    let tested = succeeds(["rec", "eval", &model, &csv, "--skip-bad-rows", "2", "--json"]);
    assert_eq!((&tested["bad_rows"], &tested["rows"]), (&2.into(), &3000.into()));
    fails(&scrimp(["rec", "score", &model, &csv, "-o", &scores]), "data.csv:3002: ", "");
    assert_eq!(work.names(), ["data.csv", "model"]);
    // Cut off: never a row that may be skipped.
    let whole = path("whole.csv.gz");
    let made = [
        "rec",
        "generate",
        "--rows",
        "3000",
        "--cardinalities",
        "400,30,2000",
        "--numeric",
        "2",
        "-o",
        &whole,
    ];
    assert!(scrimp(made).status.success());
    let gz = fs::read(&whole).unwrap();
    fs::remove_file(&whole).unwrap();
    fs::write(work.path("cut.csv.gz"), &gz[..gz.len() - 100]).unwrap();
    let cut = path("cut.csv.gz");
    let skipping = ["--skip-bad-rows", "100000"];
    let args = [&["rec", "eval", &model, &cut][..], &skipping].concat();
    fails(&scrimp(args), "gzip data is damaged or cut off", "");
    fails(&scrimp(["rec", "score", &model, &cut, "-o", &scores]), "gzip data is damaged or cut off", "");
    assert_eq!(work.names(), ["cut.csv.gz", "data.csv", "model"]);
}

#[test]
fn models_and_data_that_do_not_match_are_refused() {
    let work = Work::new(2000);
    succeeds(work.train("model", None));
    let model = work.path("model");
    let file = |name: &str, text: &[u8]| {
        fs::write(work.path(name), text).unwrap();
        work.path(name)
    };
    let eval = |data: &Path| scrimp(["rec", "eval"].map(Path::new).into_iter().chain([&*model, data]));
    fails(&eval(&file("other.csv", b"a,b\n1,2\n")), "other.csv: there is no column", "");
    let criteo = "1".to_owned() + &"\t".repeat(39) + "\n";
    fails(&eval(&file("criteo.tsv", criteo.as_bytes())), "criteo.tsv: ", "");
    fails(&eval(&file("empty.csv", b"")), "empty.csv: the file is empty", "");
    let swapped =
        scrimp(["rec", "eval"].map(Path::new).into_iter().chain([&*work.path("data.csv"), &*model]));
    fails(&swapped, "data.csv: ", "not a model of `scrimp rec train`");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    fails(&eval(&work.path("data.csv")), "model: ", "the file is damaged");
}

#[test]
fn options_of_the_embeddings() {
    let work = Work::new(4000);
    let train = |options: &[&str]| {
        let args = work.train("model", None).into_iter().chain(options.iter().map(|&s| s.to_owned()));
        scrimp(args.collect::<Vec<_>>())
    };
    let inspect = |options: &[&str]| {
        let output = train(options);
        assert!(output.status.success(), "{options:?}: {}", said(&output));
        let model = work.path("model").display().to_string();
        let config = succeeds(["rec", "inspect", &model, "--json"]);
        let trained: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (config["config"]["encoder"].clone(), trained)
    };
    let (plain, trained) = inspect(&[]);
    let budget = trained["embedding_bytes"].as_u64().unwrap();
    assert!(plain["hot"].as_u64().unwrap() > 0 && plain["weight_rows"].as_array().unwrap().is_empty());
    let (none, _) = inspect(&["--hot", "0", "--signs", "false"]);
    assert_eq!((&none["hot"], &none["signs"]), (&0.into(), &false.into()));
    assert!(none["rows"][0].as_u64() > plain["rows"][0].as_u64());
    // The paper's shape has a scale for each id.
    let (paper, _) = inspect(&["--overlap", "false", "-k", "4"]);
    assert_eq!((&paper["k"], paper["weight_rows"].as_array().unwrap().len()), (&4.into(), 1));
    let (more, trained) =
        inspect(&["--hot", "0.6", "--alpha", "0.2", "--alpha-k", "2", "--alpha-groups", "2", "--width", "4"]);
    assert!(more["hot"].as_u64().unwrap() > 3 * plain["hot"].as_u64().unwrap() / 2);
    assert_eq!((&more["weight_k"], &more["groups"]), (&2.into(), &2.into()));
    assert!(trained["embedding_bytes"].as_u64().unwrap() <= budget + 64);
    let (each, _) = inspect(&["--per-feature-tables", "--optimizer", "row-wise-adagrad"]);
    assert_eq!(each["rows"].as_array().unwrap().len(), 3);

    // Trained through: the stored model is the one that was validated.
    let (aware, trained) =
        inspect(&["--dtype", "int8", "--qat", "--valid", &work.path("data.csv").display().to_string()]);
    assert_eq!((&aware["precision"], &aware["quantization_aware"]), (&"int8".into(), &true.into()));
    let path = |name: &str| work.path(name).display().to_string();
    let tested = succeeds(["rec", "eval", &path("model"), &path("data.csv"), "--json"]);
    assert_eq!(tested["auc"], trained["auc"]);
    let (_, trained) = inspect(&["--valid", &work.path("data.csv").display().to_string()]);
    assert_eq!((&plain["precision"], &plain["quantization_aware"]), (&"int4".into(), &true.into()));
    // Twice the rows in the same bytes, less the keys of frequent ids.
    assert!(plain["rows"][0].as_u64().unwrap() * 2 > aware["rows"][0].as_u64().unwrap() * 3);
    assert!(trained["embedding_bytes"].as_u64().unwrap() <= budget + 64);
    let tested = succeeds(["rec", "eval", &path("model"), &path("data.csv"), "--json"]);
    assert_eq!(tested["auc"], trained["auc"]);
    fails(
        &train(&["--dtype", "f32", "--qat"]),
        "--qat: rows of f32 are not rounded",
        "--dtype bf16, int8 or int4",
    );
    let output = train(&["--hot", "1.5"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("must be from 0 to 0.9"));
}
