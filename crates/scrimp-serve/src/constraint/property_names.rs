//! `propertyNames`: the names that an object's properties may have.
//!
//! llguidance does not know the keyword. Most schemas name a set (`dict[Enum, X]` of pydantic) or a regular expression;
//! both can be written with `properties`, `patternProperties` and `additionalProperties`.
//!
//! Source: JSON Schema 2020-12, Core, section 10.3.2.4.

use super::schema::is_annotation;
use serde_json::{Map, Value};

/// Maximum length of a chain of references and alternatives.
const MAX_DEPTH: usize = 32;

/// Names that `propertyNames` allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AllowedNames {
    /// Every name.
    Any,
    /// These names, in the order of the schema.
    Set(Vec<String>),
    /// Names that match a regular expression.
    Pattern(String),
}

impl AllowedNames {
    /// Reads the schema of a name; `resolve` finds the target of a reference. `None`: the schema has another form.
    pub(super) fn of<'a>(schema: &'a Value, resolve: &dyn Fn(&str) -> Option<&'a Value>) -> Option<Self> {
        Self::at_depth(schema, resolve, 0)
    }

    fn at_depth<'a>(
        schema: &'a Value,
        resolve: &dyn Fn(&str) -> Option<&'a Value>,
        depth: usize,
    ) -> Option<Self> {
        let map = match schema {
            Value::Bool(true) => return Some(Self::Any),
            Value::Bool(false) => return Some(Self::Set(Vec::new())),
            Value::Object(map) if depth < MAX_DEPTH => map,
            _ => return None,
        };
        let mut allowed = Self::Any;
        for (key, value) in map {
            let by_keyword = match (key.as_str(), value) {
                ("type", kind) => is_string(kind).then_some(Self::Any)?,
                ("$ref", Value::String(reference)) => {
                    Self::at_depth(resolve(reference)?, resolve, depth + 1)?
                }
                ("const", name) => Self::Set(strings(std::slice::from_ref(name))),
                ("enum", Value::Array(names)) => Self::Set(strings(names)),
                ("pattern", Value::String(pattern)) => Self::Pattern(pattern.clone()),
                ("minLength" | "maxLength", _) => Self::Any,
                ("anyOf" | "oneOf", Value::Array(list)) => list
                    .iter()
                    .map(|schema| Self::at_depth(schema, resolve, depth + 1))
                    .try_fold(Self::Set(Vec::new()), |union, next| union.or(next?))?,
                ("allOf", Value::Array(list)) => list
                    .iter()
                    .map(|schema| Self::at_depth(schema, resolve, depth + 1))
                    .try_fold(Self::Any, |both, next| both.and(next?))?,
                // An unknown format is an annotation.
                ("format", _) => Self::Any,
                (key, _) if is_annotation(key) => Self::Any,
                _ => return None,
            };
            allowed = allowed.and(by_keyword)?;
        }
        match lengths(map)? {
            None => Some(allowed),
            Some((low, high)) => match allowed {
                Self::Set(names) => Some(Self::Set(
                    names.into_iter().filter(|name| (low..=high).contains(&name.chars().count())).collect(),
                )),
                any => any.and(Self::Pattern(length_pattern(low, high))),
            },
        }
    }

    /// Names that both allow.
    fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, other) | (other, Self::Any) => Some(other),
            (Self::Set(a), Self::Set(b)) => {
                Some(Self::Set(a.into_iter().filter(|name| b.contains(name)).collect()))
            }
            (Self::Pattern(a), Self::Pattern(b)) if a == b => Some(Self::Pattern(a)),
            _ => None,
        }
    }

    /// Names that one of the two allows.
    fn or(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => Some(Self::Any),
            (Self::Set(mut a), Self::Set(b)) => {
                a.extend(b);
                Some(Self::Set(a))
            }
            (Self::Set(none), pattern @ Self::Pattern(_)) if none.is_empty() => Some(pattern),
            _ => None,
        }
    }
}

/// The names in a list of values. Other values than strings are names of no property.
fn strings(values: &[Value]) -> Vec<String> {
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whether `type` allows strings.
fn is_string(kind: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "string"),
        kind => kind == "string",
    }
}

/// `minLength` and `maxLength`, characters. `None` inside: the schema has neither. `None` outside: they are no lengths.
fn lengths(map: &Map<String, Value>) -> Option<Option<(usize, usize)>> {
    let length = |key: &str, default| match map.get(key) {
        None => Some(default),
        Some(value) => value.as_u64().and_then(|length| usize::try_from(length).ok()),
    };
    let (low, high) = (length("minLength", 0)?, length("maxLength", usize::MAX)?);
    Some((low > 0 || high < usize::MAX).then_some((low, high)))
}

fn length_pattern(low: usize, high: usize) -> String {
    match high {
        usize::MAX => format!("^[\\s\\S]{{{low},}}$"),
        high => format!("^[\\s\\S]{{{low},{high}}}$"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sets_and_patterns_are_read_through_references_and_combinations() {
        let set =
            |names: &[&str]| Some(AllowedNames::Set(names.iter().map(|&name| name.to_owned()).collect()));
        let pattern = |pattern: &str| Some(AllowedNames::Pattern(pattern.to_owned()));
        let cases = [
            (json!(true), Some(AllowedNames::Any)),
            (json!(false), set(&[])),
            (json!({"type": "string"}), Some(AllowedNames::Any)),
            (json!({"$ref": "#/$defs/Kind"}), set(&["a", "b"])),
            (json!({"const": "x"}), set(&["x"])),
            (json!({"enum": ["x", "long"], "maxLength": 2}), set(&["x"])),
            (json!({"anyOf": [{"const": "x"}, {"$ref": "#/$defs/Kind"}]}), set(&["x", "a", "b"])),
            (json!({"allOf": [{"enum": ["x", "a"]}, {"$ref": "#/$defs/Kind"}]}), set(&["a"])),
            (json!({"pattern": "^[a-z]+$"}), pattern("^[a-z]+$")),
            (json!({"minLength": 1}), pattern("^[\\s\\S]{1,}$")),
            (json!({"format": "uuid"}), Some(AllowedNames::Any)),
            (json!({"not": {"const": "x"}}), None),
            (json!({"$ref": "#/missing"}), None),
            (json!({"type": "integer"}), None),
            (json!({"minLength": -1}), None),
        ];
        let target = json!({"enum": ["a", "b", 3], "title": "Kind", "type": "string"});
        let resolve = |reference: &str| (reference == "#/$defs/Kind").then_some(&target);
        for (schema, want) in &cases {
            assert_eq!(AllowedNames::of(schema, &resolve), *want, "{schema}");
        }
    }

    #[test]
    fn endless_references_have_no_names() {
        let cycle = json!({"$ref": "#"});
        assert_eq!(AllowedNames::of(&cycle, &|_| Some(&cycle)), None);
    }
}
