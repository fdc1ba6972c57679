//! What is done already: a directory beside the output with a part per layer, so that an interrupted run goes on.
//!
//! ```text
//! OUT.work/plan.json               what is being made; another plan starts afresh
//!          layer-000.safetensors   finished layers, in the output's own format
//!          hidden-001.f32          the residual stream of the calibration text before layer 1
//! ```

use crate::{
    error::{Error, Result},
    load::{CompressedFile, SafetensorsFile, Source, compressed},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The directory.
pub(super) struct WorkDir {
    dir: PathBuf,
}

impl WorkDir {
    /// Opens the directory for `out`; what belongs to another `plan` is removed.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub(super) fn open(out: &Path, plan: &str) -> Result<Self> {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".work");
        let dir = out.with_file_name(name);
        let file = dir.join("plan.json");
        if !fs::read(&file).is_ok_and(|found| found == plan.as_bytes()) {
            if dir.exists() {
                fs::remove_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
            }
            fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
            write(&file, plan.as_bytes())?;
        }
        Ok(Self { dir })
    }

    fn layer_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("layer-{index:03}.safetensors"))
    }

    fn hidden_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("hidden-{index:03}.f32"))
    }

    /// How many layers are done, with the residual stream of `len` numbers after them.
    pub(super) fn done(&self, n_layers: usize, len: usize) -> Option<(usize, Vec<f32>)> {
        (1..=n_layers).rev().find_map(|index| {
            let bytes = fs::read(self.hidden_path(index)).ok().filter(|b| b.len() == 4 * len)?;
            (0..index).all(|i| self.layer(i).is_ok()).then(|| {
                let hidden = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                (index, hidden)
            })
        })
    }

    /// Stores layer `index` and the residual stream after it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn store(
        &self,
        index: usize,
        items: &[compressed::Item<'_>],
        metadata: &BTreeMap<String, String>,
        hidden: &[f32],
    ) -> Result<()> {
        compressed::write(&self.layer_path(index), metadata, items, &mut |_| ())?;
        write(&self.hidden_path(index + 1), bytemuck::cast_slice(hidden))?;
        let _ = fs::remove_file(self.hidden_path(index));
        Ok(())
    }

    /// A finished layer.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub(super) fn layer(&self, index: usize) -> Result<CompressedFile> {
        CompressedFile::new(SafetensorsFile::from_source(Source::open(&self.layer_path(index))?)?)
    }

    /// Removes everything.
    pub(super) fn remove(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Writes a file under a temporary name first.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("part");
    fs::write(&temporary, bytes).map_err(|e| Error::io(&temporary, e))?;
    fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}
