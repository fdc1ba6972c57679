//! A source archive of one Python package, for data that is published that way.
//!
//! pip runs a source package's build script to learn its name. So the archive's SHA-256 has to be given: pip checks it
//! before it unpacks anything, and only the known archive is ever run.

use super::{
    Pip,
    pypi::{Wanted, no_pip, run_pip},
    store::{Fault, local},
};
use scrimp_base::{Category, Error, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Downloads the source archive of `package` in `version`, which must have the sum `sha256` (hexadecimal), into the
/// existing directory `dir`, with `pip` or the one that is found. `seen` is told how many bytes there are so far.
///
/// # Errors
/// There is no pip, no network, no such package, the sum is another one, or the disk is full.
pub fn download_sdist(
    pip: Option<&Pip>,
    (package, version, sha256): (&str, &str, &str),
    dir: &Path,
    seen: &mut dyn FnMut(u64),
) -> Result<PathBuf> {
    let found = pip.cloned().or_else(Pip::find);
    let pip = found.as_ref().ok_or_else(no_pip)?;
    let (temporary, dest, list) = (dir.join("tmp"), dir.join("sdist"), dir.join("requirements.txt"));
    for d in [&temporary, &dest] {
        fs::create_dir_all(d).map_err(|e| local(d, e).into_error())?;
    }
    let line = format!("{package}=={version} --hash=sha256:{sha256}\n");
    fs::write(&list, line).map_err(|e| local(&list, e).into_error())?;
    let name = format!("{package}=={version}");
    let wanted = Wanted {
        selection: &["--no-binary=:all:", "--require-hashes"],
        requirement: &["-r".into(), list.clone().into()],
        name: &name,
        hint: "without network, `pip download` it elsewhere and give its path; for a mirror set PIP_INDEX_URL",
    };
    run_pip(pip, &wanted, &dest, &temporary, seen).map_err(Fault::into_error)?;
    let archive = |p: &PathBuf| p.to_string_lossy().ends_with(".tar.gz");
    let found = fs::read_dir(&dest).into_iter().flatten().flatten().map(|e| e.path()).find(archive);
    let result = found.ok_or_else(|| {
        Error::new(Category::Unavailable, format!("pip delivered no source archive of {name}"))
    });
    let _ = fs::remove_dir_all(&temporary);
    let _ = fs::remove_file(&list);
    result
}
