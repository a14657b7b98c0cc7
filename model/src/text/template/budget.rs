//! What one rendering may spend: bytes, containers and time. In: a charge before every copy, walk or container. Out: an
//! error once it is spent.
//!
//! minijinja counts instructions, but one instruction may copy or build a great deal (`x ~ x`, `"a" * n`). Every
//! operation that can is routed through this account, so that time and memory are bounded together.

use std::time::{Duration, Instant};

use minijinja::{Error, ErrorKind, State, Value};

use super::show;

/// Bytes that one rendering may copy, build or walk through, all together.
pub const ALLOC_BYTES_MAX: u64 = 512 << 20;
/// Bytes that one operation may take or give: no string is longer, and no list has more than a 24th of it.
pub const OPERATION_BYTES_MAX: usize = 64 << 20;
/// How long one rendering may take.
pub const RENDER_TIME_MAX: Duration = Duration::from_secs(5);
/// Lists, tuples and maps that one rendering may build. It also bounds how deep they can be nested.
pub const CONTAINERS_MAX: u32 = 100_000;
/// Bytes that one rendering may put out.
pub const OUTPUT_BYTES_MAX: usize = 32 << 20;
/// Levels of nesting that printing and comparing follow.
pub const NESTING_MAX: u32 = 100;

/// What an element of a list or a node of a walk costs.
const ELEMENT_BYTES: usize = 24;

/// What a charge costs beside its bytes, for the clock.
const CHARGE_BYTES: usize = 64;
/// Bytes charged between two looks at the clock.
const CLOCK_BYTES: usize = 64 << 10;

/// A limit that a rendering ran into, or a refusal by the template itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    #[error("more than {ALLOC_BYTES_MAX} bytes built")]
    Bytes,
    #[error("more than {OPERATION_BYTES_MAX} bytes in one string or list")]
    Operation,
    #[error("more than {} s of work", RENDER_TIME_MAX.as_secs())]
    Time,
    #[error("more than {CONTAINERS_MAX} lists and maps built")]
    Containers,
    #[error("more than {OUTPUT_BYTES_MAX} bytes put out")]
    Output,
    #[error("values nested more than {NESTING_MAX} deep")]
    Nesting,
    #[error("{0}")]
    Raised(String),
}

impl From<Halt> for Error {
    fn from(halt: Halt) -> Error {
        Error::new(ErrorKind::InvalidOperation, halt.to_string()).with_source(halt)
    }
}

/// What is left of the account of one rendering; lives in the rendering's state.
pub struct Budget {
    bytes_left: u64,
    containers_left: u32,
    /// When the rendering has taken too long.
    deadline: Instant,
    /// Bytes charged since the last look at the clock.
    unclocked: usize,
    /// A namespace or a loop lies in some other value.
    state_in_values: bool,
}

impl Budget {
    pub fn new() -> Budget {
        Budget {
            bytes_left: ALLOC_BYTES_MAX,
            containers_left: CONTAINERS_MAX,
            deadline: Instant::now() + RENDER_TIME_MAX,
            unclocked: 0,
            state_in_values: false,
        }
    }

    pub fn of<'a>(state: &'a mut State<'_, '_>) -> &'a mut Budget {
        state.get_or_insert_extension_with(Budget::new)
    }

    pub fn bytes(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes > OPERATION_BYTES_MAX {
            return Err(Halt::Operation.into());
        }
        self.unclocked += bytes + CHARGE_BYTES;
        if self.unclocked > CLOCK_BYTES {
            self.unclocked = 0;
            if Instant::now() > self.deadline {
                return Err(Halt::Time.into());
            }
        }
        self.bytes_left = self.bytes_left.checked_sub(bytes as u64).ok_or(Halt::Bytes)?;
        Ok(())
    }

    pub fn elements(&mut self, count: usize) -> Result<(), Error> {
        self.bytes(count.saturating_mul(ELEMENT_BYTES))
    }

    pub fn container(&mut self, elements: usize) -> Result<(), Error> {
        self.containers_left = self.containers_left.checked_sub(1).ok_or(Halt::Containers)?;
        self.elements(elements)
    }

    /// Notes whether something that can change lies in the new container `value`.
    pub fn watch(&mut self, value: &Value) {
        let inside = value.as_object().and_then(|object| object.try_iter_pairs());
        inside.into_iter().flatten().for_each(|(_, item)| self.watch_item(&item));
    }

    pub fn watch_item(&mut self, item: &Value) {
        self.state_in_values |= show::holds_state(item);
    }

    /// Refuses to put a namespace or a loop into a namespace: the cycle it could close would never be freed.
    pub fn storable(&mut self, value: &Value) -> Result<(), Error> {
        let stateful = show::holds_state(value) || (self.state_in_values && self.finds_state(value, 0)?);
        if stateful {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "a namespace or loop cannot be stored in a namespace",
            ));
        }
        Ok(())
    }

    fn finds_state(&mut self, value: &Value, depth: u32) -> Result<bool, Error> {
        let Some(object) = value.as_object() else { return Ok(false) };
        self.shallow(value)?;
        if show::holds_state(value) {
            return Ok(true);
        }
        if depth > NESTING_MAX {
            return Err(Halt::Nesting.into());
        }
        for (_, item) in object.try_iter_pairs().into_iter().flatten() {
            if self.finds_state(&item, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Charges what reading `value` once costs, without what lies inside its elements.
    pub fn shallow(&mut self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.bytes(text.len()),
            None if value.as_object().is_some() => self.elements(value.len().unwrap_or(1)),
            None => Ok(()),
        }
    }

    /// Charges what reading the characters of `value` once costs, where it is a string.
    pub fn characters(&mut self, value: &Value) -> Result<(), Error> {
        self.bytes(value.as_str().map_or(0, str::len))
    }

    /// Charges a walk through everything inside `value`; fails early where shared parts would make it explode.
    pub fn deep(&mut self, value: &Value, depth: u32) -> Result<(), Error> {
        self.shallow(value)?;
        let Some(object) = value.as_object() else { return Ok(()) };
        if depth > NESTING_MAX {
            return Err(Halt::Nesting.into());
        }
        for (key, item) in object.try_iter_pairs().into_iter().flatten() {
            self.deep(&key, depth + 1)?;
            self.deep(&item, depth + 1)?;
        }
        Ok(())
    }
}
