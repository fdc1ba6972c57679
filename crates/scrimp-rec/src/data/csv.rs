//! CSV with a header and any separator. Quotes follow RFC 4180, except that a row is one line.

use super::{
    Batch,
    roles::{Filler, Role, listed},
    text::{Parse, Scratch},
};

pub(super) struct Csv {
    filler: Filler,
    separator: u8,
    names: Vec<String>,
    roles: Vec<Role>,
}

impl Csv {
    /// A parser for files with the columns `names`.
    pub(super) fn new(filler: Filler, names: Vec<String>, separator: u8) -> Self {
        let roles = names.iter().map(|n| filler.role(n)).collect();
        Self { filler, separator, names, roles }
    }

    /// The names in a header line.
    pub(super) fn names(line: &[u8], separator: u8) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        fields(line, separator, &mut Vec::new(), |_, field| {
            names.push(String::from_utf8_lossy(field.trim_ascii()).into_owned());
            Ok(())
        })?;
        Ok(names)
    }
}

/// Calls `each` with the index and the text of each field. Returns the number of fields. `scratch` is a buffer for quoted text.
#[inline]
pub(super) fn fields(
    line: &[u8],
    separator: u8,
    scratch: &mut Vec<u8>,
    mut each: impl FnMut(usize, &[u8]) -> Result<(), String>,
) -> Result<usize, String> {
    let (mut rest, mut count) = (line, 0);
    loop {
        let (after, more) = if rest.first() == Some(&b'"') {
            scratch.clear();
            let mut at = 1;
            loop {
                let Some(quote) = memchr::memchr(b'"', &rest[at..]) else {
                    return Err(format!(
                        "the quote that opens field {} is not closed on this line",
                        count + 1
                    ));
                };
                scratch.extend_from_slice(&rest[at..at + quote]);
                at += quote + 1;
                if rest.get(at) != Some(&b'"') {
                    break;
                }
                scratch.push(b'"');
                at += 1;
            }
            each(count, scratch)?;
            match rest.get(at) {
                None => (&rest[at..], false),
                Some(&c) if c == separator => (&rest[at + 1..], true),
                Some(_) => return Err(format!("text follows the closing quote of field {}", count + 1)),
            }
        } else {
            match rest.iter().position(|&b| b == separator) {
                Some(end) => {
                    each(count, &rest[..end])?;
                    (&rest[end + 1..], true)
                }
                None => {
                    each(count, rest)?;
                    (&rest[rest.len()..], false)
                }
            }
        };
        count += 1;
        if !more {
            return Ok(count);
        }
        rest = after;
    }
}

impl Parse for Csv {
    const HEADER: bool = true;

    fn header(&self, line: &[u8]) -> Result<(), String> {
        let names = Self::names(line, self.separator)?;
        if names == self.names {
            return Ok(());
        }
        Err(format!(
            "the columns {} are expected here, as in the first file; found {}",
            listed(self.names.iter().map(String::as_str)),
            listed(names.iter().map(String::as_str))
        ))
    }

    fn line(&self, line: &[u8], out: &mut Batch, scratch: &mut Scratch) -> Result<(), String> {
        let row = self.filler.begin(out);
        let mut problem = Ok(());
        let found = fields(line, self.separator, &mut scratch.bytes, |i, text| {
            // A wrong number of columns explains other errors: it is reported first.
            if let (Ok(()), Some(&role)) = (&problem, self.roles.get(i)) {
                problem = self.filler.set(row, role, text, out);
            }
            Ok(())
        })?;
        if found != self.names.len() {
            return Err(format!("expected {} columns, found {found}", self.names.len()));
        }
        problem?;
        self.filler.end(row, out);
        Ok(())
    }
}
