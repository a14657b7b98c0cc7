//! The files of vectors: a list of cases, whose floats are words of hexadecimal digits.

use std::path::Path;

use serde_json::Value;

pub struct Case(Value);

/// The cases of `NAME.json`.
pub fn cases(name: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).expect("a file of vectors");
    let cases: Vec<Value> = serde_json::from_str(&text).expect("a list of cases");
    assert!(!cases.is_empty(), "{name}");
    cases.into_iter().map(Case).collect()
}

impl Case {
    pub fn name(&self) -> &str {
        self.text("name")
    }
    pub fn has(&self, key: &str) -> bool {
        !self.0[key].is_null()
    }
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("{key} of {}", self.0["name"]))
    }
    pub fn size(&self, key: &str) -> usize {
        self.0[key].as_u64().unwrap_or_else(|| panic!("{key} of {}", self.0["name"])) as usize
    }
    pub fn flag(&self, key: &str) -> bool {
        self.0[key].as_bool().unwrap_or_else(|| panic!("{key} of {}", self.0["name"]))
    }
    pub fn integers(&self, key: &str) -> Vec<i64> {
        let values = self.0[key].as_array().unwrap_or_else(|| panic!("{key} of {}", self.0["name"]));
        values.iter().map(|value| value.as_i64().expect("an integer")).collect()
    }
    pub fn list(&self, key: &str) -> Vec<Case> {
        let values = self.0[key].as_array().unwrap_or_else(|| panic!("{key} of {}", self.0["name"]));
        values.iter().cloned().map(Case).collect()
    }
    pub fn part(&self, key: &str) -> Case {
        Case(self.0[key].clone())
    }

    pub fn float(&self, key: &str) -> f32 {
        let [value] = self.floats(key)[..] else { panic!("one {key} in {}", self.0["name"]) };
        value
    }
    pub fn floats(&self, key: &str) -> Vec<f32> {
        floats(self.text(key))
    }
    pub fn floats_or_none(&self, key: &str) -> Option<Vec<f32>> {
        self.has(key).then(|| self.floats(key))
    }
    /// A list of vectors.
    pub fn vectors(&self, key: &str) -> Option<Vec<Vec<f32>>> {
        self.has(key).then(|| {
            self.list(key).iter().map(|item| floats(item.0.as_str().expect("a string of words"))).collect()
        })
    }
    pub fn halves(&self, key: &str) -> Vec<half::f16> {
        words(self.text(key)).map(|bits| half::f16::from_bits(bits as u16)).collect()
    }
    /// Integers of 8 bits.
    pub fn signed(&self, key: &str) -> Vec<i8> {
        words(self.text(key)).map(|bits| bits as u8 as i8).collect()
    }
    /// A run of digits, `digits` for each.
    pub fn codes(&self, key: &str, digits: usize) -> Vec<u8> {
        let text = self.text(key);
        let code = |at| u8::from_str_radix(&text[at..at + digits], 16).expect("hexadecimal digits");
        (0..text.len()).step_by(digits).map(code).collect()
    }
}

fn floats(text: &str) -> Vec<f32> {
    words(text).map(f32::from_bits).collect()
}

/// `w*n` is n times w.
fn words(text: &str) -> impl Iterator<Item = u32> {
    text.split_whitespace().flat_map(|word| {
        let (word, times) = word.split_once('*').unwrap_or((word, "1"));
        let bits = u32::from_str_radix(word, 16).expect("hexadecimal digits");
        std::iter::repeat_n(bits, times.parse().expect("a count"))
    })
}
