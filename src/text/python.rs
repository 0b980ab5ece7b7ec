//! What chat templates use of Python: `json.dumps` and `strftime`.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::capped::Capped;

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

/// Python's `strftime` of the English locale, in UTC: a server's own time zone is no part of a
/// prompt. What Python does not have, or has only in
/// some places, is an error and not a prompt with a stray letter.
pub(super) fn strftime(unix_s: i64, format: &str) -> Result<String, Error> {
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
