//! The `%` operator on strings.

use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, State};

use super::repr::{as_float, float, invalid, push, repr, text};

/// Widths and precisions in a format. A larger one is an error.
const WIDTH_MAX: usize = 10_000;

/// One `%` of a format.
#[derive(Default)]
struct Spec {
    left: bool,
    zero: bool,
    sign: Option<char>,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// `format % values`.
pub(super) fn percent(
    state: &State<'_, '_>,
    format: &str,
    values: &Value,
) -> Result<String, Error> {
    let tuple = values.downcast_object_ref::<Tuple>();
    let mut rest = match tuple {
        Some(tuple) => tuple.to_vec(),
        None => vec![values.clone()],
    }
    .into_iter();
    let (mut is_by_name, mut out) = (false, String::new());
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            push(&mut out, letter.encode_utf8(&mut [0; 4]))?;
            continue;
        }
        let mut named = None;
        if letters.next_if_eq(&'(').is_some() {
            let mut key = String::new();
            let mut open = 1;
            loop {
                let letter = letters.next().ok_or_else(|| invalid("incomplete format key"))?;
                open += i32::from(letter == '(') - i32::from(letter == ')');
                if open == 0 {
                    break;
                }
                key.push(letter);
            }
            if values.kind() != ValueKind::Map {
                return Err(invalid("format requires a mapping"));
            }
            is_by_name = true;
            let found = values.get_item(&key.as_str().into())?;
            if found.is_undefined() {
                return Err(invalid(format!("the values of a format have no {key:?}")));
            }
            named = Some(found);
        }
        let mut next = || rest.next().ok_or_else(|| invalid("not enough values for a format"));
        let spec = spec(&mut letters, &mut next)?;
        let kind = letters.next().ok_or_else(|| invalid("incomplete format"))?;
        if kind == '%' {
            push(&mut out, "%")?;
            continue;
        }
        let value = named.map_or_else(next, Ok)?;
        push(&mut out, &spec.padded(state, kind, &value)?)?;
    }
    // Python lets a list, a mapping or nothing at all go unused.
    let may_stay = tuple.is_none() && matches!(values.kind(), ValueKind::Map | ValueKind::Seq);
    if rest.next().is_some() && !is_by_name && !may_stay {
        return Err(invalid("a format does not take all of its values"));
    }
    Ok(out)
}

fn spec(
    letters: &mut std::iter::Peekable<std::str::Chars<'_>>,
    next: &mut impl FnMut() -> Result<Value, Error>,
) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    while let Some(flag) = letters.next_if(|flag| "-+ #0".contains(*flag)) {
        match flag {
            '-' => spec.left = true,
            '0' => spec.zero = true,
            '#' => spec.alternate = true,
            '+' => spec.sign = Some('+'),
            _ => spec.sign = spec.sign.or(Some(' ')),
        }
    }
    let mut count = |letters: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        if letters.next_if_eq(&'*').is_some() {
            return next()?.as_i64().ok_or_else(|| invalid("* wants a whole number"));
        }
        let mut number = 0_i64;
        while let Some(digit) = letters.peek().and_then(|letter| letter.to_digit(10)) {
            number = number.saturating_mul(10).saturating_add(i64::from(digit));
            letters.next();
        }
        Ok(number)
    };
    let width = count(letters)?;
    spec.left |= width < 0;
    spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    if letters.next_if_eq(&'.').is_some() {
        spec.precision = Some(usize::try_from(count(letters)?).unwrap_or(0));
    }
    letters.next_if(|letter| "hlL".contains(*letter));
    if spec.width > WIDTH_MAX || spec.precision.is_some_and(|digits| digits > WIDTH_MAX) {
        return Err(invalid(format!("widths in a format are at most {WIDTH_MAX}")));
    }
    Ok(spec)
}

