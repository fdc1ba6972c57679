//! The columns of a click log, and the conversion of their values to numbers and ids.
//!
//! | column | value for the model |
//! |---|---|
//! | label | 0.0 or 1.0 |
//! | number `x` | `(f(x) - mean) * scale`, where f is the identity or `sign(x) ln(1 + abs(x))`; missing: 0 |
//! | category | a `u64` ([`Kind`], [`id_of`]); missing: [`MISSING`] |
//! | cross of categories | a hash of their ids ([`cross`]) |
//!
//! An id depends on its value only: it is the same in all file formats, on all machines and in all versions.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, path::Path};
use xxhash_rust::xxh3::xxh3_64;

/// The id of an empty or absent category.
pub const MISSING: u64 = u64::MAX;

/// The label, the numeric columns and the categorical columns, in the order of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// Name of the label's column.
    #[serde(default = "default_label")]
    pub label: String,
    /// Numeric columns.
    #[serde(default)]
    pub numeric: Vec<Numeric>,
    /// Categorical columns.
    #[serde(default)]
    pub categorical: Vec<Categorical>,
    /// Crosses: further categories, each from the named columns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crosses: Vec<Vec<String>>,
}

/// A numeric column: `(f(x) - mean) * scale`, and 0 for a missing `x`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, from = "NumericForm")]
pub struct Numeric {
    /// Column name.
    pub name: String,
    /// `f`.
    pub transform: Transform,
    /// Subtracted after the transform.
    pub mean: f32,
    /// Multiplied after that.
    pub scale: f32,
}

/// First step of a numeric column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transform {
    /// `x`.
    #[default]
    Identity,
    /// `sign(x) ln(1 + abs(x))`: counts and amounts.
    Log1p,
}

/// A categorical column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, from = "CategoricalForm")]
pub struct Categorical {
    /// Column name.
    pub name: String,
    /// The conversion to an id.
    pub kind: Kind,
}

/// Conversions of the text of a category to an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Any text ([`id_of`]).
    #[default]
    Text,
    /// As `Text`, but a negative integer is an error.
    Id,
    /// Up to 16 hexadecimal digits, which are the id (Criteo).
    Hex,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum NumericForm {
    Name(String),
    Full {
        name: String,
        #[serde(default)]
        transform: Transform,
        #[serde(default)]
        mean: f32,
        #[serde(default = "one")]
        scale: f32,
    },
}

impl From<NumericForm> for Numeric {
    fn from(form: NumericForm) -> Self {
        match form {
            NumericForm::Name(name) => Self::new(name, Transform::Identity),
            NumericForm::Full { name, transform, mean, scale } => Self { name, transform, mean, scale },
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum CategoricalForm {
    Name(String),
    Full {
        name: String,
        #[serde(default)]
        kind: Kind,
    },
}

impl From<CategoricalForm> for Categorical {
    fn from(form: CategoricalForm) -> Self {
        match form {
            CategoricalForm::Name(name) => Self { name, kind: Kind::Text },
            CategoricalForm::Full { name, kind } => Self { name, kind },
        }
    }
}

fn one() -> f32 {
    1.0
}

fn default_label() -> String {
    "label".to_owned()
}

impl Numeric {
    /// A column with `transform`, mean 0 and scale 1.
    pub fn new(name: impl Into<String>, transform: Transform) -> Self {
        Self { name: name.into(), transform, mean: 0.0, scale: 1.0 }
    }

    /// The model's value for `x`.
    #[inline]
    pub fn apply(&self, x: f32) -> f32 {
        (self.transform.apply(x) - self.mean) * self.scale
    }
}

impl Transform {
    /// `f(x)`.
    #[inline]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::Identity => x,
            Self::Log1p => x.abs().ln_1p().copysign(x),
        }
    }
}

impl Schema {
    /// Criteo's schema: `label`, `I1` to `I13` with `log1p`, `C1` to `C26` in hexadecimal.
    pub fn criteo() -> Self {
        Self {
            label: default_label(),
            numeric: (1..=13).map(|i| Numeric::new(format!("I{i}"), Transform::Log1p)).collect(),
            categorical: (1..=26).map(|i| Categorical { name: format!("C{i}"), kind: Kind::Hex }).collect(),
            crosses: Vec::new(),
        }
    }

    /// The number of numbers in a row.
    pub fn n_numeric(&self) -> usize {
        self.numeric.len()
    }

    /// The number of ids in a row: categorical columns, then crosses.
    pub fn n_categorical(&self) -> usize {
        self.categorical.len() + self.crosses.len()
    }

