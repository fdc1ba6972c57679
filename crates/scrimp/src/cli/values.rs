//! Parsers of option values. Ranges and units are checked here.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::{
    net::{IpAddr, ToSocketAddrs as _},
    num::NonZeroUsize,
};

/// A parser of the names of `all`, each with a line of help, as a registry of a library has them.
pub(crate) fn one_of<T: Copy + Send + Sync + 'static>(
    all: impl IntoIterator<Item = T>,
    name: fn(T) -> &'static str,
    about: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let all: Vec<T> = all.into_iter().collect();
    let values = all.iter().map(|&value| PossibleValue::new(name(value)).help(about(value)));
    let names = PossibleValuesParser::new(values);
    // The inner parser lets only these names through.
    names.try_map(move |given| {
        all.iter().copied().find(|&value| name(value) == given).ok_or("not one of the possible values")
    })
}

/// The reasoning before an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Think {
    /// The model reasons.
    pub(crate) wanted: bool,
    /// Maximum number of tokens.
    pub(crate) limit: Option<usize>,
}

/// `on`, `off`, or a number of tokens; 0 is `off`.
pub(super) fn think(s: &str) -> Result<Think, String> {
    match (s, s.parse::<usize>()) {
        ("on", _) => Ok(Think { wanted: true, limit: None }),
        ("off", _) => Ok(Think { wanted: false, limit: None }),
        (_, Ok(limit)) => Ok(Think { wanted: limit > 0, limit: Some(limit) }),
        (_, Err(_)) => Err("must be on, off or a number of tokens".to_owned()),
    }
}

/// A finite number.
pub(super) fn finite(s: &str) -> Result<f32, String> {
    s.parse::<f32>().ok().filter(|v| v.is_finite()).ok_or_else(|| "not a number".to_owned())
}

/// A number, 0 or more.
pub(super) fn non_negative(s: &str) -> Result<f32, String> {
    finite(s).and_then(|v| if v >= 0.0 { Ok(v) } else { Err("must not be negative".to_owned()) })
}

/// A number above 0.
pub(super) fn positive(s: &str) -> Result<f32, String> {
    finite(s).and_then(|v| if v > 0.0 { Ok(v) } else { Err("must be greater than 0".to_owned()) })
}

/// A probability.
pub(super) fn probability(s: &str) -> Result<f32, String> {
    let inside = |v: &f32| (0.0..=1.0).contains(v);
    finite(s).and_then(|v| Some(v).filter(inside).ok_or_else(|| "must lie between 0 and 1".to_owned()))
}

fn within(s: &str, inside: impl Fn(f64) -> bool, wrong: &str) -> Result<f64, String> {
    s.parse::<f64>().ok().filter(|&x| inside(x)).ok_or_else(|| wrong.to_owned())
}

/// Bits per weight.
pub(super) fn bits(s: &str) -> Result<f64, String> {
    within(s, |b| (0.5..=32.0).contains(&b), "must lie between 0.5 and 32")
}

/// A fraction of weights that are zero: at least 0, below 1.
pub(super) fn sparsity(s: &str) -> Result<f64, String> {
    within(s, |f| (0.0..1.0).contains(&f), "must be at least 0 and less than 1")
}

/// A fraction above 0, at most 1.
pub(super) fn fraction(s: &str) -> Result<f64, String> {
    within(s, |f| f > 0.0 && f <= 1.0, "must be above 0 and at most 1")
}

/// A fraction of a table's size, 0 to 0.9.
pub(super) fn table_fraction(s: &str) -> Result<f64, String> {
    within(s, |f| (0.0..=0.9).contains(&f), "must be from 0 to 0.9")
}

/// A factor, 1 or more.
pub(super) fn factor(s: &str) -> Result<f64, String> {
    within(s, |f| f >= 1.0 && f.is_finite(), "must be 1 or more")
}

/// Requests per second.
pub(super) fn rate(s: &str) -> Result<f64, String> {
    within(s, |r| (1e-3..=1e6).contains(&r), "must be a number of requests per second")
}

/// An IP address or a host name. Of several addresses, IPv4 comes first.
pub(super) fn host(s: &str) -> Result<IpAddr, String> {
    let bare = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(s);
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let found: Vec<IpAddr> =
        (bare, 0).to_socket_addrs().map_err(|e| e.to_string())?.map(|address| address.ip()).collect();
    found
        .iter()
        .find(|address| address.is_ipv4())
        .or(found.first())
        .copied()
        .ok_or_else(|| "no address has this name".to_owned())
}

/// A number of threads.
pub(super) fn threads(s: &str) -> Result<NonZeroUsize, String> {
    let n: Option<NonZeroUsize> = s.parse().ok();
    n.filter(|n| n.get() <= 1024).ok_or_else(|| "must be a whole number from 1 to 1024".to_owned())
}

/// A whole number, 2 or more.
pub(super) fn at_least_two(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n >= 2).ok_or_else(|| "must be a whole number, 2 or more".to_owned())
}

/// Bytes: `33MB`, `1.5 GiB`, `1000000`.
pub(crate) fn size(s: &str) -> Result<u64, String> {
    let wrong = || "is not a size: write 80MB, 1.5GB, 512MiB or a number of bytes".to_owned();
    let s = s.trim();
    let end = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
    let unit = match s[end..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => f64::from(1 << 20),
        "gib" => f64::from(1 << 30),
        _ => return Err(wrong()),
    };
    let bytes = s[..end].parse::<f64>().map(|n| n * unit).ok().filter(|n| (1.0..1e18).contains(n));
    bytes.map(|n| n as u64).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        assert_eq!(size("33MB"), Ok(33_000_000));
        assert_eq!(size("1.5 KiB"), Ok(1536));
        assert_eq!(size("7"), Ok(7));
        for bad in ["", "x", "-1", "0", "3 furlongs", "1e30"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
