//! Filters of texts. The engine's own print whatever they are given, without bound, and take
//! nothing of a template's budget for the length of it.

use minijinja::value::{Rest, Value};
use minijinja::{Environment, Error, State, filters};

use super::repr::{pay, text};

/// Puts them under their names, the engine's own under others.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("__upper", filters::upper);
    environment.add_filter("__lower", filters::lower);
    environment.add_filter("__title", filters::title);
    environment.add_filter("__capitalize", filters::capitalize);
    environment.add_filter("__trim", filters::trim);
    for (name, own) in [
        ("upper", "__upper"),
        ("lower", "__lower"),
        ("title", "__title"),
        ("capitalize", "__capitalize"),
        ("trim", "__trim"),
    ] {
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<Value>| {
            let args = args.iter().map(|arg| as_text(state, arg)).collect::<Result<Vec<_>, _>>()?;
            state.apply_filter(own, &args)
        });
    }
}

/// A list or mapping as its text; anything else as it is.
fn as_text(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    pay(state, value)?;
    match value.as_object().is_some() && !value.is_kwargs() && value.as_str().is_none() {
        true => text(state, value).map(Value::from),
        false => Ok(value.clone()),
    }
}
