//! The fields of one JSON object, taken by name. `null` is absent, as clients mean it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// An object whose fields are taken out one by one.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a body. Fails on what is no JSON object, and on more than `values_max` values.
    pub fn parse(body: &[u8], values_max: usize) -> Result<Fields, ApiError> {
        let refuse = |message: String| ApiError { param: None, ..ApiError::invalid("", message) };
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(refuse("the body is empty; a JSON object is expected".into()));
        }
        let values = count_values(body);
        if values > values_max {
            return Err(refuse(format!("the body has {values} values, more than {values_max}")));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map }),
            Ok(other) => Err(refuse(format!("the body is {}, not a JSON object", kind_of(&other)))),
            Err(error) => Err(refuse(format!("the body is not valid JSON: {error}"))),
        }
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_kind(name, &other, "true or false")),
        }
    }

    pub fn string(&mut self, name: &str, bytes_max: usize) -> Result<Option<String>, ApiError> {
        self.string_at(name, name, bytes_max)
    }

    /// The same of an object inside of others, which an error calls `place`.
    pub fn string_at(
        &mut self,
        name: &str,
        place: &str,
        bytes_max: usize,
    ) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() > bytes_max => {
                let bytes = text.len();
                Err(ApiError::invalid(place, format!("{place} has {bytes} bytes, more than {bytes_max}")))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_kind(place, &other, "a string")),
        }
    }

    pub fn count(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        as_count(name, &value, range).map(Some)
    }

    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Some(number) = value.as_f64() else { return Err(wrong_kind(name, &value, "a number")) };
        if !range.contains(&number) {
            let (low, high) = (range.start(), range.end());
            return Err(ApiError::invalid(name, format!("{name} is {number}; it has to be {low} to {high}")));
        }
        Ok(Some(number as f32))
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_kind(name, &other, "an object")),
        }
    }

    pub fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(wrong_kind(name, &other, "a list")),
        }
    }

    /// A field that a request cannot do without.
    pub fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| missing(name))
    }
}

impl From<Map<String, Value>> for Fields {
    fn from(map: Map<String, Value>) -> Fields {
        Fields { map }
    }
}

pub fn missing(name: &str) -> ApiError {
    ApiError::invalid(name, format!("{name} is missing"))
}

/// A whole number, `3` or `3.0`, within `range`.
pub fn as_count(name: &str, value: &Value, range: RangeInclusive<u64>) -> Result<u64, ApiError> {
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..9e15).contains(number);
    let count = value.as_u64().or_else(|| value.as_f64().filter(whole).map(|number| number as u64));
    let (low, high) = (range.start(), range.end());
    match count {
        Some(count) if range.contains(&count) => Ok(count),
        _ if value.is_number() => {
            let limits = format!("it has to be a whole number from {low} to {high}");
            Err(ApiError::invalid(name, format!("{name} is {value}; {limits}")))
        }
        _ => Err(wrong_kind(name, value, "a whole number")),
    }
}

/// A list of token ids; whether the model has them is checked where the model is known.
pub fn token_ids(name: &str, list: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |(index, value): (usize, &Value)| {
        as_count(&format!("{name}[{index}]"), value, 0..=u64::from(u32::MAX)).map(|id| id as u32)
    };
    list.iter().enumerate().map(id).collect()
}

pub fn wrong_kind(name: &str, value: &Value, expected: &str) -> ApiError {
    ApiError::invalid(name, format!("{name} is {}; it has to be {expected}", kind_of(value)))
}

pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// At most so many values a JSON text has: its commas, colons and openings outside of strings.
fn count_values(body: &[u8]) -> usize {
    let (mut values, mut in_string, mut escaped) = (1, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b':' | b'[' | b'{' if !in_string => values += 1,
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes(), 1000).unwrap()
    }

    #[test]
    fn values_outside_of_strings_are_counted() {
        assert_eq!(count_values(br#"{"a,,\"[[": [1, 2]}"#), 5);
        assert!(Fields::parse(br#"{"a":[1,2,3,4]}"#, 4).unwrap_err().message.contains("more than 4"));
    }

    #[test]
    fn counts_are_whole_and_within_their_bounds() {
        for (text, expected) in [
            ("3", Ok(3)),
            ("3.0", Ok(3)),
            ("0", Err("n is 0; it has to be a whole number from 1 to 16")),
            ("-1", Err("n is -1; it has to be a whole number from 1 to 16")),
            ("1.5", Err("n is 1.5; it has to be a whole number from 1 to 16")),
            ("1e300", Err("n is 1e+300; it has to be a whole number from 1 to 16")),
            ("18446744073709551616", Err("from 1 to 16")),
            ("\"3\"", Err("n is a string; it has to be a whole number")),
            ("[]", Err("n is a list; it has to be a whole number")),
        ] {
            let got = fields(&format!(r#"{{"n":{text}}}"#)).count("n", 1..=16);
            match (got, expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, Some(expected)),
                (Err(error), Err(part)) => assert!(error.message.contains(part), "{}", error.message),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(fields(r#"{"n":null}"#).count("n", 1..=16), Ok(None));
    }
}
