//! Python's iterables that are no sequences: generators and the views of a dict. Filled at once, but shown as lazy.

use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectExt, ObjectRepr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// True even when there is nothing in it, and without a length.
    Generator,
    Keys,
    Values,
    Items,
}

#[derive(Debug)]
pub struct Lazy {
    kind: Kind,
    items: Vec<Value>,
}

impl Lazy {
    pub fn value(kind: Kind, items: Vec<Value>) -> Value {
        Value::from_object(Lazy { kind, items })
    }

    pub fn kind_of(value: &Value) -> Option<Kind> {
        value.downcast_object_ref::<Lazy>().map(|lazy| lazy.kind)
    }
}

impl Object for Lazy {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|lazy| Box::new(lazy.items.iter().cloned()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.kind == Kind::Generator || !self.items.is_empty()
    }
}
