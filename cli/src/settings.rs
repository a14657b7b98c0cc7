//! Settings of a long-running command: a flag, a `GATERAIL_` variable and a TOML key each; the first that says something
//! counts, and every value knows where it came from.
//!
//! A table of [`Setting`]s makes the flags; clap reads flags and variables; [`Settings`] puts the file below them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Value;

use crate::error::CliError;

/// One row of a command's table.
pub struct Setting {
    /// `max-batch`: the flag `--max-batch`, the variable `GATERAIL_MAX_BATCH`, the key `max_batch`.
    pub name: &'static str,
    /// Other spellings of the flag that mean the same, as vLLM has them.
    pub also: &'static [&'static str],
    pub kind: Kind,
    /// What the help calls the value.
    pub value: &'static str,
    /// What holds where nobody says anything; empty: nothing.
    pub default: &'static str,
    pub help: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stands without a name on the command line.
    Positional,
    One,
    Many,
    Switch,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Variable(String),
    File(PathBuf),
    Default,
}

/// The values of a command.
pub struct Settings {
    table: &'static [Setting],
    values: BTreeMap<&'static str, (Vec<String>, Origin)>,
}

impl Setting {
    fn variable(&self) -> String {
        format!("GATERAIL_{}", self.name.replace('-', "_").to_uppercase())
    }

    /// The same for clap, which wants what lives as long as the program; there is one for each row of a table.
    fn static_variable(&self) -> &'static str {
        self.variable().leak()
    }

    fn key(&self) -> String {
        self.name.replace('-', "_")
    }

    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).help(self.help).env(self.static_variable()).hide_env_values(true);
        let arg = match self.kind {
            Kind::Positional => return arg.value_name(self.value),
            Kind::One => arg.value_name(self.value).allow_hyphen_values(true),
            Kind::Many => arg.value_name(self.value).action(ArgAction::Append).value_delimiter(','),
            Kind::Switch => arg.action(ArgAction::SetTrue).value_parser(BoolishValueParser::new()),
        };
        let help = match self.default {
            "" => self.help.to_string(),
            default => format!("{} [default: {default}]", self.help),
        };
        arg.long(self.name).aliases(self.also.iter().copied()).help(help)
    }
}

/// Adds the flags of a table to a command.
pub fn augment(command: Command, table: &'static [Setting]) -> Command {
    table.iter().fold(command, |command, setting| command.arg(setting.arg()))
}

impl Settings {
    /// Flags and variables from `matches`, then the file, then the defaults.
    pub fn new(
        table: &'static [Setting],
        matches: &ArgMatches,
        file: Option<&Path>,
    ) -> Result<Settings, CliError> {
        let mut from_file = match file {
            Some(path) => read_file(table, path)?,
            None => BTreeMap::new(),
        };
        let mut values = BTreeMap::new();
        for setting in table {
            let given = given(setting, matches);
            let of_file = from_file.remove(setting.name).zip(file);
            let of_file = of_file.map(|(values, path)| (values, Origin::File(path.to_path_buf())));
            let default = Some(setting.default).filter(|text| !text.is_empty());
            let default = default.map(|text| (vec![text.to_string()], Origin::Default));
            if let Some(value) = given.or(of_file).or(default) {
                values.insert(setting.name, value);
            }
        }
        Ok(Settings { table, values })
    }

    pub fn list(&self, name: &str) -> &[String] {
        debug_assert!(self.table.iter().any(|setting| setting.name == name), "{name} is no setting");
        self.values.get(name).map_or(&[], |(values, _)| values)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.list(name).first().map(String::as_str)
    }

    pub fn switch(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// A value of another type; `expected` completes the sentence "it has to be …".
    pub fn parsed<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, CliError> {
        self.parsed_by(name, |text| text.parse().map_err(|_| format!("it has to be {expected}")))
    }

    pub fn parsed_by<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, CliError> {
        let Some((values, origin)) = self.values.get(name) else { return Ok(None) };
        let text = values.first().map(String::as_str).unwrap_or_default();
        match parse(text) {
            Ok(value) => Ok(Some(value)),
            Err(why) => {
                let place = origin.named(name);
                Err(CliError::Usage(format!("{place} is {text:?}: {why}")))
            }
        }
    }

    /// Each value of a list, commas within one included.
    pub fn parsed_each<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, CliError> {
        let Some((values, origin)) = self.values.get(name) else { return Ok(Vec::new()) };
        let texts = values.iter().flat_map(|values| values.split(',')).map(str::trim);
        let wrong = |text: &str, why| CliError::Usage(format!("{} is {text:?}: {why}", origin.named(name)));
        texts.map(|text| parse(text).map_err(|why| wrong(text, why))).collect()
    }

    /// Every setting with its value and its origin; secrets are not shown.
    pub fn show(&self, secret: &[&str]) -> String {
        let line = |setting: &Setting| {
            let Some((values, origin)) = self.values.get(setting.name) else {
                return format!("{:<24} {:<32} unset", setting.key(), "-");
            };
            let shown = match secret.contains(&setting.name) {
                true => "(not shown)".to_string(),
                false => values.join(", "),
            };
            format!("{:<24} {shown:<32} {}", setting.key(), origin.shown())
        };
        self.table.iter().map(|setting| line(setting) + "\n").collect()
    }
}

impl Origin {
    fn shown(&self) -> String {
        match self {
            Origin::Flag => "command line".to_string(),
            Origin::Variable(name) => format!("variable {name}"),
            Origin::File(path) => format!("file {}", path.display()),
            Origin::Default => "default".to_string(),
        }
    }

