//! JSON schemas in the form that llguidance enforces.
//!
//! Five differences between a client's schema and that form:
//!
//! * **References.** A schema moves into a larger one (a tool call). Each target of a `$ref` becomes an entry of the
//!   larger schema's `$defs`, and the reference names this entry (RFC 6901 escapes, URI escapes, anchors and `#` are
//!   resolved here).
//! * **Closed objects.** JSON Schema allows properties that an object does not list; a model invents them. An object that
//!   lists properties gets `additionalProperties: false` unless it says otherwise. With `strict`, every object does.
//!   Properties of an object can be spread over `allOf`, `anyOf`, `oneOf` and `$ref`: all parts of one object are closed
//!   together.
//! * **Names.** `propertyNames` becomes a list of properties or a pattern.
//! * **Annotations.** Unknown values of `format`, and keywords that allow everything, are dropped.
//! * **Options of llguidance.** `x-guidance` of a client is dropped.
//!
//! Source: JSON Schema 2020-12, Core, sections 8.2 (references), 10.2 and 10.3 (applicators); Validation, section 7.2
//! (`format` is an annotation).

use super::property_names::AllowedNames;
use percent_encoding::percent_decode_str;
use scrimp_llm::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};

/// Values of `format` that llguidance enforces.
const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];
/// Maximum number of properties that closing may add to all objects of a schema.
const MAX_ADDED: usize = 20_000;

/// Names of properties, in order.
type Names = Map<String, Value>;

/// One of the conjuncts of an object, or the whole object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    /// Closed: no other schema adds properties.
    Whole,
    /// Open: the schema around it is closed.
    Conjunct,
}

/// Prepares `schema`. The targets of its references become entries of `definitions`, the `$defs` of the root that the
/// result moves into.
///
/// # Errors
/// A reference has no target in the schema, or closing the objects adds too many properties.
pub(super) fn prepare(schema: &Value, strict: bool, definitions: &mut Map<String, Value>) -> Result<Value> {
    let mut preparation = Preparation {
        root: schema,
        strict,
        known: HashMap::new(),
        pending: Vec::new(),
        first: definitions.len(),
        added: 0,
    };
    let prepared = preparation.schema(schema, Part::Whole, &Names::new())?;
    while let Some((target, part, name)) = preparation.pending.pop() {
        let definition = preparation.schema(target, part, &Names::new())?;
        definitions.insert(name, definition);
    }
    Ok(prepared)
}

struct Preparation<'a> {
    root: &'a Value,
    strict: bool,
    /// Names of the definitions, by the address of their schema.
    known: HashMap<(usize, Part), String>,
    /// Definitions that are not written yet.
    pending: Vec<(&'a Value, Part, String)>,
    /// Number of definitions of other schemas.
    first: usize,
    /// Number of properties that closing has added.
    added: usize,
}

impl<'a> Preparation<'a> {
    /// A schema. `outer`: properties that schemas around it list for the same object.
    fn schema(&mut self, schema: &'a Value, part: Part, outer: &Names) -> Result<Value> {
        let Value::Object(map) = schema else { return Ok(schema.clone()) };
        if let (Some(Value::String(reference)), true) = (map.get("$ref"), outer.is_empty())
            && map.keys().all(|key| key == "$ref" || is_annotation(key))
        {
            return Ok(json!({ "$ref": self.reference(reference, part)? }));
        }
        let closing = Closing::of(self, map, part, outer);
        let mut out = Map::new();
        for (key, value) in map {
            if let Some(value) = self.keyword(map, key, value, &closing)? {
                out.insert(key.clone(), value);
            }
        }
        let is_closed = closing.closes();
        if let Closing::Here(names) = closing {
            let Value::Object(listed) = out.entry("properties").or_insert_with(|| json!({})) else {
                return Err(Error::bad_input("`properties` of a schema must be an object"));
            };
            for name in names.keys().filter(|&name| !listed.contains_key(name)).collect::<Vec<_>>() {
                self.added += 1;
                listed.insert(name.clone(), Value::Bool(true));
            }
            if self.added > MAX_ADDED {
                return Err(Error::bad_input(
                    "the schema combines too many objects with too many properties",
                ));
            }
            out.insert("additionalProperties".into(), Value::Bool(false));
        }
        if let Some(names) = map.get("propertyNames") {
            self.bound_names(names, map, &mut out, is_closed)?;
        }
        Ok(Value::Object(out))
    }

