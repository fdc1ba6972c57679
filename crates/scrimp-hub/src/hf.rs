//! The Hugging Face hub: one file of a repository, or all files of a model.

use super::{
    Progress,
    http::{Client, Remote, file_name},
    reference::is_safe_relative,
    store::{Fault, Sink, Slot, Sum, local, sum_file, write_small},
};
use scrimp_base::{Category, Error, shards::ShardName};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Maximum size of an API answer.
const LISTING_LIMIT: u64 = 32 << 20;
/// Files of a model in a Hugging Face directory, besides its weights. The first file is required.
const SMALL_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Files of an embedding model (sentence-transformers), besides those of its modules' folders. The first file marks one.
const SENTENCE_FILES: [&str; 3] =
    ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"];
/// The list of files in a finished directory.
const MANIFEST: &str = ".scrimp.json";

/// The known sum and size of a file that is to be downloaded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expected<'a> {
    pub(super) sha256: Option<&'a str>,
    pub(super) size: Option<u64>,
}

/// Address of a file of a repository.
pub(super) fn url(endpoint: &str, repo: &str, revision: &str, file: &str) -> String {
    let mut url = format!("{endpoint}/{repo}/resolve/{revision}/");
    for byte in file.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(byte as char);
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

/// Downloads the file at `url` into `work` and returns its path and its sum. The server's announcement must match
/// `expected` before the transfer begins.
pub(super) fn file(
    client: &Client,
    url: &str,
    work: &Path,
    Expected { sha256, size }: Expected<'_>,
    progress: &mut dyn Progress,
) -> Result<(PathBuf, Sum), Fault> {
    let remote = client.head(url)?;
    let other = |what: String| Fault::Source(Error::new(Category::Unavailable, what));
    if let (Some(want), Some(have)) = (size, remote.size)
        && want != have
    {
        return Err(other(format!("{url}: another file ({have} bytes instead of {want})")));
    }
    if let (Some(want), Some(have)) = (sha256, remote.sha256.as_deref())
        && want != have
    {
        return Err(other(format!("{url}: another file (its SHA-256 is {have})")));
    }
    let known =
        Remote { size: size.or(remote.size), sha256: sha256.map(str::to_owned).or(remote.sha256), ..remote };
    let data = work.join("data");
    let sum = transfer(client, &known.url, &data, &known, progress)?;
    Ok((data, sum))
}

/// Downloads into `data`. Resumes if `data` is a part of the same version of the file.
fn transfer(
    client: &Client,
    url: &str,
    data: &Path,
    known: &Remote,
    progress: &mut dyn Progress,
) -> Result<Sum, Fault> {
    let mark = data.with_extension("etag");
    let etag = known.etag.as_deref().unwrap_or_default();
    let same_version = !etag.is_empty() && fs::read_to_string(&mark).is_ok_and(|old| old == etag);
    let mut keep = if same_version { u64::MAX } else { 0 };
    loop {
        let mut sink = Sink::open(data, keep)?;
        write_small(&mark, etag.as_bytes())?;
        let resumed = sink.len();
        progress.begin(file_name(url), known.size, resumed);
        let done = client.download(url, known.size, &mut sink, progress);
        progress.end();
        done?;
        let sum = sink.finish()?;
        match known.sha256.as_deref() {
            Some(want) if want != sum.sha256 => {
                // The resumed part may be damaged: download once more from the beginning.
                let _ = fs::remove_file(data);
                if resumed > 0 {
                    progress.note("what was resumed did not fit together; starting again");
                    keep = 0;
                    continue;
                }
                return Err(wrong_sum(url, want, &sum.sha256));
            }
            _ => return Ok(sum),
        }
    }
}

/// The error for bytes that are not the expected ones.
pub(super) fn wrong_sum(from: &str, want: &str, have: &str) -> Fault {
    Fault::Source(Error::unavailable(
        format!("{from}: wrong bytes: their SHA-256 is {have}, not {want}"),
        "try again; if it happens again, the source has other content than expected",
    ))
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The model of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// Files that together are a model.
    Directory(Vec<String>),
    /// The one GGUF file, or its first part.
    File(String),
}

/// A repository of the hub.
#[derive(Clone, Copy)]
pub(super) struct Repository<'a> {
    pub(super) client: &'a Client,
    /// Address of the hub.
    pub(super) endpoint: &'a str,
    /// `owner/name`.
    pub(super) repo: &'a str,
}

/// Reads the files of a repository and chooses those of the model. Returns the commit as well: all files must be of
/// one version.
pub(super) fn offer(repository: Repository<'_>) -> Result<(Offer, String), Fault> {
    let Repository { client, endpoint, repo } = repository;
    let api = format!("{endpoint}/api/models/{repo}");
    let answer = client.text(&api, LISTING_LIMIT)?;
    let listing: Listing = serde_json::from_str(&answer).map_err(|e| {
        Fault::Source(Error::new(Category::Unavailable, format!("{api}: not an answer of the hub: {e}")))
    })?;
    let is_commit =
        |s: &String| !s.is_empty() && s.len() <= 64 && s.bytes().all(|c| c.is_ascii_alphanumeric());
    let commit = listing.sha.filter(is_commit).unwrap_or_else(|| "main".to_owned());
    let files: Vec<String> =
        listing.siblings.into_iter().map(|s| s.rfilename).filter(|f| is_safe_relative(f)).collect();
    choose(repo, &files).map(|offer| (offer, commit)).map_err(Fault::Source)
}

