//! Parses the text of a field to a label, a number or an id.

use crate::schema::{Categorical, Kind, MISSING, Numeric, Transform, id_of};

/// The longest quotation of a value in an error message.
const QUOTED: usize = 40;

/// A value for an error message: printable and shortened.
pub(super) fn shown(text: &[u8]) -> String {
    let cut = &text[..text.len().min(QUOTED)];
    let mut shown: String =
        String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if cut.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

/// The label: 0 or 1 in any notation ([`id_of`]).
pub(super) fn label(text: &[u8]) -> Result<f32, String> {
    match id_of(text) {
        0 => Ok(0.0),
        1 => Ok(1.0),
        MISSING => Err("the label is missing: 0 or 1 is expected".to_owned()),
        _ => Err(format!("the label is '{}': 0 or 1 is expected", shown(text))),
    }
}

/// Texts of missing numbers.
const ABSENT: [&[u8]; 17] = [
    b"", b"NA", b"N/A", b"n/a", b"#N/A", b"<NA>", b"NaN", b"nan", b"null", b"NULL", b"Null", b"None",
    b"none", b"NaT", b"\\N", b"?", b"-",
];

/// The number in `text`, with `true` as 1 and `false` as 0; `None` for a missing or infinite value ([`ABSENT`]).
#[inline]
pub(super) fn number(text: &[u8]) -> Result<Option<f32>, String> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    if !digits.is_empty() && digits.len() <= 9 && digits.iter().all(u8::is_ascii_digit) {
        let n = digits.iter().fold(0u32, |n, d| n * 10 + u32::from(d - b'0'));
        return Ok(Some(if negative { -(n as f32) } else { n as f32 }));
    }
    other_number(text)
}

#[cold]
fn other_number(text: &[u8]) -> Result<Option<f32>, String> {
    let trimmed = text.trim_ascii();
    if ABSENT.contains(&trimmed) || infinite(trimmed) {
        return Ok(None);
    }
    match trimmed {
        b"true" | b"True" | b"TRUE" => return Ok(Some(1.0)),
        b"false" | b"False" | b"FALSE" => return Ok(Some(0.0)),
        _ => {}
    }
    let parsed = std::str::from_utf8(trimmed).ok().and_then(|t| t.parse::<f64>().ok());
    match parsed {
        None => Err(format!("'{}' is not a number", shown(text))),
        Some(x) if (x as f32).is_finite() => Ok(Some(x as f32)),
        Some(_) => Err(format!("'{}' is not a finite 32-bit number", shown(text))),
    }
}

/// Whether `text` is an infinity, such as `inf` or `-Infinity`.
fn infinite(text: &[u8]) -> bool {
    let word = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    word.eq_ignore_ascii_case(b"inf") || word.eq_ignore_ascii_case(b"infinity")
}

/// The transformed number of `column`; `missing` for a missing one.
#[inline]
pub(super) fn applied(column: &Numeric, x: Option<f32>, missing: f32) -> f32 {
    match x {
        Some(x) => column.apply(x).clamp(f32::MIN, f32::MAX),
        None => missing,
    }
}

/// The id of `text` in `column`.
#[inline]
pub(super) fn id(column: &Categorical, text: &[u8]) -> Result<u64, String> {
    match column.kind {
        Kind::Text => Ok(id_of(text)),
        Kind::Hex => hex(text).ok_or_else(|| format!("'{}' is not a hexadecimal id", shown(text))),
        Kind::Id => match text {
            [b'-', ..] if matches!(number(text), Ok(Some(x)) if x < 0.0 && x.fract() == 0.0) => Err(format!(
                "the id '{}' is negative (if negative ids mean something, declare the column as text)",
                shown(text)
            )),
            _ => Ok(id_of(text)),
        },
    }
}

/// Parses up to 16 hexadecimal digits; the empty text is [`MISSING`].
#[inline]
pub(super) fn hex(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return Some(MISSING);
    }
    if text.len() > 16 {
        return None;
    }
    let mut value = 0u64;
    for &c in text {
        let digit = match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            b'A'..=b'F' => c - b'A' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(digit);
    }
    Some(value)
}

