//! Constrained decoding: llguidance computes the tokens that a grammar allows next.

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use scrimp_llm::{Error, Result, tokenizer::Tokenizer};
use serde_json::{Value, json};
use std::{fmt, sync::Arc};

/// Maximum size of a schema, bytes of JSON.
const MAX_SCHEMA: usize = 64 << 10;

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
        Ok(Self { factory })
    }

    /// A constraint to any JSON object.
    ///
    /// # Errors
    /// See [`Constraints::schema`].
    pub(crate) fn json_object(&self) -> Result<Box<dyn Constraint>> {
        self.schema(json!({ "type": "object" }))
    }

    /// A constraint to JSON that matches a schema.
    ///
    /// # Errors
    /// The schema is too large, or llguidance cannot enforce it.
    pub(crate) fn schema(&self, schema: Value) -> Result<Box<dyn Constraint>> {
        if schema.to_string().len() > MAX_SCHEMA {
            return Err(Error::bad_input(format!("a JSON schema can have at most {MAX_SCHEMA} bytes")));
        }
        self.grammar(TopLevelGrammar::from_json_schema(schema))
    }

    fn grammar(&self, grammar: TopLevelGrammar) -> Result<Box<dyn Constraint>> {
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            Some(e) => Err(Error::bad_input(format!("the schema cannot be enforced: {}", first_line(&e)))),
            None => Ok(Box::new(Guided { matcher })),
        }
    }
}

struct Guided {
    matcher: Matcher,
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
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool> {
        self.matcher.consume_token(token).map_err(|e| internal(&e))?;
        Ok(self.matcher.is_stopped())
    }
}

fn internal(e: &dyn fmt::Display) -> Error {
    Error::bad_input(format!("constrained decoding failed: {}", first_line(&e.to_string())))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
