//! GGUF files in several parts, as `llama-gguf-split` writes them.
//!
//! The first part has the metadata; each has `split.no` (its number, from 0), `split.count` and some of the tensors.

use std::path::{Path, PathBuf};

use scrimp_base::shards::ShardName;

use super::GgufFile;
use crate::{
    error::{Error, Result},
    load::Source,
};

impl GgufFile {
    /// All parts of the model that this file belongs to, the first one first: only this file if it is whole.
    ///
    /// # Errors
    /// When parts are missing (the error names them), damaged, or of different models.
    pub fn with_shards(self) -> Result<Vec<Self>> {
        let Some(count) = self.metadata().u64("split.count")?.filter(|&count| count > 1) else {
            return Ok(vec![self]);
        };
        let path = self.source().path().to_owned();
        let name = path.to_str().and_then(ShardName::parse).filter(|shard| shard.count as u64 == count);
        let Some(name) = name else {
            return Err(Error::bad_input(format!(
                "{}: one of {count} parts of a model, without the name of a part",
                path.display()
            ))
            .with_hint(format!("keep the names of the parts: NAME-00001-of-{count:05}.gguf")));
        };
        let paths: Vec<PathBuf> = name.all().map(PathBuf::from).collect();
        refuse_missing(&paths)?;
        let mut this = Some(self);
        let mut files = Vec::with_capacity(paths.len());
        for (i, path) in paths.iter().enumerate() {
            let file = match this.take_if(|_| i + 1 == name.number) {
                Some(file) => file,
                None => Self::from_source(Source::open(path)?)?,
            };
            let (no, of) = (file.metadata().u64("split.no")?, file.metadata().u64("split.count")?);
            if (no, of) != (Some(i as u64), Some(count)) {
                return Err(file.source().bad(format!(
                    "its metadata and its name disagree: split.no is {}, split.count {}",
                    no.map_or("missing".to_owned(), |no| no.to_string()),
                    of.map_or("missing".to_owned(), |of| of.to_string()),
                )));
            }
            files.push(file);
        }
        check_tensors(&files)?;
        Ok(files)
    }
}

fn refuse_missing(paths: &[PathBuf]) -> Result<()> {
    let missing: Vec<String> = paths
        .iter()
        .filter(|path| !path.is_file())
        .map(|path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let dir = paths[0].parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Err(Error::bad_input(format!(
        "{}: parts of the model are missing: {}",
        dir.display(),
        missing.join(", ")
    ))
    .with_hint(format!("put all {} parts into one directory", paths.len())))
}

/// Checks that no tensor is in two parts, and that there are as many as the first part says.
fn check_tensors(files: &[GgufFile]) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for file in files {
        if let Some(tensor) = file.tensors().iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
            return Err(file.source().bad(format!("tensor {} is in another part too", tensor.name)));
        }
    }
    let first = &files[0];
    match first.metadata().u64("split.tensors.count")? {
        Some(count) if count != seen.len() as u64 => Err(first.source().bad(format!(
            "all parts should have {count} tensors together, but have {}: they belong to different models",
            seen.len()
        ))),
        _ => Ok(()),
    }
}
