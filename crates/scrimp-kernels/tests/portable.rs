//! Names of operating systems and of CPU architectures have one folder each, for the code of all crates: `system` and
//! `arch`. Tests and examples may name them.

use scrimp_testkit::rust_files;
use std::{fs, path::Path};

/// Names of operating systems, and of their calls and files.
const SYSTEMS: [&str; 14] = [
    "libc::",
    "windows_sys::",
    "os::unix",
    "os::windows",
    "os::linux",
    "target_os",
    "target_family",
    "target_vendor",
    "cfg(unix)",
    "cfg(windows)",
    "cfg!(unix)",
    "cfg!(windows)",
    "\"/proc/",
    "\"/sys/",
];
/// Names of CPU architectures.
const CPUS: [&str; 4] = ["target_arch", "std::arch", "core::arch", "feature_detected"];

/// The code of a file without comments and without its inline module of tests.
fn code(source: &str) -> String {
    let source = source.split_once("#[cfg(test)]\nmod tests {").map_or(source, |(code, _)| code);
    source
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The files of all crates that have one of `names` in their code and are in none of the folders `allowed` of this crate.
fn files_with(names: &[&str], allowed: &[&str]) -> Vec<String> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for entry in fs::read_dir(crates).unwrap() {
        let source = entry.unwrap().path().join("src");
        if source.is_dir() {
            files.extend(rust_files(&source));
        }
    }
    assert!(files.len() > 200, "{} files", files.len());
    let allowed: Vec<_> =
        allowed.iter().map(|folder| crates.join("scrimp-kernels/src").join(folder)).collect();
    files.retain(|file| !allowed.iter().any(|folder| file.starts_with(folder)));
    let mut found = Vec::new();
    for file in files {
        let code = code(&fs::read_to_string(&file).unwrap());
        let names = names.iter().filter(|name| code.contains(**name));
        let path = file.strip_prefix(crates).unwrap().display();
        found.extend(names.map(|name| format!("{path}: {name}")));
    }
    found
}

#[test]
fn operating_systems_have_one_folder() {
    // The tests of AMX execute its instructions in a signal handler.
    let found = files_with(&SYSTEMS, &["system", "arch/amx"]);
    assert!(found.is_empty(), "outside of scrimp-kernels/src/system:\n{}", found.join("\n"));
}

#[test]
fn cpu_architectures_have_one_folder() {
    let found = files_with(&CPUS, &["arch", "system"]);
    assert!(found.is_empty(), "outside of scrimp-kernels/src/arch:\n{}", found.join("\n"));
}
