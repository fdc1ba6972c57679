//! The fields of a request's JSON object, taken one by one, so that each error names its field and what is left over is
//! known to be unknown.

use super::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// What is left of a request's object.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body. JSON may nest 128 deep.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(ApiError::bad_request("the body must be a JSON object")),
            Err(e) => Err(ApiError::bad_request(format!("the body is no valid JSON: {e}"))),
        }
    }

    /// Of an object inside a request.
    pub(crate) fn of(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// Any value; `null` is none.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A number in `range`.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|x| range.contains(x));
        let (low, high) = (range.start(), range.end());
        number
            .map(Some)
            .ok_or_else(|| ApiError::field(name, format!("{name} must be a number from {low} to {high}")))
    }

    /// A whole number in `range`.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_i64().filter(|x| range.contains(x));
        let (low, high) = (range.start(), range.end());
        let most = if *high == i64::MAX { String::new() } else { format!(" to {high}") };
        number
            .map(Some)
            .ok_or_else(|| ApiError::field(name, format!("{name} must be a whole number from {low}{most}")))
    }

    /// True or false.
    ///
    /// # Errors
    /// When it is neither.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(_) => Err(ApiError::field(name, format!("{name} must be true or false"))),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(ApiError::field(name, format!("{name} must be a string"))),
        }
    }

    /// A string or a list of at most `most` strings.
    ///
    /// # Errors
    /// When it is neither, or a string is empty.
    pub(crate) fn strings(&mut self, name: &str, most: usize) -> Result<Vec<String>, ApiError> {
        let wrong = || {
            ApiError::field(name, format!("{name} must be a string or a list of up to {most}, none empty"))
        };
        let values = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) if values.len() <= most => values,
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

    /// An object.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(ApiError::field(name, format!("{name} must be an object"))),
        }
    }

    /// Fields that say nothing to this server but are allowed.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Refuses what is left.
    ///
    /// # Errors
    /// When something is.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(100).collect();
                let what = format!("this server does not know the field {shown:?}; check its spelling");
                Err(ApiError { param: Some(shown), ..ApiError::bad_request(what) }.code("unknown_field"))
            }
        }
    }
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
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
