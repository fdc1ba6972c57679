//! What an answer must look like: constrained decoding by llguidance, which says for each step what tokens may follow.

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use scrimp_llm::{Error, Result, tokenizer::Tokenizer};
use serde_json::{Value, json};
use std::{fmt, sync::Arc};

/// Longest schema or grammar, bytes of JSON.
const MAX_SCHEMA: usize = 64 << 10;

/// Restricts the tokens of one answer.
pub(crate) trait Constraint: fmt::Debug + Send {
    /// Sets the logits of tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// When nothing may come next, or working that out takes too much.
    fn mask(&mut self, logits: &mut [f32]) -> Result<()>;
    /// Takes the token that was drawn; true when the answer is complete.
    ///
    /// # Errors
    /// When the token may not come here.
    fn accept(&mut self, token: u32) -> Result<bool>;
}

/// Makes constraints for one tokenizer.
pub(crate) struct Constraints {
    factory: ParserFactory,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraints")
    }
}

impl Constraints {
    /// Of `tokenizer`'s tokens.
    ///
    /// # Errors
    /// When the tokenizer has no end token.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let Some(&end) = tokenizer.ends().first() else {
            return Err(Error::bad_input("this model has no end token, which a constrained answer needs"));
        };
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                if tokenizer.is_special(id) || tokenizer.is_end(id) {
                    // As toktrie marks tokens that are no text.
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

    /// Any JSON object.
    ///
    /// # Errors
    /// As [`Constraints::schema`].
    pub(crate) fn json_object(&self) -> Result<Box<dyn Constraint>> {
        self.schema(json!({ "type": "object" }))
    }

    /// JSON that fits a schema.
    ///
    /// # Errors
    /// When the schema is too large, or says what cannot be enforced.
    pub(crate) fn schema(&self, schema: Value) -> Result<Box<dyn Constraint>> {
        if schema.to_string().len() > MAX_SCHEMA {
            return Err(Error::bad_input(format!("a JSON schema may have {MAX_SCHEMA} bytes")));
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
        // A model's output may have more rows than the tokenizer has tokens.
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
