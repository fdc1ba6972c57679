//! The functions and filters beyond Jinja of Hugging Face's `apply_chat_template`.

use std::{
    error::Error as _,
    fmt, io,
    time::{SystemTime, UNIX_EPOCH},
};

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// What a template gave `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `raise_exception(message)`: the template refuses its input.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The message of a `raise_exception` that `error` came from.
pub(super) fn raised(error: &Error) -> Option<&str> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Some(message);
        }
        source = cause.source();
    }
    None
}

/// `value | tojson(indent)` as Python's `json.dumps(value, ensure_ascii=False)`: a space after `,` and `:`, nothing
/// escaped for HTML, keys in their order (by name with `sort_keys`).
pub(super) fn tojson(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    if depth_exceeds(value, MAX_DEPTH)? {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deeply"));
    }
    let mut json = Vec::new();
    let done = if sort_keys == Some(true) {
        // A map of this type is sorted.
        let sorted = sort(serde_json::to_value(value).map_err(not_json)?);
        write(&sorted, indent, &mut json)
    } else {
        write(value, indent, &mut json)
    };
    done.map_err(not_json)?;
    // Sixteen times the price of copied bytes, as the built-in filter has it.
    state.consume_fuel(json.len() as u64 / 4)?;
    String::from_utf8(json).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

const MAX_DEPTH: usize = 100;

fn not_json(e: serde_json::Error) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"))
}

fn write(value: &impl Serialize, indent: Option<usize>, json: &mut Vec<u8>) -> serde_json::Result<()> {
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(64));
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(json, pretty))
        }
        None => value.serialize(&mut Serializer::with_formatter(json, Spaced)),
    }
}

/// Whether lists and maps are nested more than `limit` deep.
fn depth_exceeds(value: &Value, limit: usize) -> Result<bool, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(false);
    }
    if limit == 0 {
        return Ok(true);
    }
    let is_map = value.kind() == ValueKind::Map;
    for item in value.try_iter()? {
        let inner = if is_map { value.get_item(&item)? } else { item };
        if depth_exceeds(&inner, limit - 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn sort(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().map(|(k, v)| (k, sort(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            serde_json::Value::Object(entries.into_iter().collect())
        }
        serde_json::Value::Array(items) => items.into_iter().map(sort).collect(),
        other => other,
    }
}

/// One line, a space after `,` and `:`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// `strftime_now(format)`: today's date and time, in UTC.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(format, now)
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `seconds` since 1970 as `format` says (C's `strftime`, English names). Unknown codes are unchanged.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    use fmt::Write;

    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let weekday = DAYS[(days % 7 + 4) as usize % 7];
    let month_name = MONTHS[month as usize - 1];
    let day_of_year = days - days_before(year) + 1;
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // `%-d`: without padding.
        let padded = !rest.as_str().starts_with('-');
        if !padded {
            rest.next();
        }
        let mut number = |n: u64, width: usize| {
            let width = if padded { width } else { 0 };
            write!(out, "{n:0width$}")
        };
        let done = match rest.next() {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('j') => number(day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('e') => write!(out, "{day:2}"),
            Some('p') => out.write_str(if hour < 12 { "AM" } else { "PM" }),
            Some('A') => out.write_str(weekday),
            Some('a') => out.write_str(&weekday[..3]),
            Some('B') => out.write_str(month_name),
            Some('b' | 'h') => out.write_str(&month_name[..3]),
            Some('F') => write!(out, "{year:04}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => out.write_str("UTC"),
            Some('z') => out.write_str("+0000"),
            Some('%') => out.write_char('%'),
            Some(other) => write!(out, "%{other}"),
            None => out.write_char('%'),
        };
        done.map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now: cannot write"))?;
    }
    Ok(out)
}

/// Days from 1970 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let y = year - 1;
    365 * (year - 1970) + (y / 4 - y / 100 + y / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

/// Year, month and day of the month, `days` after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // 365.2425 days a year: right or one too many.
    let mut year = 1970 + days * 400 / 146_097;
    while days_before(year) > days {
        year -= 1;
    }
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = days_before(year + 1) - days_before(year) == 366;
    let mut day = days - days_before(year);
    for month in 1..=12 {
        let length = match month {
            2 => 28 + u64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if day < length {
            return (year, month, day + 1);
        }
        day -= length;
    }
    (year, 12, 31)
}

/// `{% generation %}` marks the assistant's words for training; here it only groups.
pub(super) fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = after;
        let Some((tag, _)) = rest.split_once("%}") else { continue };
        let word = match tag.trim_matches(['-', '+', ' ', '\t', '\r', '\n']) {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        let signs =
            |at: Option<char>| at.filter(|c| matches!(c, '-' | '+')).map_or(String::new(), String::from);
        let (left, right) = (signs(tag.chars().next()), signs(tag.chars().next_back()));
        out.push_str(&format!("{left} {word} {right}"));
        rest = &rest[tag.len()..];
    }
    out.push_str(rest);
    out
}

/// An upper bound for the operators in a template: counts their characters in expressions and in text.
pub(super) fn operators(source: &str) -> usize {
    let signs = source.bytes().filter(|b| b"+-*/%~".contains(b)).count();
    ["not", "and", "or"].iter().map(|word| source.matches(word).count()).sum::<usize>() + signs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %y %j %I %p %-d %e %F %T %% %Q %";
        assert_eq!(
            strftime(all, 0).unwrap(),
            "1970-01-01 00:00:00 Thursday Thu January Jan 70 001 12 AM 1  1 1970-01-01 00:00:00 % %Q %"
        );
        // 2024-02-29 23:59:59 and the second after it.
        assert_eq!(
            strftime("%d %b %Y %T %j %A", 1_709_251_199).unwrap(),
            "29 Feb 2024 23:59:59 060 Thursday"
        );
        assert_eq!(strftime("%d %b %Y %T %p", 1_709_251_200).unwrap(), "01 Mar 2024 00:00:00 AM");
        assert_eq!(strftime("%F", 4_102_444_799).unwrap(), "2099-12-31");
        assert_eq!(strftime("%F", 951_782_400).unwrap(), "2000-02-29");
        let mut last = String::new();
        for day in 0..80_000 {
            let now = strftime("%F", day * 86_400).unwrap();
            assert!(now > last, "{now} after {last}");
            last = now;
        }
    }

    #[test]
    fn operators_are_never_missed() {
        assert_eq!(operators("{{ a+b - -c*d/e % f~g not h and i or j }}"), 10);
        assert_eq!(operators(""), 0);
    }

    #[test]
    fn generation_marks_become_conditions() {
        assert_eq!(
            without_generation_marks("a{%- generation -%}b{% endgeneration %}c{% if x %}{% generatio"),
            "a{%- if true -%}b{% endif %}c{% if x %}{% generatio"
        );
    }
}
