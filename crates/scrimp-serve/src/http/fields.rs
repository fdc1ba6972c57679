//! The fields of a request's JSON object. Handlers take fields one by one: each error names its field, and a field that
//! no handler took is reported as unknown.

use super::error::ApiError;
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

/// The fields that no handler has taken yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body. JSON can nest 128 levels deep.
    ///
    /// # Errors
    /// The body is not a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(ApiError::bad_request("the body must be a JSON object")),
            Err(e) => Err(ApiError::bad_request(format!("the body is not valid JSON: {e}"))),
        }
    }

    /// The fields of an object inside a request.
    pub(crate) fn of(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// A value that stays untaken. `null` counts as missing.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A value that stays untaken.
    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        self.0.get_mut(name)
    }

    /// Takes any value. `null` counts as missing.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a number in `range`.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|x| range.contains(x));
        let (low, high) = (range.start(), range.end());
        number
            .map(Some)
            .ok_or_else(|| ApiError::field(name, format!("{name} must be a number from {low} to {high}")))
    }

    /// Takes a whole number in `range`.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = whole(&value).filter(|x| range.contains(x));
        let (low, high) = (range.start(), range.end());
        let to = if *high == i64::MAX { String::new() } else { format!(" to {high}") };
        number
            .map(Some)
            .ok_or_else(|| ApiError::field(name, format!("{name} must be a whole number from {low}{to}")))
    }

    /// Takes a boolean.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(_) => Err(ApiError::field(name, format!("{name} must be true or false"))),
        }
    }

    /// Takes a string.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(ApiError::field(name, format!("{name} must be a string"))),
        }
    }

    /// Takes a string or a list of at most `limit` strings.
    ///
    /// # Errors
    /// Another value, or an empty string.
    pub(crate) fn strings(&mut self, name: &str, limit: usize) -> Result<Vec<String>, ApiError> {
        let wrong = || {
            ApiError::field(
                name,
                format!("{name} must be a string or a list of up to {limit} strings, none of them empty"),
            )
        };
        let values = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) if values.len() <= limit => values,
            Some(value @ Value::String(_)) => vec![value],
            Some(_) => return Err(wrong()),
        };
        values
            .into_iter()
            .map(|value| match value {
                Value::String(s) if !s.is_empty() => Ok(s),
                _ => Err(wrong()),
            })
            .collect()
    }

    /// Takes an object.
    ///
    /// # Errors
    /// Another value.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(ApiError::field(name, format!("{name} must be an object"))),
        }
    }

    /// Drops fields that are allowed and have no effect.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Drops fields that have no effect if they are false.
    pub(crate) fn ignore_false(&mut self, names: &[&str]) {
        for name in names {
            if self.0.get(*name) == Some(&Value::Bool(false)) {
                self.0.remove(*name);
            }
        }
    }

    /// Rejects requests with unknown fields. An unknown field without content (`null`, `""`, `[]`, `{}`) is
    /// allowed.
    ///
    /// # Errors
    /// A field is left.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let has_effect = |value: &Value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::Bool(_) | Value::Number(_) => true,
        };
        match self.0.into_iter().find(|(_, value)| has_effect(value)) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(100).collect();
                let what = format!("unknown field {shown:?}; check its spelling");
                Err(ApiError { param: Some(shown), ..ApiError::bad_request(what) }.code("unknown_field"))
            }
        }
    }
}

/// The unknown fields that the log has named. Their number is bounded, because clients choose the names.
static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// Maximum number of names in [`LOGGED`].
const MAX_LOGGED: usize = 256;

impl Fields {
    /// Drops the remaining fields, as servers with `api` do. The log names each one once.
    pub(crate) fn log_rest(self, api: &str) {
        for (name, _) in self.0.into_iter().filter(|(_, value)| !value.is_null()) {
            let name = format!("{api}: {}", name.chars().take(100).collect::<String>());
            let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.len() < MAX_LOGGED && logged.insert(name.clone()) {
                tracing::warn!("requests have an unknown field without an effect: {name:?}");
            }
        }
    }
}

/// A whole number, also one that is written as `5.0`.
fn whole(value: &Value) -> Option<i64> {
    const EXACT: f64 = (1i64 << 53) as f64;
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= EXACT).map(|x| x as i64);
    value.as_i64().or_else(float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn errors_name_their_field() {
        let mut f = fields(r#"{"a": -1, "b": "x", "c": null, "d": [1], "e": 1.5, "typo": 1}"#);
        let message = |e: ApiError| e.message;
        assert_eq!(message(f.number("a", 0.0..=2.0).unwrap_err()), "a must be a number from 0 to 2");
        assert_eq!(message(f.integer("e", 1..=i64::MAX).unwrap_err()), "e must be a whole number from 1");
        assert!(f.boolean("b").is_err() && f.strings("d", 4).is_err());
        assert_eq!(f.string("c").unwrap(), None);
        let e = f.finish().unwrap_err();
        assert_eq!((e.param.as_deref(), e.code), (Some("typo"), Some("unknown_field")));
        for bad in ["", "[]", "{", "{\"a\": NaN}", "{\"a\": \"\u{1}\"}"] {
            assert!(Fields::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let mut f = fields(r#"{"n": 5.0, "m": 5.5, "functions": [], "audio": null, "x": {}, "y": ""}"#);
        assert_eq!(f.integer("n", 1..=9).unwrap(), Some(5));
        assert!(f.integer("m", 1..=9).is_err());
        assert!(f.finish().is_ok());
        assert!(fields(r#"{"functions": [1]}"#).finish().is_err());
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
