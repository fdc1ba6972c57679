//! From a token to the bytes that it represents.

use super::alphabet;

/// The spelling of bytes in the vocabulary's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's byte alphabet.
    ByteLevel,
    /// SentencePiece: `▁` for a space, `<0xXX>` for a byte.
    SentencePiece,
}

/// SentencePiece's stand-in for a space, U+2581.
pub(super) const SPACE_MARK: &str = "\u{2581}";

/// The byte of a token written `<0xXX>`.
pub(super) fn byte_token(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if hex.len() != 2 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}

impl Spelling {
    /// Bytes of an ordinary token.
    pub(super) fn bytes(self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::ByteLevel => alphabet::decode(text),
            Self::SentencePiece => replace(text, SPACE_MARK.as_bytes(), b" "),
        }
    }
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            rest = after;
        } else {
            out.push(rest[0]);
            rest = &rest[1..];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens() {
        assert_eq!(byte_token(b"<0x0A>"), Some(10));
        assert_eq!(byte_token(b"<0xff>"), Some(255));
        for bad in ["<0x0>", "<0x+1>", "<0x000>", "0x0A", "<0x0A", ""] {
            assert_eq!(byte_token(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn spellings() {
        assert_eq!(Spelling::SentencePiece.bytes("▁a▁▁b".as_bytes()), b" a  b");
        assert_eq!(Spelling::ByteLevel.bytes("Ġa".as_bytes()), b" a");
    }
}
