//! Cutting a text into windows that fit a model's context.

use scrimp_llm::{Error, Result};
use std::path::Path;

/// The text in `path`, byte for byte: a byte order mark and line endings are unchanged.
///
/// # Errors
/// The file cannot be read, or is not UTF-8 (the message has the position).
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::bad_input(format!("{}: byte {at} does not belong to UTF-8 text", path.display()))
            .with_hint("convert the text to UTF-8, for example with iconv")
    })
}

/// Non-overlapping windows over a text's tokens.
///
/// Each is `context` tokens long: the beginning-of-text token, if the tokenizer adds one, then the next tokens of the
/// text. A last partial window is dropped. The first position of a window has no predecessor and is not scored.
#[derive(Debug)]
pub struct Windows {
    tokens: Vec<u32>,
    bos: Option<u32>,
    context: usize,
}

impl Windows {
    /// Windows of `context` tokens over the first `max_tokens` (`None`: all) of `tokens`, for a model with a
    /// context of `model_context` tokens.
    ///
    /// # Errors
    /// `context` is too short to score a token or longer than the model's context, or the text is too short for one
    /// window.
    pub fn new(
        mut tokens: Vec<u32>,
        bos: Option<u32>,
        context: usize,
        max_tokens: Option<usize>,
        model_context: usize,
    ) -> Result<Self> {
        if context < 2 {
            return Err(Error::bad_input(format!(
                "a context of {context} leaves nothing to predict, take 2 or more"
            )));
        }
        if context > model_context {
            return Err(Error::bad_input(format!(
                "a context of {context} is more than the model's {model_context}"
            ))
            .with_hint(format!("use `context` {model_context} or less")));
        }
        tokens.truncate(max_tokens.unwrap_or(usize::MAX));
        let windows = Self { tokens, bos, context };
        if windows.count() == 0 {
            return Err(Error::bad_input(format!(
                "the text's {} tokens do not fill one window of {context}",
                windows.tokens.len()
            ))
            .with_hint("use a longer text, or a smaller `context`"));
        }
        Ok(windows)
    }

    fn step(&self) -> usize {
        self.context - usize::from(self.bos.is_some())
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.step()
    }

    /// Number of scored positions.
    pub fn scored(&self) -> usize {
        self.count() * (self.context - 1)
    }

    /// The windows, each of `context` tokens.
    pub fn iter(&self) -> impl Iterator<Item = Vec<u32>> + '_ {
        self.tokens.chunks_exact(self.step()).map(|w| self.bos.into_iter().chain(w.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_with_and_without_bos() {
        let all = |w: Windows| (w.scored(), w.iter().collect::<Vec<_>>());
        let tokens: Vec<u32> = (1..=10).collect();
        let plain = Windows::new(tokens.clone(), None, 4, None, 100).unwrap();
        assert_eq!(all(plain), (6, vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8]]));
        let bos = Windows::new(tokens.clone(), Some(0), 4, Some(7), 100).unwrap();
        assert_eq!(all(bos), (6, vec![vec![0, 1, 2, 3], vec![0, 4, 5, 6]]));
        // The reference: 8192 tokens, context 512, with and without BOS.
        for bos in [None, Some(2)] {
            let w = Windows::new(vec![5; 40_000], bos, 512, Some(8192), 2048).unwrap();
            assert_eq!(w.scored(), 8176);
        }
    }

    #[test]
    fn unusable_windows_are_refused() {
        let error =
            |n, context, max| Windows::new(vec![1; n], None, context, max, 64).unwrap_err().to_string();
        assert_eq!(error(10, 1, None), "a context of 1 leaves nothing to predict, take 2 or more");
        assert_eq!(error(100, 65, None), "a context of 65 is more than the model's 64");
        assert_eq!(error(10, 16, None), "the text's 10 tokens do not fill one window of 16");
        assert_eq!(error(100, 16, Some(15)), "the text's 15 tokens do not fill one window of 16");
        assert_eq!(error(0, 16, None), "the text's 0 tokens do not fill one window of 16");
    }

    #[test]
    fn texts_must_be_utf8_and_are_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        std::fs::write(&path, b"\xef\xbb\xbfa\r\nb").unwrap();
        assert_eq!(read_text(&path).unwrap(), "\u{feff}a\r\nb");
        std::fs::write(&path, b"good\xff").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.ends_with("text: byte 4 does not belong to UTF-8 text"), "{error}");
        assert!(read_text(&dir.path().join("none")).is_err());
    }
}
