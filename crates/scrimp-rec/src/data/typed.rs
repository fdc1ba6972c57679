//! Typed values of tables (Parquet, Arrow, Python), as numbers and as the text that a CSV file of the same table has.
//!
//! | value | text | number |
//! |---|---|---|
//! | boolean | `1`, `0` | 1, 0 |
//! | decimal | all digits of its scale: `12.50` | its value |
//! | date | `2026-01-31` | days since 1970 |
//! | time of day | `23:59:59`, with a fraction if it has one | the stored integer |
//! | timestamp | `2026-01-31 23:59:59`, with a fraction if it has one and `+00:00` if it is in UTC | the stored integer |

use super::values::number;
use std::{fmt, io::Write as _};

/// A value of a table, or `Missing`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// No value.
    Missing,
    /// A boolean.
    Bool(bool),
    /// A signed integer.
    Integer(i64),
    /// An unsigned integer.
    Unsigned(u64),
    /// A 32-bit float.
    Single(f32),
    /// A 64-bit float.
    Float(f64),
    /// `unscaled * 10^-scale`.
    Decimal(i128, i8),
    /// Days since 1970-01-01.
    Date(i32),
    /// A time of day, and its number of units per second.
    Time(i64, Unit),
    /// A point in time since 1970-01-01, and its number of units per second. `true`: in UTC.
    Timestamp(i64, Unit, bool),
    /// A text.
    Bytes(&'a [u8]),
}

/// Units of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Second,
    /// Milliseconds.
    Milli,
    /// Microseconds.
    Micro,
    /// Nanoseconds.
    Nano,
}

impl Unit {
    /// The number of decimal digits after a second.
    const fn digits(self) -> usize {
        match self {
            Self::Second => 0,
            Self::Milli => 3,
            Self::Micro => 6,
            Self::Nano => 9,
        }
    }
}

impl Value<'_> {
    /// Appends the value as text, as in a CSV file; nothing for a missing value.
    pub(super) fn text(self, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let mut show = |text: fmt::Arguments<'_>| {
            let _ = out.write_fmt(text);
        };
        match self {
            Self::Missing => {}
            Self::Bool(b) => show(format_args!("{}", u8::from(b))),
            Self::Integer(n) => show(format_args!("{n}")),
            Self::Unsigned(n) => show(format_args!("{n}")),
            Self::Single(x) if x.is_nan() => {}
            Self::Single(x) => show(format_args!("{x}")),
            Self::Float(x) if x.is_nan() => {}
            Self::Float(x) => show(format_args!("{x}")),
            Self::Decimal(unscaled, scale) => decimal(unscaled, scale, &mut show),
            Self::Date(days) => date(i64::from(days), &mut show),
            Self::Time(n, unit) => time(n, unit, &mut show),
            Self::Timestamp(n, unit, utc) => {
                let day = 86_400 * 10_i64.pow(unit.digits() as u32);
                date(n.div_euclid(day), &mut show);
                show(format_args!(" "));
                time(n.rem_euclid(day), unit, &mut show);
                show(format_args!("{}", if utc { "+00:00" } else { "" }));
            }
            Self::Bytes(b) => out.extend_from_slice(b),
        }
    }

    /// The value as a number; `None` for a missing or infinite one.
    pub(super) fn number(self) -> Result<Option<f32>, String> {
        let x = match self {
            Self::Missing => return Ok(None),
            Self::Bytes(b) => return number(b),
            Self::Bool(b) => f64::from(u8::from(b)),
            Self::Integer(n) | Self::Time(n, _) | Self::Timestamp(n, ..) => n as f64,
            Self::Unsigned(n) => n as f64,
            Self::Single(x) => f64::from(x),
            Self::Float(x) => x,
            Self::Decimal(unscaled, scale) => unscaled as f64 / 10_f64.powi(i32::from(scale)),
            Self::Date(days) => f64::from(days),
        };
        if !x.is_finite() {
            return Ok(None);
        }
        let single = x as f32;
        single
            .is_finite()
            .then_some(Some(single))
            .ok_or_else(|| format!("'{x}' is not a finite 32-bit number"))
    }
}

