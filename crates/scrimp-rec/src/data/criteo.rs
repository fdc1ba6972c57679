//! Criteo's click logs (Kaggle's `train.txt`, the day files of CriteoTB). A line has 40 tab-separated columns: the label, 13
//! integers and 26 hexadecimal categories. All columns but the label may be empty. Files for scoring may lack the label
//! (39 columns), like Kaggle's `test.txt`.

use super::{
    Batch, Crosses,
    text::{Parse, Scratch},
    values::{Log1p, hex, hex8, label, number, shown},
};
use crate::schema::{Kind, Schema};

pub(super) const NUMBERS: usize = 13;
pub(super) const CATEGORIES: usize = 26;

pub(super) struct Criteo {
    crosses: Crosses,
    schema: Schema,
    log1p: Log1p,
    missing: f32,
    first: First,
}

/// The first column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    Label,
    /// A label that is not read: the rows are scored.
    Ignored,
    /// The first number.
    Number,
}

impl Criteo {
    pub(super) fn new(schema: Schema, first: First, missing: f32) -> Self {
        Self { crosses: Crosses::new(&schema), schema, log1p: Log1p::new(), missing, first }
    }

    /// Whether the schema has Criteo's shape.
    pub(super) fn fits(schema: &Schema) -> bool {
        schema.numeric.len() == NUMBERS
            && schema.categorical.len() == CATEGORIES
            && schema.categorical.iter().all(|c| c.kind == Kind::Hex)
    }

    /// The number of columns of a line of Criteo's shape: 40 with a label, 39 without.
    pub(super) fn columns(line: &[u8]) -> Option<usize> {
        let fields: Vec<&[u8]> = line.split(|&b| b == b'\t').collect();
        let numbers = fields.len().checked_sub(CATEGORIES)?;
        let label = match numbers {
            NUMBERS => true,
            14 => number(fields[0]).is_ok(),
            _ => return None,
        };
        let number = |f: &&[u8]| number(f).is_ok();
        let id = |f: &&[u8]| hex(f).is_some();
        (label && fields[..numbers].iter().all(number) && fields[numbers..].iter().all(id))
            .then_some(fields.len())
    }

    fn row(&self, line: &[u8], out: &mut Batch) -> Option<()> {
        let mut rest = line;
        match (self.first, line) {
            (First::Label, [b @ (b'0' | b'1'), b'\t', after @ ..]) => {
                out.labels.push(f32::from(b - b'0'));
                rest = after;
            }
            (First::Label, _) => return None,
            (First::Ignored, _) => {
                out.labels.push(f32::NAN);
                rest = &line[memchr::memchr(b'\t', line)? + 1..];
            }
            (First::Number, _) => out.labels.push(f32::NAN),
        }
        for column in &self.schema.numeric {
            // Counts have few digits: one loop parses them and finds the next tab.
            let negative = rest.first() == Some(&b'-');
            let start = usize::from(negative);
            let (mut n, mut at) = (0u64, start);
            while let Some(digit) = rest.get(at).map(|b| b.wrapping_sub(b'0')).filter(|&d| d < 10) {
                n = n * 10 + u64::from(digit);
                at += 1;
                if at > 18 {
                    return None;
                }
            }
            if rest.get(at) != Some(&b'\t') {
                return None;
            }
            let value = if at > start {
                let x = n as f32;
                self.log1p.applied(column, if negative { -x } else { x })
            } else if negative {
                return None;
            } else {
                self.missing
            };
            out.numeric.push(value);
            rest = &rest[at + 1..];
        }
        for column in 0..CATEGORIES {
            let last = column + 1 == CATEGORIES;
            let id = match rest.first_chunk::<8>().and_then(|&c| hex8(c)) {
                Some(id) if rest.get(8) == if last { None } else { Some(&b'\t') } => {
                    rest = rest.get(9..).unwrap_or(&[]);
                    u64::from(id)
                }
                _ => {
                    let end = rest.iter().position(|&b| b == b'\t');
                    if end.is_none() != last {
                        return None;
                    }
                    let field = &rest[..end.unwrap_or(rest.len())];
                    rest = end.map_or(&[], |e| &rest[e + 1..]);
                    hex(field)?
                }
            };
            out.ids.push(id);
        }
        Some(())
    }

    /// The slow path: numbers with a fraction, and errors.
    #[cold]
    fn careful_row(&self, line: &[u8], out: &mut Batch) -> Result<(), String> {
        let fields: Vec<&[u8]> = line.split(|&b| b == b'\t').collect();
        let before = usize::from(self.first != First::Number);
        let expected = before + NUMBERS + CATEGORIES;
        if fields.len() != expected {
            return Err(format!("expected {expected} columns separated by tabs, found {}", fields.len()));
        }
        let (first, fields) = fields.split_at(before);
        out.labels.push(match (self.first, first) {
            (First::Label, [text]) => label(text)?,
            _ => f32::NAN,
        });
        for (column, text) in self.schema.numeric.iter().zip(fields) {
            let x = number(text).map_err(|e| format!("column {}: {e}", column.name))?;
            out.numeric.push(x.map_or(self.missing, |x| self.log1p.applied(column, x)));
        }
        for (column, text) in self.schema.categorical.iter().zip(&fields[NUMBERS..]) {
            let id = hex(text);
            out.ids.push(id.ok_or_else(|| {
                format!("column {}: '{}' is not a hexadecimal id", column.name, shown(text))
            })?);
        }
        Ok(())
    }
}

impl Parse for Criteo {
    const HEADER: bool = false;

    fn header(&self, _line: &[u8]) -> Result<(), String> {
        Ok(())
    }

    #[inline]
    fn line(&self, line: &[u8], out: &mut Batch, _scratch: &mut Scratch) -> Result<(), String> {
        let before = (out.labels.len(), out.numeric.len(), out.ids.len());
        if self.row(line, out).is_none() {
            out.labels.truncate(before.0);
            out.numeric.truncate(before.1);
            out.ids.truncate(before.2);
            self.careful_row(line, out)?;
        }
        self.crosses.append(before.2, &mut out.ids);
        Ok(())
    }
}
