//! The checkpoint directory: finished parts beside the output, from which an interrupted run resumes.
//!
//! ```text
//! OUT.work/plan.json                all options of the run; another plan starts over
//!          choices.json             the configurations of all layers
//!          output.safetensors       the output matrix, in the format of the output
//!          layer-0000.safetensors   finished layers, in the same format
//!          hidden-0001.f32          the residual stream of the calibration text before layer 1
//! ```

use crate::MatrixConfigs;
use scrimp_base::AtomicFile;
use scrimp_llm::{
    error::{Error, Result},
    load::{CompressedFile, SafetensorsFile, Source, compressed},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The checkpoint directory of an output.
pub(crate) struct CheckpointDir {
    dir: PathBuf,
}

impl CheckpointDir {
    /// Opens the directory for `out`. The files of another `plan` are removed.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub(crate) fn open(out: &Path, plan: &str) -> Result<Self> {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".work");
        let dir = out.with_file_name(name);
        let file = dir.join("plan.json");
        if !fs::read(&file).is_ok_and(|found| found == plan.as_bytes()) {
            if dir.exists() {
                fs::remove_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
            }
            fs::create_dir(&dir).map_err(|e| Error::io(&dir, e))?;
            AtomicFile::write(&file, plan.as_bytes())?;
        }
        Ok(Self { dir })
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.join(format!("{part}.safetensors"))
    }

    fn hidden_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("hidden-{index:04}.f32"))
    }

    /// The number of finished layers, and the residual stream of `len` numbers after them.
    pub(crate) fn done(&self, n_layers: usize, len: usize) -> Option<(usize, Vec<f32>)> {
        (1..=n_layers).rev().find_map(|index| {
            let bytes = fs::read(self.hidden_path(index)).ok().filter(|b| b.len() == 4 * len)?;
            let hidden = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Some((index, hidden))
        })
    }

    /// Stores a part.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn store(
        &self,
        part: &str,
        items: &[compressed::Item<'_>],
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        compressed::write(&self.path(part), metadata, items, &mut |_| ())
    }

    /// Stores the residual `streams` before layer `index`. Their file proves that all layers before `index` are stored.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn store_hidden(&self, index: usize, streams: &[&[f32]]) -> Result<()> {
        AtomicFile::write(&self.hidden_path(index), bytemuck::cast_slice(&streams.concat()))?;
        let _ = fs::remove_file(self.hidden_path(index - 1));
        Ok(())
    }

    /// Stores the configurations of all layers.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn store_matrix_configs(&self, configs: &MatrixConfigs) -> Result<()> {
        AtomicFile::write(&self.dir.join("choices.json"), configs.describe().to_string().as_bytes())
    }

    /// The stored configurations.
    pub(crate) fn matrix_configs(&self) -> Option<MatrixConfigs> {
        MatrixConfigs::parse(&fs::read_to_string(self.dir.join("choices.json")).ok()?)
    }

    /// A stored part.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub(crate) fn part(&self, part: &str) -> Result<CompressedFile> {
        CompressedFile::new(SafetensorsFile::from_source(Source::open(&self.path(part))?)?)
    }

    /// Removes everything.
    pub(crate) fn remove(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
