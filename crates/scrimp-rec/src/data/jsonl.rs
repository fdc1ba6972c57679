//! JSON lines: an object per line. Unknown keys are ignored; absent and null keys are missing values.

use super::{
    Batch,
    roles::{Filler, Role},
    text::{Parse, Scratch},
};
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use std::{collections::HashMap, fmt};

pub(super) struct JsonLines {
    filler: Filler,
    roles: HashMap<String, Role>,
}

impl JsonLines {
    pub(super) fn new(filler: Filler) -> Self {
        let schema = &filler.schema;
        let numbers = schema.numeric.iter().map(|c| &c.name);
        let names = numbers.chain(schema.categorical.iter().map(|c| &c.name)).chain([&schema.label]);
        let roles = names.map(|n| (n.clone(), filler.role(n))).collect();
        Self { filler, roles }
    }
}

/// A value as text, as in a CSV file.
pub(super) struct Text<'a>(pub(super) &'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();
    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a text, true, false or null")
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.0.extend_from_slice(if v { b"true" } else { b"false" });
        Ok(())
    }
    fn visit_u64<E>(self, v: u64) -> Result<(), E> {
        self.0.extend_from_slice(v.to_string().as_bytes());
        Ok(())
    }
    fn visit_i64<E>(self, v: i64) -> Result<(), E> {
        self.0.extend_from_slice(v.to_string().as_bytes());
        Ok(())
    }
    fn visit_f64<E>(self, v: f64) -> Result<(), E> {
        self.0.extend_from_slice(v.to_string().as_bytes());
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

struct Object<'a> {
    parser: &'a JsonLines,
    out: &'a mut Batch,
    scratch: &'a mut Vec<u8>,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let filler = &self.parser.filler;
        let row = filler.begin(self.out);
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let Some(&role) = self.parser.roles.get(&*key).filter(|&&role| role != Role::Ignored) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            self.scratch.clear();
            map.next_value_seed(Text(self.scratch))?;
            filler.set(row, role, self.scratch, self.out).map_err(de::Error::custom)?;
        }
        if filler.labels() && self.out.labels.last().is_some_and(|y| y.is_nan()) {
            return Err(de::Error::custom(format!("there is no label '{}'", filler.schema.label)));
        }
        filler.end(row, self.out);
        Ok(())
    }
}

impl Parse for JsonLines {
    const HEADER: bool = false;

    fn header(&self, _line: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn line(&self, line: &[u8], out: &mut Batch, scratch: &mut Scratch) -> Result<(), String> {
        let mut json = serde_json::Deserializer::from_slice(line);
        let object = Object { parser: self, out, scratch: &mut scratch.bytes };
        let parsed = de::Deserializer::deserialize_map(&mut json, object).and_then(|()| json.end());
        parsed.map_err(|e| {
            let text = e.to_string();
            // The line number in this message is always 1; the caller adds the line of the file.
            match text.rsplit_once(" at line 1 column ") {
                Some((what, column)) => format!("{what} (column {column})"),
                None => text,
            }
        })
    }
}
