//! Iterables that Python prints by name and does not dump as JSON.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};

/// `dict_keys`, `dict_values`, `dict_items` or `range`.
#[derive(Debug)]
pub(super) struct View {
    name: &'static str,
    items: Vec<Value>,
    /// How it prints, if not with its items.
    shown: Option<String>,
}

impl View {
    pub fn named(name: &'static str, items: Vec<Value>) -> Value {
        Value::from_object(Self { name, items, shown: None })
    }

    pub fn range(items: Vec<Value>, shown: String) -> Value {
        Value::from_object(Self { name: "range", items, shown: Some(shown) })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn shown(&self) -> Option<&str> {
        self.shown.as_deref()
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        // Only a range can be indexed.
        if self.shown.is_some() { ObjectRepr::Seq } else { ObjectRepr::Iterable }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.shown.as_ref()?;
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.shown {
            Some(_) => Enumerator::Seq(self.items.len()),
            None => Enumerator::Values(self.items.clone()),
        }
    }
}
