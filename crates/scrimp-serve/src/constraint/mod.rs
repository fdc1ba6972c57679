//! Constrained decoding: llguidance computes the tokens that a grammar allows next.
//!
//! A model without a good continuation repeats white space or digits, as long as the grammar allows it. Both are bounded:
//! JSON is written on one line, as `{"a": 1, "b": [2, 3]}`, and [`numbers`] bounds the digits.

mod gbnf;
mod notation;
mod numbers;
mod property_names;
mod schema;
#[cfg(test)]
mod tests;

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
pub(crate) use notation::Notation;

use numbers::{Digits, Numbers};
use scrimp_llm::{Error, Result, tokenizer::Tokenizer};
use serde_json::{Map, Value, json};
use std::{fmt, sync::Arc};

/// Maximum size of a schema, bytes of JSON.
const MAX_SCHEMA: usize = 64 << 10;
/// Stack for compiling a schema, bytes, and bytes per byte of the schema: llguidance recurses into chains of references.
const STACK: (usize, usize) = (4 << 20, 1024);

/// Restricts the tokens of one answer.
pub(crate) trait Constraint: fmt::Debug + Send {
    /// Sets the logits of all tokens that the grammar does not allow next to minus infinity.
    ///
    /// # Errors
    /// The grammar allows no token, or it exceeds llguidance's limits.
    fn mask(&mut self, logits: &mut [f32]) -> Result<()>;
    /// Advances by the sampled token. True: the answer is complete.
    ///
    /// # Errors
    /// The grammar does not allow the token.
    fn accept(&mut self, token: u32) -> Result<bool>;
}

/// Creates constraints for one tokenizer.
pub(crate) struct Constraints {
    factory: ParserFactory,
    digits: Arc<Digits>,
}

/// A function that an answer may call.
#[derive(Debug)]
pub(crate) struct Callable<'a> {
    /// Name of the function.
    pub(crate) name: &'a str,
    /// JSON schema of its arguments; `None`: any object.
    pub(crate) parameters: Option<&'a Value>,
    /// No object has properties that the schema does not list.
    pub(crate) strict: bool,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraints")
    }
}

