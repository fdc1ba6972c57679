//! The typed key/value pairs of a GGUF file.

use std::{collections::HashMap, ops::Range, sync::Arc};

use super::types::ValueType;
use crate::{
    error::{Error, Result},
    load::Source,
};

/// The place of one value in the file. The parser has checked its bounds.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) kind: ValueType,
    /// For arrays: the items' type and count.
    pub(super) items: Option<(ValueType, usize)>,
    /// The value's bytes, without the length of a string or the header of an array.
    pub(super) range: Range<usize>,
}

/// Keys and values of a GGUF file.
///
/// Values stay in the file and are decoded on demand, so a vocabulary of 262,144 tokens costs nothing until it is read.
/// Getters return `Ok(None)` for a missing key. A value of another type is an error that names file, key and types.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    source: Arc<Source>,
    keys: Vec<String>,
    values: HashMap<String, Value>,
}

impl GgufMetadata {
    pub(super) fn new(source: Arc<Source>) -> Self {
        Self { source, keys: Vec::new(), values: HashMap::new() }
    }

    /// Adds a pair. Returns false for a duplicate key.
    pub(super) fn insert(&mut self, key: &str, value: Value) -> bool {
        if self.values.contains_key(key) {
            return false;
        }
        self.keys.push(key.to_owned());
        self.values.insert(key.to_owned(), value);
        true
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// All keys, in the file's order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    /// True when there is a value of any type for `key`.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Type of the value for `key`, and for arrays the items' type and count.
    pub fn kind(&self, key: &str) -> Option<(ValueType, Option<(ValueType, usize)>)> {
        self.values.get(key).map(|v| (v.kind, v.items))
    }

    /// A GGUF file without tensors that has the pairs with `wanted` keys, byte for byte.
    pub fn excerpt(&self, wanted: impl Fn(&str) -> bool) -> Vec<u8> {
        let keys: Vec<&String> = self.keys.iter().filter(|key| wanted(key)).collect();
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
        out.extend((keys.len() as u64).to_le_bytes());
        for key in keys {
            let value = &self.values[key];
            out.extend((key.len() as u64).to_le_bytes());
            out.extend(key.as_bytes());
            out.extend(value.kind.number().to_le_bytes());
            match value.items {
                Some((kind, count)) => {
                    out.extend(kind.number().to_le_bytes());
                    out.extend((count as u64).to_le_bytes());
                }
                None if value.kind == ValueType::Str => out.extend((value.range.len() as u64).to_le_bytes()),
                None => {}
            }
            out.extend(&self.source[value.range.clone()]);
        }
        out
    }

    /// A string.
    ///
    /// # Errors
    /// When the value is no string or is not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        if value.kind != ValueType::Str {
            return Err(self.wrong_type(key, value, "a string"));
        }
        match std::str::from_utf8(&self.source[value.range.clone()]) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(self.source.bad(format!("metadata {key} is not UTF-8"))),
        }
    }

    /// A non-negative integer of any stored width.
    ///
    /// # Errors
    /// When the value is no integer or is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let number = value
            .items
            .is_none()
            .then(|| integer(value.kind, &self.source[value.range.clone()]))
            .flatten()
            .ok_or_else(|| self.wrong_type(key, value, "an integer"))?;
        u64::try_from(number)
            .map(Some)
            .map_err(|_| self.source.bad(format!("metadata {key} is {number}, but must not be negative")))
    }

    /// A non-negative integer of any stored width that fits in 32 bits.
    ///
    /// # Errors
    /// As [`GgufMetadata::u64`], and when it does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        let Some(number) = self.u64(key)? else { return Ok(None) };
        u32::try_from(number)
            .map(Some)
            .map_err(|_| self.source.bad(format!("metadata {key} is {number}, too large")))
    }

    /// A floating-point number (an f64 is rounded).
    ///
    /// # Errors
    /// When the value is no floating-point number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match value.kind {
            ValueType::F32 | ValueType::F64 => Ok(float(value.kind, &self.source[value.range.clone()])),
            _ => Err(self.wrong_type(key, value, "a floating-point number")),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        if value.kind != ValueType::Bool {
            return Err(self.wrong_type(key, value, "a truth value"));
        }
        Ok(Some(self.source[value.range.start] != 0))
    }

    /// The strings of an array as bytes, one after another. They need not be UTF-8.
    ///
    /// # Errors
    /// When the value is no array of strings.
    pub fn bytes_array(&self, key: &str) -> Result<Option<StringItems<'_>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match value.items {
            Some((ValueType::Str, count)) => {
                Ok(Some(StringItems { bytes: &self.source[value.range.clone()], left: count }))
            }
            _ => Err(self.wrong_type(key, value, "an array of strings")),
        }
    }

    /// The strings of an array, borrowed from the file.
    ///
    /// # Errors
    /// When the value is no array of strings, or one of them is not UTF-8 (the error says which).
    pub fn str_array(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(items) = self.bytes_array(key)? else { return Ok(None) };
        let decode = |(i, item)| {
            std::str::from_utf8(item)
                .map_err(|_| self.source.bad(format!("item {i} of metadata {key} is not UTF-8")))
        };
        items.enumerate().map(decode).collect::<Result<Vec<_>>>().map(Some)
    }

    /// An array of floating-point numbers.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn f32_array(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match value.items {
            Some((kind @ (ValueType::F32 | ValueType::F64), _)) => Ok(Some(
                self.source[value.range.clone()]
                    .chunks_exact(kind.min_bytes())
                    .filter_map(|item| float(kind, item))
                    .collect(),
            )),
            _ => Err(self.wrong_type(key, value, "an array of floating-point numbers")),
        }
    }

    /// An array of integers of any stored width (truth values count as 0 and 1).
    ///
    /// # Errors
    /// When the value is of another type or an item does not fit in 32 bits.
    pub fn i32_array(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong = || self.wrong_type(key, value, "an array of integers");
        let (kind, _) = value.items.ok_or_else(wrong)?;
        if kind == ValueType::Str {
            return Err(wrong());
        }
        self.source[value.range.clone()]
            .chunks_exact(kind.min_bytes())
            .map(|item| {
                let number =
                    if kind == ValueType::Bool { Some(i128::from(item[0])) } else { integer(kind, item) };
                number.and_then(|n| i32::try_from(n).ok()).ok_or_else(wrong)
            })
            .collect::<Result<Vec<_>>>()
            .map(Some)
    }

    /// The error for a missing required key.
    pub fn missing(&self, key: &str) -> Error {
        self.source.bad(format!("metadata {key} is missing"))
    }

    fn wrong_type(&self, key: &str, value: &Value, wanted: &str) -> Error {
        let found = match value.items {
            Some((kind, count)) => format!("an array of {count} x {}", kind.name()),
            None => format!("of type {}", value.kind.name()),
        };
        self.source.bad(format!("metadata {key} is {found}, but should be {wanted}"))
    }
}

/// The strings of an array, borrowed from the file. Made by [`GgufMetadata::bytes_array`].
#[derive(Debug, Clone)]
pub struct StringItems<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for StringItems<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        // The parser has checked the whole array, so neither split can fail. A failure would only end the iteration.
        let (len, rest) = self.bytes.split_first_chunk::<8>()?;
        let (item, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.bytes = rest;
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for StringItems<'_> {}

fn integer(kind: ValueType, bytes: &[u8]) -> Option<i128> {
    Some(match kind {
        ValueType::U8 => i128::from(*bytes.first()?),
        ValueType::I8 => i128::from(i8::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::U16 => i128::from(u16::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::I16 => i128::from(i16::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::U32 => i128::from(u32::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::I32 => i128::from(i32::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::U64 => i128::from(u64::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::I64 => i128::from(i64::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::F32 | ValueType::F64 | ValueType::Bool | ValueType::Str | ValueType::Array => return None,
    })
}

fn float(kind: ValueType, bytes: &[u8]) -> Option<f32> {
    match kind {
        ValueType::F32 => Some(f32::from_le_bytes(*bytes.first_chunk()?)),
        ValueType::F64 => Some(f64::from_le_bytes(*bytes.first_chunk()?) as f32),
        _ => None,
    }
}