    /// The names of the ids in a row, in order; a cross is `a x b`.
    pub fn categorical_names(&self) -> Vec<String> {
        let columns = self.categorical.iter().map(|c| c.name.clone());
        columns.chain(self.crosses.iter().map(|c| c.join(" x "))).collect()
    }

    /// Reads a TOML file: `label`, `numeric`, `categorical`, `crosses`.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has unknown keys, or is inconsistent ([`Schema::check`]).
    pub fn from_toml_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let schema: Self = toml::from_str(&text)
            .map_err(|e| Error::bad_file(path, format!("not a schema: {}", e.to_string().trim_end())))?;
        schema.check().map_err(|e| Error::bad_file(path, e.to_string()))?;
        Ok(schema)
    }

    /// The schema as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Checks that names are unique, that there is a feature, that crosses consist of categorical columns, and that numbers are
    /// finite.
    ///
    /// # Errors
    /// A check fails.
    pub fn check(&self) -> Result<()> {
        let mut names: Vec<&str> = vec![&self.label];
        names.extend(self.numeric.iter().map(|n| n.name.as_str()));
        names.extend(self.categorical.iter().map(|c| c.name.as_str()));
        names.sort_unstable();
        if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::bad_input(format!("the schema has column '{}' twice", w[0])));
        }
        if names.len() == 1 {
            return Err(Error::bad_input("the schema has no numeric and no categorical column"));
        }
        if let Some(n) = self.numeric.iter().find(|n| !n.mean.is_finite() || !n.scale.is_finite()) {
            return Err(Error::bad_input(format!("column '{}': mean and scale must be finite", n.name)));
        }
        for cross in &self.crosses {
            if cross.len() < 2 {
                return Err(Error::bad_input("a cross needs at least two categorical columns"));
            }
            for name in cross {
                if !self.categorical.iter().any(|c| c.name == *name) {
                    return Err(Error::bad_input(format!(
                        "cross '{}': there is no categorical column '{name}'",
                        cross.join(" x ")
                    )));
                }
            }
        }
        Ok(())
    }
}

/// The id of a category's text: [`MISSING`] for the empty text, the number for a decimal integer of at most 18 digits without
/// sign and leading zeros, else XXH3 (64 bits, seed 0) of the bytes.
///
/// Texts that tables write for the same value have the same id: `69.0` is `69`, `1e+16` is `10000000000000000`, `true` (also
/// `True`, `TRUE`) is 1, `false` is 0, `NaN` and `nan` are missing.
#[inline]
pub fn id_of(text: &[u8]) -> u64 {
    match text {
        [] => MISSING,
        [b'0'] => 0,
        [b'1'..=b'9', rest @ ..] if text.len() <= 18 && rest.iter().all(u8::is_ascii_digit) => {
            text.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0'))
        }
        _ => other_id(text),
    }
}

/// [`id_of`] for texts other than short integers.
fn other_id(text: &[u8]) -> u64 {
    match text {
        b"true" | b"True" | b"TRUE" => 1,
        b"false" | b"False" | b"FALSE" | b"-0" => 0,
        b"NaN" | b"nan" => MISSING,
        [b'0'..=b'9', ..] | [b'-', b'0'..=b'9', ..] => match same_number(text) {
            Some(number) => id_of(&number),
            None => xxh3_64(text),
        },
        _ => xxh3_64(text),
    }
}

/// A shorter text of the same number: without a fraction of zeros, or without an exponent. An exponent needs its sign, as
/// tables write it: `12e4` may be a hexadecimal text.
fn same_number(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let sign = usize::from(text.first() == Some(&b'-'));
    let digits = text[sign..].iter().take_while(|c| c.is_ascii_digit()).count();
    let (whole, rest) = text.split_at(sign + digits);
    if let [b'.', zeros @ ..] = rest
        && !zeros.is_empty()
        && zeros.iter().all(|&c| c == b'0')
    {
        return Some(Cow::Borrowed(whole));
    }
    let exponent = rest.iter().position(|c| matches!(c, b'e' | b'E'))?;
    if !matches!(rest.get(exponent + 1), Some(b'+' | b'-')) {
        return None;
    }
    let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    number.is_finite().then(|| Cow::Owned(number.to_string().into_bytes()))
}

/// The id of a cross: a chain of XXH3 (64 bits, seed 0) over the ids, little-endian. A missing part counts as an id; a cross is
/// never missing.
#[inline]
pub fn cross(ids: impl IntoIterator<Item = u64>) -> u64 {
    let mut h = 0x9e37_79b9_7f4a_7c15u64;
    for id in ids {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&h.to_le_bytes());
        bytes[8..].copy_from_slice(&id.to_le_bytes());
        h = xxh3_64(&bytes);
    }
    h
}
