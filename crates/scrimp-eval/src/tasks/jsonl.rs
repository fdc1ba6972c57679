//! JSON Lines: one object per line.

use scrimp_llm::{Error, Result};
use serde::de::DeserializeOwned;
use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

/// The first `limit` objects of the file (`None`: all), each with the number of its line, counted from 1. Empty lines
/// are skipped.
///
/// # Errors
/// When the file cannot be read, a line is not such an object (the message names it), or the file has none.
pub fn read<T: DeserializeOwned>(path: &Path, limit: Option<usize>) -> Result<Vec<(usize, T)>> {
    let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let mut found = Vec::new();
    for (i, line) in file.lines().enumerate() {
        if limit == Some(found.len()) {
            break;
        }
        let number = i + 1;
        let bad = |what: String| {
            Error::bad_input(format!("{}: line {number}: {what}", path.display()))
                .with_hint("each line has to be one JSON object; fetch the file again, or mend that line")
        };
        let line = line.map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => bad("it is not UTF-8 text".to_owned()),
            _ => Error::io(path, e),
        })?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if !line.is_empty() {
            found.push((number, serde_json::from_str(line).map_err(|e| bad(e.to_string()))?));
        }
    }
    if found.is_empty() {
        let hint = "each line has to be one JSON object";
        return Err(Error::bad_input(format!("{} holds no samples", path.display())).with_hint(hint));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn read_bytes(bytes: &[u8], limit: Option<usize>) -> Result<Vec<(usize, serde_json::Value)>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        read(file.path(), limit).map_err(|e| e.to_string())
    }

    #[test]
    fn lines_have_numbers() {
        let got = read_bytes(b"\xef\xbb\xbf{\"a\":1}\n\n[2]\r\n", None).unwrap();
        assert_eq!(got, [(1, serde_json::json!({"a": 1})), (3, serde_json::json!([2]))]);
        // Lines beyond the limit are not parsed.
        assert_eq!(read_bytes(b"1\nbroken", Some(1)).unwrap().len(), 1);
    }

    #[test]
    fn bad_lines_are_named() {
        assert!(read_bytes(b"1\n2\n{\"a\":\n", None).unwrap_err().contains("line 3: "));
        assert!(read_bytes(b"1\n\xff\n", None).unwrap_err().contains("line 2: it is not UTF-8"));
        assert!(read_bytes(b"\n \n", None).unwrap_err().contains("no samples"));
        assert!(read::<u8>(Path::new("/nowhere/x.jsonl"), None).unwrap_err().to_string().contains("x.jsonl"));
    }
}
