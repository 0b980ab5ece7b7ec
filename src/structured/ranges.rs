//! Ranges of numbers that the library reads wrongly, in words that it reads right.
//!
//! Of a range that leaves out a whole number and ends before the next one away from zero, such as
//! that above 3 and up to 3.1, the library takes the whole number too: in its expression for 3 and
//! some fraction the fraction may be missing wherever the lower end has none, also where that end
//! is left out. It does so wherever both ends have one whole part, with negative numbers as their
//! mirror image, and however the schema comes by its ends: `allOf`, `$ref` and the like join them.
//! So an end that could be read so is replaced wherever it stands by the next number that belongs
//! to the range, as an end that is part of it.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Words whose value is an object of schemas.
pub(super) const HOLD_NAMED_SCHEMAS: &[&str] =
    &["$defs", "definitions", "patternProperties", "properties"];
/// Stands for the number next to zero: with the very next one the library's expression would be
/// deeper than an expression may be. A range has no exponents, so nobody writes what is nearer.
const NEXT_TO_ZERO: f64 = 1e-40;

/// One end of ranges.
struct Side {
    bound: &'static str,
    exclusive: &'static str,
    /// What turns it into a lower end.
    sign: f64,
}

const SIDES: [Side; 2] = [
    Side { bound: "minimum", exclusive: "exclusiveMinimum", sign: 1.0 },
    Side { bound: "maximum", exclusive: "exclusiveMaximum", sign: -1.0 },
];

/// The upper ends that are fractions, the least by the bits of its whole part.
type Fractions = HashMap<u64, f64>;

/// Replaces what would be read wrongly.
///
/// # Errors
/// Which range is too narrow.
pub(super) fn close(schema: &mut Value) -> Result<(), String> {
    let mut ends = [Fractions::new(), Fractions::new()];
    collect(schema, &mut ends);
    if ends.iter().all(HashMap::is_empty) {
        return Ok(());
    }
    close_within(schema, &ends)
}

/// Finds the ends opposite to each side. Whatever could be one counts: what is replaced for nothing
/// says the same.
fn collect(schema: &Value, ends: &mut [Fractions; 2]) {
    match schema {
        Value::Array(all) => all.iter().for_each(|one| collect(one, ends)),
        Value::Object(fields) => {
            for (side, ends) in SIDES.iter().rev().zip(ends.iter_mut()) {
                for end in [side.bound, side.exclusive].iter().filter_map(|word| fields.get(*word))
                {
                    let end = end.as_f64().map_or(0.0, |end| -end * side.sign);
                    if end > 0.0 && end.fract() != 0.0 {
                        let least = ends.entry(end.floor().to_bits()).or_insert(end);
                        *least = least.min(end);
                    }
                }
            }
            fields.values().for_each(|one| collect(one, ends));
        }
        _ => {}
    }
}

/// Replaces in all that a schema could be, which is more than what stands where schemas do: a $ref
/// may point anywhere but into values.
fn close_within(schema: &mut Value, ends: &[Fractions; 2]) -> Result<(), String> {
    match schema {
        Value::Array(all) => all.iter_mut().try_for_each(|one| close_within(one, ends)),
        Value::Object(fields) => {
            for (side, ends) in SIDES.iter().zip(ends) {
                close_side(fields, side, ends)?;
            }
            fields.iter_mut().try_for_each(|(word, value)| match (word.as_str(), value) {
                ("const" | "enum", _) => Ok(()),
                (word, Value::Object(all)) if HOLD_NAMED_SCHEMAS.contains(&word) => {
                    all.values_mut().try_for_each(|one| close_within(one, ends))
                }
                (_, value) => close_within(value, ends),
            })
        }
        _ => Ok(()),
    }
}

fn close_side(
    fields: &mut Map<String, Value>,
    side: &Side,
    ends: &Fractions,
) -> Result<(), String> {
    let bound = fields.get(side.bound).and_then(Value::as_f64);
    let excluded = match fields.get(side.exclusive) {
        // As in draft 4.
        Some(Value::Bool(true)) => bound,
        Some(value) => value.as_f64(),
        None => None,
    };
    let Some(excluded) = excluded else { return Ok(()) };
    // Zero has two spellings.
    let lower = excluded * side.sign + 0.0;
    let Some(&upper) = ends.get(&lower.to_bits()) else { return Ok(()) };
    let next = next(lower);
    if next > upper {
        let (exclusive, upper) = (side.exclusive, upper * side.sign);
        return Err(format!(
            "{exclusive} {excluded} and a range that ends at {upper:e} are too close to be \
             followed; send a wider range"
        ));
    }
    let tighter = bound.map_or(next, |bound| next.max(bound * side.sign));
    fields.shift_remove(side.exclusive);
    fields.insert(side.bound.to_owned(), Value::from(tighter * side.sign));
    Ok(())
}

/// The next number that is told apart from a whole one, also once it was written and read again.
fn next(whole: f64) -> f64 {
    if whole == 0.0 {
        return NEXT_TO_ZERO;
    }
    let is_read_as_whole = |number: f64| {
        serde_json::from_str::<f64>(&Value::from(number).to_string())
            .is_ok_and(|read| read <= whole)
    };
    let mut next = whole.next_up();
    while is_read_as_whole(next) {
        next = next.next_up();
    }
    next
}
