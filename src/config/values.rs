//! Values of flags: counts, shares, bytes and hosts. What is wrong with one is said in words that
//! have the range in them.

use std::fmt::Display;
use std::str::FromStr;

/// More than 0, at most 1.
///
/// # Errors
/// What is expected.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|&share| share > 0.0 && share <= 1.0);
    share.ok_or_else(|| "expected a number above 0 and at most 1".into())
}

/// A whole number from `least` to `most`.
pub fn whole<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync
where
    T: FromStr + PartialOrd + Display + Copy + Send + Sync,
{
    move |text| {
        let number = text.parse().ok().filter(|n| (least..=most).contains(n));
        number.ok_or_else(|| format!("expected a whole number from {least} to {most}"))
    }
}

/// A whole number from 1 to `max`. What it takes for each is taken at the start: beyond that it is
/// a slip of the keyboard.
pub fn count_to(max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync {
    whole(1, max)
}

/// A port of this machine; 0 takes one that is free.
///
/// # Errors
/// What is expected.
pub fn parse_port(text: &str) -> Result<u16, String> {
    whole(0, u16::MAX)(text)
}

/// Seconds that something may take.
///
/// # Errors
/// What is expected.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    whole(0, u64::MAX)(text)
}

/// More threads than any machine has cores.
pub const THREADS_MAX: usize = 1024;
/// Of what runs in one batch.
pub const ROWS_MAX: usize = 65_536;
/// Of what a command asks for at once.
pub const CONCURRENCY_MAX: u32 = 65_536;
/// Of what waits.
pub const QUEUE_MAX: usize = 1_000_000;
/// Tokens of a step or a context.
pub const TOKENS_MAX: usize = 1 << 27;

/// A number of bytes, with an optional unit: k, m, g (powers of 1000) or KiB, MiB, GiB.
///
/// # Errors
/// What is expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = || "expected a number of bytes such as 500000000, 500MB or 4GiB".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let number: f64 = lower[..digits].parse().map_err(|_| expected())?;
    let unit: f64 = match lower[digits..].trim() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(expected()),
    };
    let bytes = number * unit;
    if bytes >= 1.0 && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(expected()) }
}

/// `--adapter`: a name, and where what is served under it lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedPlace {
    /// Requests' name for it.
    pub name: String,
    /// A directory or a Hub id.
    pub place: String,
}

/// `NAME=DIR_OR_ID`; a directory may have `=` and commas in its name.
///
/// # Errors
/// What is expected.
pub fn parse_adapter(text: &str) -> Result<NamedPlace, String> {
    match text.split_once('=') {
        Some((name, place)) if !name.is_empty() && !place.is_empty() => {
            Ok(NamedPlace { name: name.to_owned(), place: place.to_owned() })
        }
        _ => Err("expected NAME=DIR_OR_ID".to_owned()),
    }
}

/// A name or an address, as it stands in a `Host` header before the port.
///
/// # Errors
/// What is expected.
pub fn parse_host(text: &str) -> Result<String, String> {
    let is_v6 = text.starts_with('[') && text.ends_with(']');
    let is_of_host =
        |c: char| c.is_ascii_alphanumeric() || "-._".contains(c) || is_v6 && "[:]".contains(c);
    match !text.is_empty() && text.chars().all(is_of_host) {
        true => Ok(text.to_owned()),
        false => {
            Err("expected a host such as models.example.org, without http:// and a port".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for good in ["models.example.org", "10.0.0.7", "[::1]"] {
            assert_eq!(parse_host(good), Ok(good.to_owned()));
        }
        for bad in ["", "http://box", "a b", "box/v1", "box:8000"] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_adapter_is_a_name_and_a_place() {
        let given = parse_adapter("a=/srv/b=c,d").unwrap();
        assert_eq!((given.name.as_str(), given.place.as_str()), ("a", "/srv/b=c,d"));
        for bad in ["", "a", "a=", "=b", "="] {
            assert!(parse_adapter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn byte_sizes_take_units_of_both_kinds() {
        assert_eq!(parse_bytes("1024"), Ok(1024));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("2MB"), Ok(2_000_000));
        for bad in ["", "0", "-1", "4 parsecs", "GiB", "1e400"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_share_is_above_0_and_at_most_1() {
        assert_eq!(parse_share("1"), Ok(1.0));
        for bad in ["0", "1.1", "nan", "-1", "many"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }
}