/// The value of 8 hexadecimal digits, by arithmetic on one word; `None` for other bytes.
#[inline]
pub(super) fn hex8(text: [u8; 8]) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let x = u64::from_le_bytes(text);
    // Lower-case letters; digits have this bit set already.
    let lower = x | (0x20 * ONES);
    // For bytes below 128: a byte is in a..=b if adding 128 - a sets its high bit and adding 127 - b does not.
    let between = |v: u64, a: u64, b: u64| (v + (0x80 - a) * ONES) & !(v + (0x7f - b) * ONES) & HIGH;
    let digits = between(x & !HIGH, 0x30, 0x39);
    let letters = between(lower & !HIGH, 0x61, 0x66);
    if x & HIGH != 0 || digits | letters != HIGH {
        return None;
    }
    let nibbles = (x & (0x0f * ONES)) + 9 * (letters >> 7);
    // Joins neighbors; the first digit is the most significant.
    let pairs = ((nibbles << 4) | (nibbles >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = ((pairs << 8) | (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some(((fours << 16) | (fours >> 32)) as u32)
}

/// A table of `log1p` for small counts, the most frequent ones.
pub(super) struct Log1p(Vec<f32>);

impl Log1p {
    pub(super) fn new() -> Self {
        Self((0..4096).map(|x| (x as f32).ln_1p()).collect())
    }

    /// [`applied`], with a table.
    #[inline]
    pub(super) fn applied(&self, column: &Numeric, x: f32) -> f32 {
        if column.transform == Transform::Log1p && (0.0..4096.0).contains(&x) && x.fract() == 0.0 {
            return (self.0[x as usize] - column.mean) * column.scale;
        }
        applied(column, Some(x), 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_are_0_or_1() {
        assert_eq!(label(b"1"), Ok(1.0));
        assert_eq!(label(b"0.0"), Ok(0.0));
        for bad in ["2", "-1", "", "yes", "0x1", " 1", "NaN"] {
            assert!(label(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers() {
        for (text, x) in
            [("0", 0.0), ("-7", -7.0), ("260.0", 260.0), ("1e3", 1000.0), ("+2", 2.0), (" 5 ", 5.0)]
        {
            assert_eq!(number(text.as_bytes()), Ok(Some(x)), "{text}");
        }
        for (text, x) in [("true", 1.0), ("False", 0.0)] {
            assert_eq!(number(text.as_bytes()), Ok(Some(x)), "{text}");
        }
        for missing in ["", "NA", "NaN", "null", "?", "\\N", "<NA>", "inf", "-inf", "Infinity"] {
            assert_eq!(number(missing.as_bytes()), Ok(None));
        }
        for bad in ["x", "1,5", "1e39", "1e400", "--1", "0x10", "1 2"] {
            assert!(number(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(number("-2147483648".as_bytes()), Ok(Some(-2_147_483_648.0)));
    }

    #[test]
    fn ids_are_stable() {
        let column = |kind| Categorical { name: "c".into(), kind };
        assert_eq!(id(&column(Kind::Text), b""), Ok(MISSING));
        assert_eq!(id(&column(Kind::Text), b"15"), Ok(15));
        // Values of the Python package xxhash.
        assert_eq!(id(&column(Kind::Text), b"UA"), Ok(10_926_443_194_480_090_856));
        assert_ne!(id(&column(Kind::Text), b"015"), Ok(15));
        assert_ne!(id(&column(Kind::Text), b"-1"), id(&column(Kind::Text), b"1"));
        assert!(id(&column(Kind::Id), b"-1").unwrap_err().contains("negative"));
        assert_eq!(id(&column(Kind::Id), b"7"), Ok(7));
        assert_eq!(id(&column(Kind::Hex), b"05db9164"), Ok(0x05db_9164));
        assert!(id(&column(Kind::Hex), b"-1").is_err());
        assert!(id(&column(Kind::Hex), b"11112222333344445").is_err());
    }

    proptest! {
        #[test]
        fn eight_digits_at_once(text: [u8; 8]) {
            prop_assert_eq!(hex8(text).map(u64::from), hex(&text));
        }

        #[test]
        fn eight_good_digits_at_once(x: u32, upper: bool) {
            let text = if upper { format!("{x:08X}") } else { format!("{x:08x}") };
            prop_assert_eq!(hex8(text.as_bytes().try_into().unwrap()), Some(x));
        }

        #[test]
        fn numbers_do_not_panic_and_are_finite(text: Vec<u8>) {
            if let Ok(Some(x)) = number(&text) {
                prop_assert!(x.is_finite());
            }
        }

        #[test]
        fn integers_are_what_the_standard_library_makes_of_them(n: i64) {
            prop_assert_eq!(number(n.to_string().as_bytes()), Ok(Some(n as f32)));
            let id = id_of(n.to_string().as_bytes());
            if (0..1_000_000_000_000_000_000).contains(&n) {
                prop_assert_eq!(id, n as u64);
            }
        }
    }
}
