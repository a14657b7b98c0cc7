//! The real program, and what it printed and saved.

use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use crate::fake::Fake;

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub results: Vec<Map<String, Value>>,
}

pub fn command(fake: &Fake, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaterail"));
    command.args(["bench", "--url", &fake.url()]).args(flags).stdin(Stdio::null());
    command
}

pub fn bench(fake: &Fake, flags: &[&str]) -> Ran {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("results.json");
    let output = command(fake, flags).arg("--json").arg(&json).output().expect("the binary runs");
    let saved = std::fs::read_to_string(&json).unwrap_or_default();
    let results = saved.lines().map(|line| serde_json::from_str(line).expect("a result")).collect();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
        results,
    }
}

impl Ran {
    /// The only result.
    pub fn result(&self) -> &Map<String, Value> {
        assert_eq!(self.results.len(), 1, "{}\n{}", self.out, self.err);
        &self.results[0]
    }

    pub fn number(&self, field: &str) -> f64 {
        let result = self.result();
        result[field].as_f64().unwrap_or_else(|| panic!("{field}: {:?}\n{}", result[field], self.err))
    }

    pub fn numbers(&self, field: &str) -> Vec<f64> {
        numbers(&self.result()[field])
    }
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().filter_map(Value::as_f64).collect()
}
