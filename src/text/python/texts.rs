//! Filters of texts. The engine's own print whatever they are given, without bound, and take
//! nothing of a template's budget for the length of it.

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, State, filters};

use super::methods::{named, split_lines};
use super::repr::{MADE_BYTES_MAX, invalid, pay, push, text};

/// Puts them under their names, the engine's own under others.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("__upper", filters::upper);
    environment.add_filter("__lower", filters::lower);
    environment.add_filter("__title", filters::title);
    environment.add_filter("__capitalize", filters::capitalize);
    environment.add_filter("__trim", filters::trim);
    environment.add_filter("indent", indent);
    for name in ["upper", "lower", "title", "capitalize", "trim"] {
        let own = format!("__{name}");
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<Value>| {
            let args = args.iter().map(|arg| as_text(state, arg)).collect::<Result<Vec<_>, _>>()?;
            state.apply_filter(&own, &args)
        });
    }
}

/// A list, a mapping or a float as its text; anything else as it is.
fn as_text(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    pay(state, value)?;
    let is_float = value.is_number() && !value.is_integer();
    match is_float || value.as_object().is_some() && !value.is_kwargs() && value.as_str().is_none()
    {
        true => text(state, value).map(Value::from),
        false => Ok(value.clone()),
    }
}

/// jinja2's filter: what `str.splitlines` takes for lines, those after the first moved in.
fn indent(
    state: &State<'_, '_>,
    value: &Value,
    args: Rest<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let mut args = args.0;
    args.push(options.into());
    let [width, first, blank] = named(&args, ["width", "first", "blank"])?;
    let Some(plain) = value.as_str().filter(|_| !value.is_safe()) else {
        return Err(invalid("indent takes a text that is not marked as safe"));
    };
    let by = match (width.as_str(), width.as_usize()) {
        _ if width.is_undefined() => "    ".to_owned(),
        (Some(text), _) => text.to_owned(),
        (None, Some(spaces)) if spaces <= MADE_BYTES_MAX => " ".repeat(spaces),
        _ => return Err(invalid("width must be a number of spaces or a text")),
    };
    pay(state, value)?;
    // jinja2 adds a line's end, so that a last one makes an empty line.
    let ended = format!("{plain}\n");
    let mut out = String::new();
    for (index, line) in split_lines(&ended, false).into_iter().enumerate() {
        push(&mut out, if index > 0 { "\n" } else { "" })?;
        let is_moved =
            if index == 0 { first.is_true() } else { blank.is_true() || !line.is_empty() };
        push(&mut out, if is_moved { &by } else { "" })?;
        push(&mut out, line)?;
    }
    Ok(out.into())
}
