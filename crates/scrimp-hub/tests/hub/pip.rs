//! A fake pip: a shell script that copies prepared wheels, and wheels to prepare.

use std::{
    fs,
    io::{Cursor, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};
use zip::{ZipWriter, write::SimpleFileOptions};

/// A wheel with these members.
pub(crate) fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Writes a pip into `dir` that delivers `dir/wheels/SPEC.whl`, logs each spec to `dir/log`, and fails for specs that
/// it does not have, or after `dir/fail-after` successful downloads. Returns the value for `SCRIMP_PIP`.
pub(crate) fn install(dir: &Path) -> String {
    fs::create_dir_all(dir.join("wheels")).unwrap();
    let script = r#"#!/bin/sh
here=$(dirname "$0")
dest=; spec=
while [ $# -gt 0 ]; do
  case $1 in
    --dest) dest=$2; shift ;;
    -*|download) ;;
    *) spec=$1 ;;
  esac
  shift
done
echo "$spec" >> "$here/log"
if [ -e "$here/fail-after" ] && [ "$(wc -l < "$here/log")" -gt "$(cat "$here/fail-after")" ]; then
  echo "WARNING: something else" >&2
  echo "ERROR: Could not reach the index" >&2
  exit 1
fi
sleep 0.1
cp "$here/wheels/$spec.whl" "$dest/package-1-py3-none-any.whl" 2>/dev/null || {
  echo "ERROR: No matching distribution found for $spec" >&2
  exit 1
}
"#;
    let path = dir.join("pip");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}
