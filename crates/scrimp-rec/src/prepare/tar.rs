//! Reads a single file of a `.tar.gz`, in the subset of ustar that this needs.

use crate::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    path::Path,
};

/// The contents of the first regular file in `archive` whose path ends with `suffix`, at most `limit` bytes.
pub(super) fn member(archive: &Path, suffix: &str, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(archive).map_err(|e| Error::io(archive, e))?;
    let mut tar = MultiGzDecoder::new(BufReader::new(file));
    let damaged = |e: io::Error| Error::bad_file(archive, format!("not a whole .tar.gz: {e}"));
    let mut header = [0u8; 512];
    loop {
        tar.read_exact(&mut header).map_err(damaged)?;
        if header.iter().all(|&b| b == 0) {
            return Err(Error::bad_file(archive, format!("there is no {suffix} in it")));
        }
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).trim().to_owned()
        };
        let (name, kind) = (text(0..100), header[156]);
        let size = u64::from_str_radix(&text(124..136), 8)
            .map_err(|_| Error::bad_file(archive, format!("'{name}': a size that cannot be read")))?;
        if matches!(kind, b'0' | 0) && name.ends_with(suffix) {
            if size > limit {
                return Err(Error::bad_file(archive, format!("'{name}' is larger than {limit} bytes")));
            }
            let mut bytes = Vec::new();
            tar.by_ref().take(size).read_to_end(&mut bytes).map_err(damaged)?;
            if bytes.len() as u64 != size {
                return Err(Error::bad_file(archive, format!("it ends in the middle of '{name}'")));
            }
            return Ok(bytes);
        }
        let padded = size.div_ceil(512).saturating_mul(512);
        if io::copy(&mut tar.by_ref().take(padded), &mut io::sink()).map_err(damaged)? != padded {
            return Err(Error::bad_file(archive, format!("it ends in the middle of '{name}'")));
        }
    }
}