    /// The value of a keyword of the schema `map`; `None`: the keyword has no effect.
    fn keyword(
        &mut self,
        map: &'a Map<String, Value>,
        key: &str,
        value: &'a Value,
        closing: &Closing,
    ) -> Result<Option<Value>> {
        let none = Names::new();
        Ok(Some(match (key, value) {
            ("$ref", Value::String(reference)) => self.reference(reference, Part::Conjunct)?.into(),
            (
                "$defs" | "definitions" | "$schema" | "$id" | "id" | "$anchor" | "x-guidance" | "default"
                | "examples",
                _,
            ) => {
                return Ok(None);
            }
            ("format", Value::String(format)) if !FORMATS.contains(&format.as_str()) => return Ok(None),
            ("uniqueItems", Value::Bool(false)) => return Ok(None),
            ("propertyNames", _) => return Ok(None),
            ("unevaluatedProperties", _) if map.contains_key("additionalProperties") => return Ok(None),
            ("unevaluatedProperties" | "unevaluatedItems", Value::Bool(true)) => return Ok(None),
            ("unevaluatedProperties", Value::Bool(false)) if closing.closes() => return Ok(None),
            ("properties" | "patternProperties" | "dependentSchemas", Value::Object(schemas)) => {
                let mut prepared = Map::new();
                for (name, schema) in schemas {
                    prepared.insert(name.clone(), self.schema(schema, Part::Whole, &none)?);
                }
                Value::Object(prepared)
            }
            ("allOf", Value::Array(list)) => self.list(list, Part::Conjunct, &none)?,
            ("anyOf" | "oneOf", Value::Array(list)) => match closing {
                Closing::InBranches(names) => self.list(list, Part::Whole, names)?,
                Closing::Here(_) | Closing::Never => self.list(list, Part::Conjunct, &none)?,
                Closing::Nothing => self.list(list, Part::Whole, &none)?,
            },
            ("prefixItems" | "items", Value::Array(list)) => self.list(list, Part::Whole, &none)?,
            (
                "items"
                | "additionalItems"
                | "additionalProperties"
                | "contains"
                | "not"
                | "unevaluatedItems"
                | "unevaluatedProperties",
                schema,
            ) => self.schema(schema, Part::Whole, &none)?,
            ("if" | "then" | "else", schema) => self.schema(schema, Part::Conjunct, &none)?,
            (_, other) => other.clone(),
        }))
    }

    fn list(&mut self, list: &'a [Value], part: Part, outer: &Names) -> Result<Value> {
        list.iter()
            .map(|schema| self.schema(schema, part, outer))
            .collect::<Result<Vec<_>>>()
            .map(Value::Array)
    }

    /// The reference to the definition of the target.
    fn reference(&mut self, reference: &str, part: Part) -> Result<String> {
        let target = self.resolve(reference).ok_or_else(|| {
            let shown: String = reference.chars().take(100).collect();
            Error::bad_input(format!("the schema refers to {shown:?}, which is not a part of it"))
        })?;
        Ok(self.definition(target, part))
    }

    /// The reference to the definition of `target`, a part of the schema.
    fn definition(&mut self, target: &'a Value, part: Part) -> String {
        let next = self.first + self.known.len();
        let name = self.known.entry((std::ptr::from_ref(target) as usize, part)).or_insert_with(|| {
            let name = format!("d{next}");
            self.pending.push((target, part, name.clone()));
            name
        });
        format!("#/$defs/{name}")
    }

    /// Bounds the properties of `out`, the prepared form of `map`, by `propertyNames`. `is_closed`: it has only the
    /// properties that it lists.
    fn bound_names(
        &mut self,
        names: &'a Value,
        map: &'a Map<String, Value>,
        out: &mut Map<String, Value>,
        is_closed: bool,
    ) -> Result<()> {
        let refused = || {
            Error::bad_input("this form of `propertyNames` cannot be enforced")
                .with_hint("it can be an `enum`, a `const`, a `pattern` or a length")
        };
        let allowed = AllowedNames::of(names, &|reference| self.resolve(reference)).ok_or_else(refused)?;
        if allowed == AllowedNames::Any {
            return Ok(());
        }
        let lists = map.get("properties").and_then(Value::as_object).is_some_and(|listed| !listed.is_empty());
        if map.contains_key("patternProperties") || lists && matches!(allowed, AllowedNames::Pattern(_)) {
            return Err(refused());
        }
        // The schema of properties that are not listed.
        let other = match map.get("additionalProperties") {
            Some(schema @ Value::Object(_)) => json!({ "$ref": self.definition(schema, Part::Whole) }),
            Some(other) => other.clone(),
            None => Value::Bool(!is_closed),
        };
        match allowed {
            AllowedNames::Any => {}
            AllowedNames::Pattern(pattern) => {
                out.insert("patternProperties".into(), json!({ pattern: other }));
            }
            AllowedNames::Set(names) => {
                let listed = out.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
                let schema_of = |name| listed.get(&name).unwrap_or(&other).clone();
                let bounded = names.into_iter().map(|name| (name.clone(), schema_of(name)));
                out.insert("properties".into(), bounded.collect::<Map<_, _>>().into());
            }
        }
        out.insert("additionalProperties".into(), Value::Bool(false));
        Ok(())
    }

