//! Iterables that are no lists in Python.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};

/// What Python prints by name and does not dump as JSON: `dict_keys`, `dict_values`, `dict_items`
/// or `range`.
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
        match self.shown {
            Some(_) => self.items.get(key.as_usize()?).cloned(),
            None => Some(Value::UNDEFINED),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.shown {
            Some(_) => Enumerator::Seq(self.items.len()),
            None => Enumerator::Values(self.items.clone()),
        }
    }
}

/// What Python makes item by item: it is true, has no length, and each item is there once. It holds
/// the items that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Generator(Mutex<VecDeque<Value>>);

impl Generator {
    pub fn of(items: VecDeque<Value>) -> Value {
        Value::from_object(Self(Mutex::new(items)))
    }

    fn take(&self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Copies of the items that are left.
    pub fn left(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether a value is one.
    pub fn is(value: &Value) -> bool {
        value.downcast_object_ref::<Self>().is_some()
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    /// Nothing, under any key: it cannot be indexed.
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let own = self.clone();
        Enumerator::Iter(Box::new(std::iter::from_fn(move || own.take())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}
