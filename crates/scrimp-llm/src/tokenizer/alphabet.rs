//! GPT-2's byte alphabet: one printable character for each byte, so that a vocabulary of bytes can be stored as text.
//!
//! Printable Latin-1 characters represent themselves; the other 68 bytes, in order, are U+0100, U+0101, ... (a space
//! is `Ġ`, a line feed `Ċ`).

/// The characters of all 256 bytes, in UTF-8.
pub(super) struct Alphabet {
    chars: [([u8; 2], u8); 256],
}

/// True for bytes that represent themselves.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// Byte of each of the characters U+0100 .. U+0144.
const SHIFTED: [u8; 68] = {
    let mut bytes = [0; 68];
    let (mut byte, mut n) = (0_u8, 0);
    while n < bytes.len() {
        if !is_plain(byte) {
            bytes[n] = byte;
            n += 1;
        }
        byte = byte.wrapping_add(1);
    }
    bytes
};

impl Alphabet {
    pub(super) fn new() -> Self {
        let mut chars = [([0; 2], 0); 256];
        let mut put = |byte: u8, c: char| {
            let mut utf8 = [0; 4];
            let len = c.encode_utf8(&mut utf8).len();
            chars[usize::from(byte)] = ([utf8[0], utf8[1]], len as u8);
        };
        for byte in (0..=255_u8).filter(|&b| is_plain(b)) {
            put(byte, char::from(byte));
        }
        for (c, &byte) in ('\u{100}'..).zip(&SHIFTED) {
            put(byte, c);
        }
        Self { chars }
    }

    /// Appends the characters of `bytes`.
    pub(super) fn encode(&self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            let (utf8, len) = &self.chars[usize::from(byte)];
            out.extend_from_slice(&utf8[..usize::from(*len)]);
        }
    }
}

/// The bytes that `text` represents. Characters outside the alphabet (in added tokens) represent themselves.
pub(super) fn decode(text: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(text) else { return text.to_vec() };
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match c as u32 {
            code @ 0..=0xff if is_plain(code as u8) => bytes.push(code as u8),
            code @ 0x100..=0x143 => bytes.push(SHIFTED[(code - 0x100) as usize]),
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_and_spaces_look_as_known() {
        let all: Vec<u8> = (0..=255).collect();
        let mut text = Vec::new();
        Alphabet::new().encode(&all, &mut text);
        assert_eq!(std::str::from_utf8(&text).unwrap().chars().count(), 256);
        assert_eq!(decode(&text), all);
        let mut text = Vec::new();
        Alphabet::new().encode(b" a\n\xad", &mut text);
        assert_eq!(std::str::from_utf8(&text).unwrap(), "ĠaĊŃ");
        assert_eq!(decode("日".as_bytes()), "日".as_bytes());
    }
}
