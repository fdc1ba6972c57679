//! Calls in the syntax of Python: `NAME(KEY=VALUE, ...)`, alone, in a list, in `print(...)`, or as `NAME.call(...)`.

use super::{
    Call,
    forms::{Signature, call},
};
use serde_json::{Map, Number, Value};

/// Maximum depth of nested lists and dictionaries.
const MAX_DEPTH: usize = 32;

/// The calls that `text` consists of.
pub(super) fn script(text: &str, tools: &[Signature]) -> Option<Vec<Call>> {
    let mut reader = Reader { rest: text.trim() };
    let mut calls = Vec::new();
    let is_list = reader.eat("[");
    while !(reader.rest.is_empty() || is_list && reader.eat("]")) {
        let is_printed = reader.eat("print(");
        calls.push(reader.call(tools)?);
        if is_printed && !reader.eat(")") {
            return None;
        }
        while reader.eat(",") || reader.eat(";") {}
    }
    (reader.rest.is_empty() && !calls.is_empty()).then_some(calls)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// Skips `token`, and white space before and behind it. False: something else follows.
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn name(&mut self) -> Option<String> {
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-' || c == '.'))
            .unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn call(&mut self, tools: &[Signature]) -> Option<Call> {
        let name = self.name()?;
        let name = name.strip_suffix(".call").unwrap_or(&name);
        if !self.eat("(") {
            return None;
        }
        let mut arguments = Map::new();
        while !self.eat(")") {
            let key = self.name()?;
            if !self.eat("=") {
                return None;
            }
            arguments.insert(key, self.value(0)?);
            if !self.eat(",") && !self.rest.starts_with(')') {
                return None;
            }
        }
        call(tools, name, &Value::Object(arguments))
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.rest.chars().next()? {
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            '[' | '(' => {
                let close = if self.eat("[") { "]" } else { ")" };
                if close == ")" {
                    self.eat("(");
                }
                let mut list = Vec::new();
                while !self.eat(close) {
                    list.push(self.value(depth + 1)?);
                    if !self.eat(",") && !self.rest.starts_with(close) {
                        return None;
                    }
                }
                Some(Value::Array(list))
            }
            '{' => {
                self.eat("{");
                let mut map = Map::new();
                while !self.eat("}") {
                    let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
                    let key = self.string(quote)?;
                    if !self.eat(":") {
                        return None;
                    }
                    map.insert(key, self.value(depth + 1)?);
                    if !self.eat(",") && !self.rest.starts_with('}') {
                        return None;
                    }
                }
                Some(Value::Object(map))
            }
            _ => self.atom(),
        }
    }

    /// A number, `True`, `False` or `None`, also in the spelling of JSON.
    fn atom(&mut self) -> Option<Value> {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        match word {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            _ => {
                let digits = word.replace('_', "");
                let integer = digits.parse::<i64>().ok().map(Number::from);
                integer.or_else(|| digits.parse::<f64>().ok().and_then(Number::from_f64)).map(Value::Number)
            }
        }
    }

    fn string(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    c @ ('\\' | '"' | '\'') => text.push(c),
                    other => text.extend(['\\', other]),
                },
                c if c == quote => {
                    self.rest = self.rest[at + 1..].trim_start();
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }
}
