//! What chat templates use of Python: `json.dumps` and `strftime`.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::template::Capped;

/// `tojson` of transformers: `json.dumps(value, ensure_ascii=False)`, optionally with `indent`,
/// `separators` and `ensure_ascii`. A result above `bytes_max` is an error.
pub(super) fn to_json(value: &Value, options: &Kwargs, bytes_max: usize) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "two separators")),
    };
    let ascii = ensure_ascii == Some(true);
    let style = Dumps { indent, item, key, ascii, depth: 0, is_empty: true };
    let mut output = Capped { bytes: Vec::new(), bytes_max, is_full: false };
    let mut serializer = serde_json::Serializer::with_formatter(&mut output, style);
    let failed = |problem: String| Error::new(ErrorKind::BadSerialization, problem);
    value.serialize(&mut serializer).map_err(|error| failed(error.to_string()))?;
    String::from_utf8(output.bytes).map(Value::from).map_err(|error| failed(error.to_string()))
}

/// The layout of Python's `json.dumps`.
struct Dumps {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    depth: usize,
    /// Nothing yet in the list or mapping that was opened last.
    is_empty: bool,
}

impl Dumps {
    fn line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        write!(out, "\n{:width$}", "", width = indent.saturating_mul(self.depth).min(1 << 12))
    }

    fn open<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &str) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        out.write_all(bracket.as_bytes())
    }

    fn close<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &str) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.line(out)?;
        }
        self.is_empty = false;
        out.write_all(bracket.as_bytes())
    }

    fn next<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.line(out)
    }
}

impl Formatter for Dumps {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, "[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, "]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, f: bool) -> io::Result<()> {
        self.next(out, f)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, "{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, "}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, f: bool) -> io::Result<()> {
        self.next(out, f)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return out.write_all(text.as_bytes());
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte) if byte.is_ascii() => out.write_all(&[byte])?,
                _ => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }
}

/// `strftime_now` of transformers, in UTC: a server's own time zone is no part of a prompt.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(now.as_secs(), format)
}

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
const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Python's `strftime` of the English locale for seconds since 1970, in UTC.
fn strftime(unix_s: u64, format: &str) -> Result<String, Error> {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let hour_12 = (hour + 11) % 12 + 1;
    let (month_name, weekday) = (MONTHS[month as usize - 1], WEEKDAYS[((days + 4) % 7) as usize]);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let mut code = letters.next();
        let is_bare = code == Some('-');
        if is_bare {
            code = letters.next();
        }
        let two = |n: u64| if is_bare { n.to_string() } else { format!("{n:02}") };
        text += &match code {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('H') => two(hour),
            Some('I') => two(hour_12),
            Some('M') => two(minute),
            Some('S') => two(second % 60),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            _ => {
                let problem = format!("strftime_now does not know all of {format:?}");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        };
    }
    Ok(text)
}

/// Year, month and day of a number of days since 1970 (Gregorian; Hinnant, `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of year 0, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
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
        assert!(strftime(0, "%Q").is_err());
        assert!(strftime(0, "%").is_err());
    }
}