impl Constraints {
    /// Builds the token trie of `tokenizer`.
    ///
    /// # Errors
    /// The tokenizer has no end token.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let Some(&end) = tokenizer.ends().first() else {
            return Err(Error::bad_input("constrained output needs an end token, and this model has none"));
        };
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                if tokenizer.is_special(id) || tokenizer.is_end(id) {
                    // toktrie's marker of special tokens.
                    let mut marked = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                    marked.extend(bytes);
                    marked
                } else {
                    bytes
                }
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let trie = trie.with_eos_tokens(tokenizer.ends());
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|e| internal(&e))?;
        factory.quiet();
        Ok(Self { factory, digits: Arc::new(Digits::new(words)) })
    }

    /// A constraint to any JSON object.
    ///
    /// # Errors
    /// See [`Constraints::schema`].
    pub(crate) fn json_object(&self) -> Result<Box<dyn Constraint>> {
        self.schema(&json!({ "type": "object" }), false)
    }

    /// A constraint to JSON that matches a schema. With `strict`, no object has properties that the schema does not list.
    /// Without it, an object that lists properties has others only if the schema allows them explicitly.
    ///
    /// # Errors
    /// The schema is too large, or llguidance cannot enforce it.
    pub(crate) fn schema(&self, schema: &Value, strict: bool) -> Result<Box<dyn Constraint>> {
        let mut definitions = Map::new();
        let prepared = prepared(schema, strict, &mut definitions)?;
        self.grammar(prepared, definitions)
    }

    /// A constraint to `{"name": ..., "arguments": ...}`, a call of one of `functions`.
    ///
    /// # Errors
    /// As [`Constraints::schema`].
    pub(crate) fn call(&self, functions: &[Callable<'_>]) -> Result<Box<dyn Constraint>> {
        let mut definitions = Map::new();
        let mut calls = Vec::with_capacity(functions.len());
        for function in functions {
            let arguments = match function.parameters {
                Some(schema) => prepared(schema, function.strict, &mut definitions)?,
                None => json!({ "type": "object" }),
            };
            calls.push(json!({
                "type": "object",
                "properties": { "name": { "const": function.name }, "arguments": arguments },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            }));
        }
        self.grammar(json!({ "anyOf": calls }), definitions)
    }

    /// A constraint to a prepared schema with these `$defs`.
    fn grammar(&self, schema: Value, definitions: Map<String, Value>) -> Result<Box<dyn Constraint>> {
        let mut root = match schema {
            Value::Object(map) => map,
            // `true` and `false` are schemas.
            other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
        };
        root.insert("$defs".into(), Value::Object(definitions));
        // Flexible white space is endless. `oneOf` becomes `anyOf` if llguidance cannot prove that the alternatives exclude
        // each other.
        let options = json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true,
        });
        root.insert("x-guidance".into(), options);
        let root = Value::Object(root);
        let bytes = root.to_string().len();
        let numbers = Numbers::new(Arc::clone(&self.digits));
        self.compile("schema", TopLevelGrammar::from_json_schema(root), bytes, Some(numbers))
    }

    /// A constraint to a text that matches a grammar. Unlike in JSON, numbers can have any number of digits.
    ///
    /// # Errors
    /// The grammar is too large or not valid, or llguidance cannot enforce it.
    pub(crate) fn text(&self, notation: &Notation) -> Result<Box<dyn Constraint>> {
        self.compile("grammar", notation.compile()?, MAX_SCHEMA, None)
    }

    /// Compiles a grammar of `bytes` bytes.
    fn compile(
        &self,
        what: &str,
        grammar: TopLevelGrammar,
        bytes: usize,
        numbers: Option<Numbers>,
    ) -> Result<Box<dyn Constraint>> {
        let stack = STACK.0 + STACK.1 * bytes;
        let matcher = std::thread::scope(|scope| {
            let compile = || Matcher::new(self.factory.create_parser(grammar));
            let thread = std::thread::Builder::new().stack_size(stack).spawn_scoped(scope, compile);
            let thread = thread.map_err(|_| {
                Error::out_of_memory(format!("{stack} bytes of address space for compiling the {what}"))
            })?;
            thread
                .join()
                .map_err(|_| Error::bad_input(format!("the {what} cannot be enforced: llguidance failed")))
        })?;
        match matcher.get_error() {
            Some(e) => Err(Error::bad_input(format!("the {what} cannot be enforced: {}", first_line(&e)))),
            None => Ok(Box::new(Guided { matcher, numbers })),
        }
    }
}

/// A client's schema in the form that llguidance enforces.
fn prepared(schema: &Value, strict: bool, definitions: &mut Map<String, Value>) -> Result<Value> {
    if schema.to_string().len() > MAX_SCHEMA {
        return Err(Error::bad_input(format!("a JSON schema can have at most {MAX_SCHEMA} bytes")));
    }
    schema::prepare(schema, strict, definitions)
}

struct Guided {
    matcher: Matcher,
    /// Bounds of the digits of numbers.
    numbers: Option<Numbers>,
}

impl fmt::Debug for Guided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guided")
    }
}

impl Constraint for Guided {
    fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| internal(&e))?;
        // The logits can have more entries than the tokenizer has tokens.
        let known = allowed.len().min(logits.len());
        logits[known..].fill(f32::NEG_INFINITY);
        allowed.iter_unset_entries(|id| {
            if let Some(logit) = logits.get_mut(id) {
                *logit = f32::NEG_INFINITY;
            }
        });
        if let Some(numbers) = &self.numbers {
            numbers.bound(logits);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool> {
        self.matcher.consume_token(token).map_err(|e| internal(&e))?;
        if let Some(numbers) = &mut self.numbers {
            numbers.accept(token);
        }
        Ok(self.matcher.is_stopped())
    }
}

fn internal(e: &dyn fmt::Display) -> Error {
    Error::bad_input(format!("constrained decoding failed: {}", first_line(&e.to_string())))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
