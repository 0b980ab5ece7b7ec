//! Filters that make item by item what they make.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, State, filters};

use super::repr::invalid;
use super::view::Generator;

/// Puts the filters that make generators under their names, the engine's own under others.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter("__map", filters::map);
    environment.add_filter("__select", filters::select);
    environment.add_filter("__reject", filters::reject);
    environment.add_filter("__selectattr", filters::selectattr);
    environment.add_filter("__rejectattr", filters::rejectattr);
    environment.add_filter("__unique", filters::unique);
    environment.add_filter("__batch", filters::batch);
    environment.add_filter("__slice", filters::slice);
    environment.add_filter("__items", filters::items);
    environment.add_filter("__reverse", filters::reverse);
    environment.add_filter("__last", filters::last);
    for name in
        ["map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice", "items"]
    {
        let own = format!("__{name}");
        let filter = move |state: &mut State<'_, '_>, args: Rest<Value>, named: Kwargs| {
            let made = state.apply_filter(&own, &all(args, named))?;
            Ok::<_, Error>(Generator::of(made.try_iter()?.collect()))
        };
        environment.add_filter(name, filter);
    }
    environment.add_filter("reverse", |state: &mut State<'_, '_>, value: &Value| {
        let made = state.apply_filter("__reverse", std::slice::from_ref(value))?;
        match value.as_str() {
            Some(_) => Ok::<_, Error>(made),
            None => Ok(Generator::of(made.try_iter()?.collect())),
        }
    });
    environment.add_filter("attr", |value: &Value, name: &str| match value.kind() {
        // There attributes are methods, and what a mapping holds is none.
        ValueKind::Map => Err(invalid("attr of a mapping is not supported; write x['name']")),
        _ => value.get_attr(name),
    });
    environment.add_filter("last", |state: &mut State<'_, '_>, value: &Value| match Generator::is(
        value,
    ) {
        true => Err(invalid("what a filter makes one by one has no last item")),
        false => state.apply_filter("__last", std::slice::from_ref(value)),
    });
}

/// The arguments of a call as they were given: those with names last, in one value.
fn all(args: Rest<Value>, named: Kwargs) -> Vec<Value> {
    let mut all = args.0;
    if named.args().next().is_some() {
        all.push(named.into());
    }
    all
}
