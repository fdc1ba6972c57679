//! From tokens to text, one by one.

use super::{SpacePrefix, Tokenizer};

/// Decodes tokens one by one. Created by [`Tokenizer::stream`].
///
/// The results of [`push`](StreamDecoder::push) and [`finish`](StreamDecoder::finish), concatenated, equal the result
/// of [`Tokenizer::decode`] for all tokens at once. Bytes of an incomplete character are buffered until it is complete
/// or invalid (then it becomes U+FFFD).
#[derive(Debug)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// Special tokens that are not left out.
    written: Vec<u32>,
    /// The next ordinary token begins a text: a space that the tokenizer put there is dropped.
    at_start: bool,
    /// The beginning of an incomplete character: at most three bytes.
    pending: Vec<u8>,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool, at_start: bool) -> Self {
        Self { tokenizer, skip_special, written: Vec::new(), at_start, pending: Vec::new() }
    }

    /// Writes the special tokens `ids` into the text as well.
    #[must_use]
    pub fn writing(self, ids: &[u32]) -> Self {
        Self { written: ids.to_vec(), ..self }
    }

    /// Takes one token and returns the text that is now final, possibly empty. Unknown ids are ignored.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_into(id, &mut text);
        text
    }

    /// As [`push`](StreamDecoder::push), appending to `text`.
    pub(super) fn push_into(&mut self, id: u32, text: &mut String) {
        let Some(bytes) = self.tokenizer.token_bytes(id) else { return };
        let mut bytes = bytes.as_slice();
        if self.tokenizer.is_cut_out(id) {
            self.at_start |= self.tokenizer.prefix == SpacePrefix::AfterSpecial;
            if self.skip_special && self.tokenizer.is_special(id) && !self.written.contains(&id) {
                return;
            }
        } else if std::mem::take(&mut self.at_start) && self.tokenizer.prefix != SpacePrefix::Never {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let keep = incomplete_tail(&self.pending);
        let done = self.pending.len() - keep;
        text.push_str(&String::from_utf8_lossy(&self.pending[..done]));
        self.pending.drain(..done);
    }

    /// The remaining text: a replacement character if the last character is incomplete.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// The number of bytes at the end of `bytes` that are the beginning of a character.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    (from..bytes.len())
        .find(|&at| {
            std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .map_or(0, |at| bytes.len() - at)
}

#[cfg(test)]
mod tests {
    use super::incomplete_tail;

    #[test]
    fn only_what_can_be_completed_is_kept() {
        let cases: [(&[u8], usize); 9] = [
            (b"", 0),
            (b"abc", 0),
            ("aé".as_bytes(), 0),
            (b"a\xc3", 1),
            (b"a\xf0\x9f\x98", 3),
            (b"\xf0\x9f", 2),
            (b"\xe2\x28", 0),
            (b"\x80\x80", 0),
            (b"\xff", 0),
        ];
        for (bytes, keep) in cases {
            assert_eq!(incomplete_tail(bytes), keep, "{bytes:x?}");
        }
    }
}