fn choose(repo: &str, files: &[String]) -> Result<Offer, Error> {
    let top = |f: &&String| !f.contains('/');
    let ends = |f: &str, with: &str| f.to_ascii_lowercase().ends_with(with);
    let weights: Vec<&String> = files.iter().filter(top).filter(|f| ends(f, ".safetensors")).collect();
    if files.iter().any(|f| f == SMALL_FILES[0]) && !weights.is_empty() {
        // Some repositories carry the same weights twice (`consolidated`, `pytorch` names).
        let named: Vec<&String> = weights.iter().copied().filter(|f| f.starts_with("model")).collect();
        let weights = if named.is_empty() { weights } else { named };
        let small =
            files.iter().filter(|f| SMALL_FILES.contains(&f.as_str()) || ends(f, ".safetensors.index.json"));
        let embeds = files.iter().any(|f| f == SENTENCE_FILES[0]);
        let sentence = files.iter().filter(|f| embeds && is_of_module(f));
        return Ok(Offer::Directory(small.filter(top).chain(weights).chain(sentence).cloned().collect()));
    }
    // The first part of a split file represents all.
    let first_part = |f: &str| ShardName::parse(f).is_none_or(|shard| shard.number == 1);
    let gguf: Vec<&String> = files.iter().filter(|f| ends(f, ".gguf") && first_part(f)).collect();
    match gguf.as_slice() {
        [one] => Ok(Offer::File((*one).clone())),
        [] => Err(Error::unavailable(
            format!("hf:{repo} holds neither a GGUF file nor config.json with safetensors"),
            "choose a repository with weights in one of these formats",
        )),
        many => {
            let names: Vec<_> = many.iter().take(30).map(|f| format!("hf:{repo}:{f}")).collect();
            let more = if many.len() > names.len() { " ..." } else { "" };
            Err(Error::unavailable(
                format!("hf:{repo} holds {} GGUF files", many.len()),
                format!("choose one: {}{more}", names.join(" ")),
            ))
        }
    }
}

/// Whether an embedding model needs this file: `modules.json`, `1_Pooling/config.json`, `2_Dense/model.safetensors`.
fn is_of_module(file: &str) -> bool {
    let numbered =
        |folder: &str| folder.split_once('_').is_some_and(|(number, _)| number.parse::<u8>().is_ok());
    match file.split_once('/') {
        None => SENTENCE_FILES.contains(&file),
        Some((folder, name)) => numbered(folder) && matches!(name, "config.json" | "model.safetensors"),
    }
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Manifest {
    repo: String,
    commit: String,
    files: Vec<String>,
}

/// Whether [`directory`] has finished the directory and all files still exist.
pub(super) fn is_complete(path: &Path) -> bool {
    let manifest =
        fs::read(path.join(MANIFEST)).ok().and_then(|b| serde_json::from_slice::<Manifest>(&b).ok());
    manifest.is_some_and(|m| m.files.iter().all(|f| path.join(f).is_file()))
}

/// Downloads `files` of one commit into the directory `slot.path`, which appears when it is complete.
pub(super) fn directory(
    repository: Repository<'_>,
    commit: String,
    files: Vec<String>,
    slot: &Slot,
    progress: &mut dyn Progress,
) -> Result<(), Fault> {
    let Repository { client, endpoint, repo } = repository;
    let work = slot.work("files");
    let manifest = Manifest { repo: repo.to_owned(), commit, files };
    let begun = fs::read(work.join(MANIFEST)).ok().and_then(|b| serde_json::from_slice::<Manifest>(&b).ok());
    if begun.as_ref() != Some(&manifest) {
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).map_err(|e| local(&work, e))?;
        let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        write_small(&work.join(MANIFEST), &text)?;
    }
    for name in &manifest.files {
        let path = work.join(name);
        if path.is_file() {
            continue;
        }
        let url = url(endpoint, repo, &manifest.commit, name);
        let (data, _sum) = file(client, &url, &slot.work("one"), Expected::default(), progress)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| local(folder, e))?;
        }
        fs::rename(&data, &path).map_err(|e| local(&path, e))?;
    }
    if slot.path.exists() {
        // An incomplete directory of an earlier version.
        fs::remove_dir_all(&slot.path).map_err(|e| local(&slot.path, e))?;
    }
    fs::rename(&work, &slot.path).map_err(|e| local(&slot.path, e))?;
    slot.discard_work();
    Ok(())
}

/// Checks a finished file of unknown provenance against the expected sum.
pub(super) fn matches(path: &Path, want: &str) -> Option<Sum> {
    sum_file(path).ok().filter(|s| s.sha256 == want)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer_of(files: &[&str]) -> Result<Offer, Error> {
        choose("a/b", &files.iter().map(|&f| f.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_fetched_of_a_repository() {
        let files = [
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "tokenizer.json",
            "onnx/model.safetensors",
        ];
        let Ok(Offer::Directory(got)) = offer_of(&files) else { panic!() };
        let want = [
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(got, want);
        let embedder = [
            "config.json",
            "model.safetensors",
            "modules.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "onnx/config.json",
        ];
        let Ok(Offer::Directory(got)) = offer_of(&embedder) else { panic!() };
        assert_eq!(got, embedder[..6]);
        assert_eq!(offer_of(&["README.md", "x.gguf"]).unwrap(), Offer::File("x.gguf".into()));
        assert!(offer_of(&["README.md"]).is_err());
        let parts = ["q4/x-00001-of-00002.gguf", "q4/x-00002-of-00002.gguf"];
        assert_eq!(offer_of(&parts).unwrap(), Offer::File(parts[0].into()));
        let many = offer_of(&["x.gguf", "y.gguf"]).unwrap_err();
        assert!(many.hint().unwrap().as_str().contains("hf:a/b:y.gguf"));
    }

    #[test]
    fn addresses_are_escaped() {
        assert_eq!(
            url("http://h", "a/b", "main", "d/x y?.gguf"),
            "http://h/a/b/resolve/main/d/x%20y%3F.gguf"
        );
    }
}
