//! Metadata: keys and values of thirteen types, lists of them, lists of lists.

use std::collections::BTreeMap;

use super::cursor::Cursor;

/// Keys of one file.
const KEYS_MAX: u64 = 1 << 16;
const KEY_BYTES_MAX: usize = 65_535;
/// List entries of one file, all lists together: some ten times the largest vocabulary with its merges.
const ENTRIES_MAX: usize = 1 << 23;
/// Lists in lists.
const NESTING_MAX: usize = 4;

/// One value; numbers in the widest type of their kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    /// A number that is not negative and whole.
    pub fn count(&self) -> Option<u64> {
        match self {
            Value::Unsigned(count) => Some(*count),
            Value::Signed(count) => u64::try_from(*count).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn flag(&self) -> Option<bool> {
        match self {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    pub fn list(&self) -> Option<&[Value]> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }
}

/// All keys of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// All keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A string, or `None` where there is no such key.
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.typed(key, Value::text, "a string")
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, Value::flag, "true or false")
    }

    pub fn count(&self, key: &str) -> Result<Option<u64>, String> {
        self.typed(key, Value::count, "a whole number")
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.typed(key, |value| value.number().filter(|number| number.is_finite()), "a finite number")
    }

    pub fn list(&self, key: &str) -> Result<Option<&[Value]>, String> {
        self.typed(key, Value::list, "a list")
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        kind: &str,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("{key}: not {kind}"))
    }
}

/// Reads `count` keys with their values.
pub fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, String> {
    if count > KEYS_MAX {
        return Err(format!("{count} metadata keys; at most {KEYS_MAX} are read"));
    }
    let mut metadata = Metadata::default();
    let mut entries = 0;
    for index in 0..count {
        let key = cursor.text(&format!("metadata key {index}"))?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(format!("metadata key {index} has {} bytes", key.len()));
        }
        let kind = cursor.u32(key)?;
        let mut reader = Reader { cursor, key, entries: &mut entries };
        let value = reader.value(kind, 0)?;
        if metadata.values.insert(key.to_owned(), value).is_some() {
            return Err(format!("metadata key {key} stands twice"));
        }
    }
    Ok(metadata)
}

/// One key's value on its way out of the file.
struct Reader<'a, 'b> {
    cursor: &'a mut Cursor<'b>,
    key: &'b str,
    /// Of the whole file so far.
    entries: &'a mut usize,
}

impl Reader<'_, '_> {
    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        let key = self.key;
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.cursor.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.cursor.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.cursor.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.cursor.array(key)?).into()),
            4 => Value::Unsigned(self.cursor.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.cursor.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.cursor.array(key)?).into()),
            7 => Value::Flag(match self.cursor.array::<1>(key)? {
                [0] => false,
                [1] => true,
                [other] => return Err(format!("{key}: {other} is neither true nor false")),
            }),
            8 => Value::Text(self.cursor.text(key)?.to_owned()),
            9 => Value::List(self.list(depth)?),
            10 => Value::Unsigned(self.cursor.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.cursor.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.cursor.array(key)?)),
            other => return Err(format!("{key}: there is no value type {other}")),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Value>, String> {
        let key = self.key;
        if depth == NESTING_MAX {
            return Err(format!("{key}: lists are nested more than {NESTING_MAX} deep"));
        }
        let (kind, count) = (self.cursor.u32(key)?, self.cursor.u64(key)?);
        let count = self.cursor.expect(count, least_bytes(kind), key)?;
        *self.entries += count;
        if *self.entries > ENTRIES_MAX {
            return Err(format!("{key}: the file's lists have more than {ENTRIES_MAX} entries"));
        }
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(self.value(kind, depth + 1)?);
        }
        Ok(list)
    }
}

/// What a value of this type takes at least.
fn least_bytes(kind: u32) -> usize {
    match kind {
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        _ => 1,
    }
}
