//! `strftime` of Python.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::{Error, ErrorKind};

/// Python's `strftime` of the English locale, in UTC: a server's own time zone is no part of a
/// prompt. What Python does not have, or has only in
/// some places, is an error and not a prompt with a stray letter.
pub(in crate::text) fn strftime(unix_s: i64, format: &str) -> Result<String, Error> {
    let unknown = || {
        let problem = format!("strftime_now does not know all of {format:?}");
        Error::new(ErrorKind::InvalidOperation, problem)
    };
    let now = Timestamp::from_second(unix_s).map_err(|_| unknown())?;
    let mut known = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        known.push(letter);
        if letter != '%' {
            continue;
        }
        let mut code = letters.next().ok_or_else(unknown)?;
        let is_bare = code == '-';
        if is_bare {
            code = letters.next().ok_or_else(unknown)?;
        }
        match code {
            'y' | 'm' | 'd' | 'H' | 'I' | 'M' | 'S' if is_bare => known.push('-'),
            'y' | 'm' | 'd' | 'H' | 'I' | 'M' | 'S' => {}
            'Y' | 'B' | 'b' | 'h' | 'A' | 'a' | 'p' | 'F' | 'T' | 'Z' | 'z' | '%' => {}
            _ => return Err(unknown()),
        }
        known.push(code);
    }
    jiff::fmt::strtime::format(&known, &now.to_zoned(TimeZone::UTC)).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_those_that_python_prints() {
        // time.strftime(format, time.gmtime(seconds))
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %y %I %p %F %T %% %-d";
        let cases = [
            (0, "1970-01-01 00:00:00 Thursday Thu January Jan 70 12 AM 1970-01-01 00:00:00 % 1"),
            (
                951_782_399,
                "2000-02-28 23:59:59 Monday Mon February Feb 00 11 PM 2000-02-28 23:59:59 % 28",
            ),
            (
                1_709_208_000,
                "2024-02-29 12:00:00 Thursday Thu February Feb 24 12 PM 2024-02-29 12:00:00 % 29",
            ),
            (
                4_107_542_399,
                "2100-02-28 23:59:59 Sunday Sun February Feb 00 11 PM 2100-02-28 23:59:59 % 28",
            ),
            (
                4_107_542_400,
                "2100-03-01 00:00:00 Monday Mon March Mar 00 12 AM 2100-03-01 00:00:00 % 1",
            ),
        ];
        for (unix_s, expected) in cases {
            assert_eq!(strftime(unix_s, all).unwrap(), expected);
        }
        let bare = "%-Y %-y %-m %-d %-H %-I %-M %-S %-B %-b %-h %-A %-a %-p %-F %-T %-Z %-z %-%";
        assert_eq!(
            strftime(1_709_208_065, bare).unwrap(),
            "2024 24 2 29 12 12 1 5 February Feb Feb Thursday Thu PM 2024-02-29 12:01:05 UTC \
             +0000 %"
        );
        for unknown in ["%Q", "%", "%-", "%j", "%e", "%s", "%_d", "%--d", "%:z", "%3f", "%D"] {
            assert!(strftime(0, unknown).is_err(), "{unknown}");
        }
    }
}