    fn named(&self, name: &str) -> String {
        match self {
            Origin::Flag => format!("--{name}"),
            Origin::Variable(variable) => format!("the variable {variable}"),
            Origin::File(path) => format!("{} in {}", name.replace('-', "_"), path.display()),
            Origin::Default => format!("the default of {name}"),
        }
    }
}

/// What the command line or the environment says.
fn given(setting: &Setting, matches: &ArgMatches) -> Option<(Vec<String>, Origin)> {
    let origin = match matches.value_source(setting.name)? {
        ValueSource::CommandLine => Origin::Flag,
        ValueSource::EnvVariable => Origin::Variable(setting.variable()),
        _ => return None,
    };
    let values = match setting.kind {
        Kind::Switch => vec![matches.get_flag(setting.name).to_string()],
        _ => matches.get_many::<String>(setting.name)?.cloned().collect(),
    };
    // An empty variable says nothing.
    (values != [""]).then_some((values, origin))
}

/// The values of a TOML file by the names of their settings.
fn read_file(table: &[Setting], path: &Path) -> Result<BTreeMap<&'static str, Vec<String>>, CliError> {
    const BYTES_MAX: u64 = 1 << 20;
    let refuse = |detail: String| CliError::Usage(format!("{}: {detail}", path.display()));
    let bytes = std::fs::metadata(path).map_err(CliError::io(format!("reading {}", path.display())))?.len();
    if bytes > BYTES_MAX {
        return Err(refuse(format!("{bytes} bytes are more than a configuration has")));
    }
    let text = std::fs::read_to_string(path).map_err(CliError::io(format!("reading {}", path.display())))?;
    let file: toml::Table = text.parse().map_err(|error: toml::de::Error| refuse(error.to_string()))?;
    let mut values = BTreeMap::new();
    for (key, value) in &file {
        let Some(setting) = table.iter().find(|setting| setting.key() == *key) else {
            return Err(refuse(unknown_key(table, key)));
        };
        let texts = texts(setting, value).ok_or_else(|| {
            let expected = match setting.kind {
                Kind::Switch => "true or false",
                Kind::Many => "a string or a list of strings",
                _ => "one value",
            };
            refuse(format!("{key} has to be {expected}"))
        })?;
        values.insert(setting.name, texts);
    }
    Ok(values)
}

fn texts(setting: &Setting, value: &Value) -> Option<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    };
    match (setting.kind, value) {
        (Kind::Switch, Value::Boolean(flag)) => Some(vec![flag.to_string()]),
        (Kind::Switch, _) => None,
        (Kind::Many, Value::Array(list)) => list.iter().map(one).collect(),
        (_, value) => one(value).map(|text| vec![text]),
    }
}

fn unknown_key(table: &[Setting], key: &str) -> String {
    let near = table.iter().map(|setting| (distance(&setting.key(), key), setting.key())).min();
    match near {
        Some((distance, near)) if distance <= 3.max(key.len() / 3) => {
            format!("there is no setting {key}; did you mean {near}?")
        }
        _ => format!("there is no setting {key}; `gaterail serve --print-config` lists them"),
    }
}

/// What to say of variables that are none of ours and look very much like one: they would be passed over in silence.
pub fn misspelt(table: &[Setting], variables: impl Iterator<Item = String>) -> Vec<String> {
    let ours: Vec<String> = table.iter().map(Setting::variable).collect();
    let note = |name: String| {
        let near = ours.iter().map(|own| (distance(own, &name), own)).min()?;
        let note = || format!("gaterail: no setting has the variable {name}; did you mean {}?", near.1);
        (name.starts_with("GATERAIL_") && (1..=2).contains(&near.0)).then(note)
    };
    variables.filter_map(note).collect()
}

/// Letters to insert, delete or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_are_nearly_ours_are_named() {
        let table =
            [Setting { name: "max-batch", also: &[], kind: Kind::One, value: "N", default: "", help: "" }];
        let seen = ["GATERAIL_MAX_BATHC", "GATERAIL_MAX_BATCH", "GATERAIL_CACHE", "MAX_BATCH"];
        let notes = misspelt(&table, seen.map(str::to_owned).into_iter());
        assert_eq!(
            notes,
            ["gaterail: no setting has the variable GATERAIL_MAX_BATHC; did you mean GATERAIL_MAX_BATCH?"]
        );
    }

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("max_batch", "max_batch", 0), ("max_bach", "max_batch", 1), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
