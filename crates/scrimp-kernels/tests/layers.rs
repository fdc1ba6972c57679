//! The order of the crate's folders: each imports those before it and none behind it.
//!
//! ```text
//! system < arch < exec, mem < quant < linear, attention, embedding, ops
//! ```
//! Folders of one layer do not import each other. The test reads the paths `crate::...` and `super::...` of every
//! source file, those of tests included.

use scrimp_testkit::rust_files;
use std::{collections::BTreeSet, fs, path::Path};

/// Folders, lowest layer first.
const LAYERS: [&[&str]; 5] =
    [&["system"], &["arch"], &["exec", "mem"], &["quant"], &["linear", "attention", "embedding", "ops"]];
/// Names that `lib.rs` re-exports, and their folders.
const REEXPORTS: [(&str, &str); 4] =
    [("SimdLevel", "arch"), ("Exec", "exec"), ("Pool", "exec"), ("DType", "quant")];

fn layer(folder: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&folder))
        .unwrap_or_else(|| panic!("folder {folder} has no layer"))
}

/// The code of `source` without comments, and without string literals.
fn code(source: &str) -> String {
    let mut out = String::new();
    for line in source.lines() {
        let line = line.split_once("//").map_or(line, |(code, _)| code);
        out.extend(line.split('"').step_by(2));
        out.push('\n');
    }
    out
}

/// The first names of the imports of `code`, which follows `crate::` or `super::`: one, or those of a group in braces.
fn first_names(code: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = code.strip_prefix('{') else { return vec![name(code)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => {
                names.push(name(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 1 => {
                names.push(name(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The folders that a file with this code imports; `depth` is the number of modules that its top level is inside of.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        names.extend(first_names(&code[at + "crate::".len()..]));
    }
    // Inline modules (tests) are one deeper, so only paths that climb past the file's folder are certain to leave it.
    let up = "super::".repeat(depth);
    for (at, _) in code.match_indices(&up) {
        if !code[..at].ends_with("super::")
            && !code[at + up.len()..].starts_with("super::")
            && !in_inline_module(&code[..at])
        {
            names.extend(first_names(&code[at + up.len()..]));
        }
    }
    let folder = |name: String| {
        let reexport = REEXPORTS.iter().find(|(reexport, _)| *reexport == name);
        reexport.map_or(name, |(_, folder)| (*folder).to_owned())
    };
    names.into_iter().map(folder).filter(|name| LAYERS.concat().contains(&name.as_str())).collect()
}

/// Whether the end of `code` is inside of a `mod name { ... }`.
fn in_inline_module(code: &str) -> bool {
    let Some(at) = code.rfind("mod ") else { return false };
    let rest = &code[at..];
    let opens = rest.split_once('\n').is_some_and(|(line, _)| line.trim_end().ends_with('{'));
    opens && rest.matches('{').count() > rest.matches('}').count()
}

#[test]
fn no_folder_imports_one_of_its_own_layer_or_above() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&root);
    assert!(files.len() > 60, "{} files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap();
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if parts.len() < 2 {
            assert_eq!(parts, ["lib.rs"], "files are in folders");
            continue;
        }
        let own = parts[0].as_str();
        // `mod.rs` is the folder's module, every other file is one deeper.
        let depth = parts.len() - usize::from(parts[parts.len() - 1] == "mod.rs");
        for used in imports(&code(&fs::read_to_string(&file).unwrap()), depth) {
            if used != own && layer(&used) >= layer(own) {
                wrong.push(format!("{}: {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the order of folders:\n{}", wrong.join("\n"));
}

#[test]
fn imports_are_found() {
    let source = "use crate::{arch::{Kernel, Simd}, exec::Pool};\nuse super::super::ops::rope; // crate::linear\nlet x = \"crate::linear\";\nlet y = crate::DType::F32;";
    let found: Vec<_> = imports(&code(source), 2).into_iter().collect();
    assert_eq!(found, ["arch", "exec", "ops", "quant"]);
}