impl Spec {
    fn padded(&self, state: &State<'_, '_>, kind: char, value: &Value) -> Result<String, Error> {
        let is_number = value.is_number() || value.kind() == ValueKind::Bool;
        let wrong = || invalid(format!("%{kind} takes no value of type {}", value.kind()));
        let (sign, digits) = match kind {
            's' | 'r' => {
                let whole = if kind == 's' { text(state, value)? } else { repr(state, value)? };
                if self.width == 0 && self.precision.is_none() {
                    return Ok(whole);
                }
                let kept = whole.chars().take(self.precision.unwrap_or(usize::MAX));
                return Ok(self.pad("", &kept.collect::<String>(), false));
            }
            'c' => {
                let letter = match (value.as_str(), value.as_i64()) {
                    (Some(text), _) if text.chars().count() == 1 => text.to_owned(),
                    (None, Some(code)) => {
                        let code = u32::try_from(code).ok().and_then(char::from_u32);
                        code.ok_or_else(wrong)?.to_string()
                    }
                    _ => return Err(wrong()),
                };
                return Ok(self.pad("", &letter, false));
            }
            _ if !is_number => return Err(wrong()),
            'd' | 'i' | 'u' => self.whole(truncated(value)?, 10, false),
            'x' | 'X' | 'o' if value.is_integer() || value.kind() == ValueKind::Bool => {
                self.whole(truncated(value)?, if kind == 'o' { 8 } else { 16 }, kind == 'X')
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let number = as_float(value)?;
                let digits = self.float(kind.to_ascii_lowercase(), number.abs());
                let digits = if kind.is_uppercase() { digits.to_uppercase() } else { digits };
                (number.is_sign_negative() && !number.is_nan(), digits)
            }
            _ => return Err(wrong()),
        };
        let sign =
            if sign { "-".to_owned() } else { self.sign.map(String::from).unwrap_or_default() };
        Ok(self.pad(&sign, &digits, true))
    }

    fn whole(&self, value: i128, radix: u32, upper: bool) -> (bool, String) {
        let size = value.unsigned_abs();
        let mut digits = match radix {
            8 => format!("{size:o}"),
            16 => format!("{size:x}"),
            _ => size.to_string(),
        };
        if let Some(least) = self.precision {
            digits = format!("{digits:0>least$}");
        }
        let prefix = match radix {
            8 if self.alternate => "0o",
            16 if self.alternate => "0x",
            _ => "",
        };
        digits = format!("{prefix}{digits}");
        (value < 0, if upper { digits.to_uppercase() } else { digits })
    }

    fn float(&self, kind: char, size: f64) -> String {
        if !size.is_finite() {
            return float(size);
        }
        let precision = self.precision.unwrap_or(6);
        match kind {
            'f' => format!("{size:.precision$}"),
            'e' => scientific(size, precision),
            _ => {
                let digits = precision.max(1);
                let written = scientific(size, digits - 1);
                let exponent = written.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok());
                let exponent = exponent.unwrap_or(0);
                let is_plain = exponent >= -4 && i64::from(exponent) < digits as i64;
                let plain_digits = (digits as i64 - 1 - i64::from(exponent)).max(0) as usize;
                let text = if is_plain { format!("{size:.plain_digits$}") } else { written };
                let (number, exponent) = match text.split_once('e') {
                    Some((number, exponent)) => (number, format!("e{exponent}")),
                    None => (text.as_str(), String::new()),
                };
                let number = match number.contains('.') && !self.alternate {
                    true => number.trim_end_matches('0').trim_end_matches('.'),
                    false => number,
                };
                format!("{number}{exponent}")
            }
        }
    }

    fn pad(&self, sign: &str, body: &str, is_number: bool) -> String {
        let missing = self.width.saturating_sub(sign.len() + body.chars().count());
        let fill = |letter: &str| letter.repeat(missing);
        if self.left {
            return format!("{sign}{body}{}", fill(" "));
        }
        match (self.zero && is_number, body.get(..2)) {
            (true, Some(prefix @ ("0x" | "0X" | "0o"))) => {
                format!("{sign}{prefix}{}{}", fill("0"), &body[2..])
            }
            (true, _) => format!("{sign}{}{body}", fill("0")),
            (false, _) => format!("{}{sign}{body}", fill(" ")),
        }
    }
}

fn scientific(size: f64, precision: usize) -> String {
    let written = format!("{size:.precision$e}");
    let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A number without its fraction.
fn truncated(value: &Value) -> Result<i128, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(i128::from(value.is_true())),
        _ if value.is_integer() => i128::try_from(value.clone()),
        _ => {
            let number = as_float(value)?.trunc();
            let fits = number.is_finite() && number.abs() < 1e38;
            fits.then_some(number as i128).ok_or_else(|| invalid("a number is out of range"))
        }
    }
}
