//! The calibration text. Its activations are the inputs for which matrices are compressed.

use scrimp_llm::{
    builtin_text,
    checkpoint::Checkpoint,
    error::{Error, Result},
    tokenizer::Tokenizer,
};
use sha2::{Digest, Sha256};

/// Default of the maximum number of tokens.
pub const MAX_TOKENS: usize = 16 << 10;
/// Tokens of a window: tokens attend to each other within a window.
const WINDOW: usize = 512;

/// Token ids in windows of equal length.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The windows, one after another.
    pub tokens: Vec<u32>,
    /// Tokens per window.
    pub window: usize,
}

impl Calibration {
    /// Windows of 512 tokens (fewer for models with a shorter context) over the first `max_tokens` of `text`. If the
    /// tokenizer adds a begin-of-text token, each window begins with it. `None` uses the built-in texts: alternating
    /// windows of prose and of source code, then the rest of the longer text.
    ///
    /// # Errors
    /// When the text is too short for one window, or holds a token that the model does not have.
    pub fn new(
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        text: Option<&str>,
        max_tokens: usize,
    ) -> Result<Self> {
        let config = checkpoint.config();
        let encode = |text: &str| tokenizer.encode(text, false, false);
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let window = WINDOW.min(config.context_length);
        let step = window - usize::from(bos.is_some());
        let ids = match text {
            Some(text) => encode(text)?,
            None => in_turn(&encode(builtin_text::TEXT)?, &encode(builtin_text::CODE)?, step.max(1)),
        };
        let tokens: Vec<u32> = ids[..ids.len().min(max_tokens)]
            .chunks_exact(step.max(1))
            .flat_map(|ids| bos.into_iter().chain(ids.iter().copied()))
            .collect();
        if tokens.is_empty() || step == 0 {
            return Err(Error::bad_input(format!(
                "the calibration text's {} tokens do not fill one window of {window}",
                ids.len()
            ))
            .with_hint("give a longer text with `calibration` (10,000 words or more), or none at all"));
        }
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= config.vocab_size) {
            return Err(Error::bad_input(format!("token {token} of the text is outside the vocabulary")));
        }
        Ok(Self { tokens, window })
    }

    /// The first `n` tokens, rounded to whole windows (at least one).
    pub fn first(&self, n: usize) -> Self {
        let windows = (n / self.window).max(1);
        let end = (windows * self.window).min(self.tokens.len());
        Self { tokens: self.tokens[..end].to_vec(), window: self.window }
    }

    /// A hash of the tokens and the window size.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.window.to_le_bytes());
        self.tokens.iter().for_each(|t| hash.update(t.to_le_bytes()));
        hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
    }
}

/// Alternating whole windows of `a` and `b`, then the remaining windows of the longer one.
fn in_turn(a: &[u32], b: &[u32], window: usize) -> Vec<u32> {
    let (mut a, mut b) = (a.chunks_exact(window), b.chunks_exact(window));
    let mut out = Vec::new();
    loop {
        let next = [a.next(), b.next()];
        if next == [None; 2] {
            return out;
        }
        next.into_iter().flatten().for_each(|ids| out.extend_from_slice(ids));
    }
}

#[cfg(test)]
mod tests {
    use super::in_turn;

    #[test]
    fn windows_of_two_texts_take_turns() {
        assert_eq!(in_turn(&[1, 2, 3, 4, 5, 6, 7], &[10, 11, 12], 2), [1, 2, 10, 11, 3, 4, 5, 6]);
        assert_eq!(in_turn(&[1], &[2], 2), [0; 0]);
    }
}
