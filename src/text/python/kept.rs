//! What a namespace is given to keep. Only by a namespace can a value grow from one round of a loop
//! to the next, so that is where its size is bounded.

use minijinja::tests::is_sameas;
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{Error, State};

use super::repr::invalid;
use super::view::{Generator, View};

/// Values within each other that a namespace keeps. Deeper is an error.
const KEPT_DEPTH_MAX: usize = 200;
/// Values that a namespace keeps under one name. More is an error.
const KEPT_VALUES_MAX: u64 = 1_000_000;
/// Values that cost a step of a template's fuel.
const VALUES_PER_FUEL: u64 = 8;

/// The value, a list as a list of its own: the engine's sums and slices of lists look their items
/// up in those that they were made of.
///
/// # Errors
/// For a value that is too large, or that holds the namespace itself, which has no end.
pub(super) fn kept(
    state: &State<'_, '_>,
    namespace: &Value,
    value: &Value,
) -> Result<Value, Error> {
    let is_list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        && value.downcast_object_ref::<Tuple>().is_none()
        && value.downcast_object_ref::<View>().is_none()
        && !Generator::is(value);
    let mut values = 0;
    if !is_list {
        count(state, namespace, value, 0, &mut values)?;
        return Ok(value.clone());
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        count(state, namespace, &item, 1, &mut values)?;
        items.push(item);
    }
    Ok(items.into())
}

fn count(
    state: &State<'_, '_>,
    namespace: &Value,
    value: &Value,
    depth: usize,
    values: &mut u64,
) -> Result<(), Error> {
    *values += 1;
    if values.is_multiple_of(VALUES_PER_FUEL) {
        state.consume_fuel(1)?;
    }
    if depth > KEPT_DEPTH_MAX || *values > KEPT_VALUES_MAX {
        return Err(invalid(format!(
            "a namespace keeps at most {KEPT_VALUES_MAX} values, nested at most \
             {KEPT_DEPTH_MAX} deep"
        )));
    }
    match value.kind() {
        ValueKind::Map => {
            if is_sameas(value, namespace) {
                return Err(invalid("a namespace cannot keep itself"));
            }
            for key in value.try_iter()? {
                count(state, namespace, &value.get_item(&key)?, depth + 1, values)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let left = value.downcast_object_ref().map(|items: &Generator| items.left());
            for item in left.map_or_else(|| value.clone(), Value::from).try_iter()? {
                count(state, namespace, &item, depth + 1, values)?;
            }
        }
        _ => {}
    }
    Ok(())
}