    /// The target of a reference: a JSON pointer, an anchor or an identifier within the schema.
    fn resolve(&self, reference: &str) -> Option<&'a Value> {
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let fragment = percent_decode_str(fragment).decode_utf8().ok()?;
        let is_base = |schema: &Value| {
            ["$id", "id"]
                .iter()
                .any(|key| schema[key].as_str().map(|id| id.trim_end_matches('#')) == Some(base))
        };
        let root = match base {
            "" => self.root,
            _ if is_base(self.root) => self.root,
            _ => find(self.root, &is_base)?,
        };
        if fragment.is_empty() || fragment.starts_with('/') {
            return root.pointer(&fragment);
        }
        let anchor = format!("#{fragment}");
        find(root, &|schema| {
            schema["$anchor"] == *fragment || schema["$id"] == anchor || schema["id"] == anchor
        })
    }

    /// Adds the properties that `schema` and its conjuncts list. True: one of them also allows others, or forbids them.
    fn listed(&self, schema: &'a Value, names: &mut Names, seen: &mut HashSet<usize>) -> bool {
        let mut explicit = false;
        // References can be chained deeper than a stack.
        let mut rest = vec![schema];
        while let Some(schema) = rest.pop() {
            let Value::Object(map) = schema else { continue };
            if !seen.insert(std::ptr::from_ref(schema) as usize) {
                continue;
            }
            if let Some(Value::Object(listed)) = map.get("properties") {
                names.extend(listed.keys().map(|name| (name.clone(), Value::Null)));
            }
            explicit |= is_explicit(map);
            let lists = ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| map.get(key)?.as_array());
            let target = map.get("$ref").and_then(Value::as_str).and_then(|r| self.resolve(r));
            let parts: Vec<&Value> = lists.flatten().chain(target).collect();
            rest.extend(parts.into_iter().rev());
        }
        explicit
    }
}

/// The place where an object is closed.
enum Closing {
    /// It lists no properties.
    Nothing,
    /// It says itself which other properties it may have.
    Never,
    /// In this schema, which lists these properties together with its conjuncts.
    Here(Names),
    /// In each alternative, together with these properties.
    InBranches(Names),
}

impl Closing {
    fn of<'a>(preparation: &Preparation<'a>, map: &'a Map<String, Value>, part: Part, outer: &Names) -> Self {
        if part == Part::Conjunct || is_explicit(map) {
            return Self::Never;
        }
        let mut names = outer.clone();
        if let Some(Value::Object(listed)) = map.get("properties") {
            names.extend(listed.keys().map(|name| (name.clone(), Value::Null)));
        }
        let mut seen = HashSet::new();
        let mut explicit = false;
        let target = map.get("$ref").and_then(Value::as_str).and_then(|r| preparation.resolve(r));
        for part in map.get("allOf").and_then(Value::as_array).into_iter().flatten().chain(target) {
            explicit |= preparation.listed(part, &mut names, &mut seen);
        }
        if explicit {
            return Self::Never;
        }
        let branches = |key| map.get(key).and_then(Value::as_array);
        match (branches("anyOf"), branches("oneOf")) {
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => return Self::InBranches(names),
            (Some(any), Some(one)) => {
                for part in any.iter().chain(one) {
                    if preparation.listed(part, &mut names, &mut seen) {
                        return Self::Never;
                    }
                }
            }
        }
        let is_object = match map.get("type") {
            Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
            kind => kind.is_some_and(|kind| kind == "object"),
        };
        let strict =
            preparation.strict && is_object || map.get("unevaluatedProperties") == Some(&Value::Bool(false));
        if names.is_empty() && !strict || map.contains_key("const") || map.contains_key("enum") {
            return Self::Nothing;
        }
        if map.get("type").is_some_and(|kind| kind.is_string() && !is_object) {
            return Self::Nothing;
        }
        Self::Here(names)
    }

    fn closes(&self) -> bool {
        matches!(self, Self::Here(_) | Self::InBranches(_))
    }
}

/// Whether a schema says which properties beside the listed ones it allows.
fn is_explicit(map: &Map<String, Value>) -> bool {
    let says = |key: &str| map.contains_key(key);
    says("additionalProperties")
        || says("patternProperties")
        || map.get("unevaluatedProperties").is_some_and(|value| *value != Value::Bool(false))
}

/// Whether a keyword neither restricts values nor contains a schema that does.
pub(super) fn is_annotation(key: &str) -> bool {
    const ANNOTATIONS: [&str; 15] = [
        "$anchor",
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "examples",
        "id",
        "readOnly",
        "title",
        "writeOnly",
        "x-guidance",
    ];
    ANNOTATIONS.contains(&key)
}

/// The first part of `value` that `wanted` accepts.
fn find<'a>(value: &'a Value, wanted: &dyn Fn(&Value) -> bool) -> Option<&'a Value> {
    if value.is_object() && wanted(value) {
        return Some(value);
    }
    match value {
        Value::Object(map) => map.values().find_map(|part| find(part, wanted)),
        Value::Array(list) => list.iter().find_map(|part| find(part, wanted)),
        _ => None,
    }
}