/// Decimal digits with a point before the last `scale` ones.
fn decimal(unscaled: i128, scale: i8, show: &mut impl FnMut(fmt::Arguments<'_>)) {
    let sign = if unscaled < 0 { "-" } else { "" };
    let digits = unscaled.unsigned_abs().to_string();
    let places = usize::from(scale.unsigned_abs());
    if scale <= 0 {
        let zeros = if unscaled == 0 { 0 } else { places };
        return show(format_args!("{sign}{digits}{:0<zeros$}", ""));
    }
    let digits = format!("{digits:0>width$}", width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    show(format_args!("{sign}{whole}.{fraction}"));
}

/// The date `days` after 1970-01-01 in the proleptic Gregorian calendar (Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", 2013).
fn date(days: i64, show: &mut impl FnMut(fmt::Arguments<'_>)) {
    // Years begin in March, eras have 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (year, month + 3),
        _ => (year + 1, month - 9),
    };
    show(format_args!("{:04}-{month:02}-{day:02}", era * 400 + year));
}

/// A time of day, with a fraction of all digits of `unit` if it is not zero.
fn time(n: i64, unit: Unit, show: &mut impl FnMut(fmt::Arguments<'_>)) {
    let digits = unit.digits();
    let per_second = 10_i64.pow(digits as u32);
    let (seconds, fraction) = (n.div_euclid(per_second), n.rem_euclid(per_second));
    show(format_args!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    if fraction != 0 {
        show(format_args!(".{fraction:0digits$}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_text_of_csv() {
        let text = |value: Value<'_>| {
            let mut out = Vec::new();
            value.text(&mut out);
            String::from_utf8(out).unwrap()
        };
        let second = Unit::Second;
        for (value, want) in [
            (Value::Unsigned(u64::MAX), "18446744073709551615"),
            (Value::Single(0.1), "0.1"),
            (Value::Float(69.0), "69"),
            (Value::Decimal(1250, 2), "12.50"),
            (Value::Decimal(-5, 3), "-0.005"),
            (Value::Decimal(0, -2), "0"),
            (Value::Decimal(7, -2), "700"),
            (Value::Date(0), "1970-01-01"),
            (Value::Date(-1), "1969-12-31"),
            (Value::Date(19_782), "2024-02-29"),
            (Value::Date(19_783), "2024-03-01"),
            (Value::Time(3_661, second), "01:01:01"),
            (Value::Time(5, Unit::Milli), "00:00:00.005"),
            (Value::Timestamp(86_400, second, true), "1970-01-02 00:00:00+00:00"),
            (Value::Timestamp(-1, Unit::Micro, false), "1969-12-31 23:59:59.999999"),
            (Value::Bool(true), "1"),
            (Value::Float(f64::NAN), ""),
        ] {
            assert_eq!(text(value), want, "{value:?}");
        }
    }

    #[test]
    fn extreme_values_have_a_text_and_a_number() {
        for value in [
            Value::Decimal(i128::MIN, i8::MAX),
            Value::Decimal(i128::MAX, i8::MIN),
            Value::Date(i32::MIN),
            Value::Date(i32::MAX),
            Value::Time(i64::MIN, Unit::Second),
            Value::Timestamp(i64::MIN, Unit::Second, true),
            Value::Timestamp(i64::MAX, Unit::Nano, true),
        ] {
            let mut out = Vec::new();
            value.text(&mut out);
            assert!(!out.is_empty());
            let _ = value.number();
        }
        assert_eq!(Value::Decimal(1250, 2).number(), Ok(Some(12.5)));
        assert_eq!(Value::Single(f32::INFINITY).number(), Ok(None));
        assert!(Value::Float(1e39).number().is_err());
    }
}
