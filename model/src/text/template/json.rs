//! `json.dumps` as Python writes it: separators, indentation, float digits, and no HTML escapes.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::budget::{Budget, Halt, NESTING_MAX};
use super::show;

/// Spaces or characters that one level of indentation may have.
const INDENT_MAX: usize = 64;

/// The options of `json.dumps` that transformers' `tojson` offers.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn tojson(
    state: &mut State<'_, '_>,
    value: Value,
    args: Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let style = Style::from_args(&args, &kwargs)?;
    let mut out = String::new();
    style.write(&mut out, &value, 0, Budget::of(state))?;
    Ok(Value::from(out))
}

impl Style {
    fn from_args(args: &[Value], kwargs: &Kwargs) -> Result<Style, Error> {
        let option = |at: usize, name: &str| -> Result<Option<Value>, Error> {
            let named: Option<Value> = kwargs.get(name)?;
            Ok(named.or_else(|| args.get(at).cloned()).filter(|value| !value.is_none()))
        };
        let flag = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let ensure_ascii = flag(option(0, "ensure_ascii")?);
        let indent = option(1, "indent")?.map(indentation).transpose()?;
        let separators = option(2, "separators")?;
        let sort_keys = flag(option(3, "sort_keys")?);
        kwargs.assert_all_used()?;
        let (item_separator, key_separator) = match separators {
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
            Some(pair) => {
                let parts: Vec<Value> = pair.try_iter()?.take(3).collect();
                match parts.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                    [Some(item), Some(key)] => (item.to_owned(), key.to_owned()),
                    _ => return Err(bad("tojson: separators is not a pair of strings")),
                }
            }
        };
        Ok(Style { ensure_ascii, indent, item_separator, key_separator, sort_keys })
    }

    fn write(&self, out: &mut String, value: &Value, depth: u32, budget: &mut Budget) -> Result<(), Error> {
        if depth > NESTING_MAX {
            return Err(Halt::Nesting.into());
        }
        budget.shallow(value)?;
        let start = out.len();
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq => return self.sequence(out, value, depth, budget),
            ValueKind::Map if !show::holds_state(value) => return self.map(out, value, depth, budget),
            kind => return Err(bad(format!("a value of type {kind} is not JSON serializable"))),
        }
        budget.bytes(out.len() - start)
    }

    fn sequence(
        &self,
        out: &mut String,
        value: &Value,
        depth: u32,
        budget: &mut Budget,
    ) -> Result<(), Error> {
        out.push('[');
        let mut empty = true;
        for item in value.try_iter()? {
            self.next_item(out, &mut empty, depth + 1, budget)?;
            self.write(out, &item, depth + 1, budget)?;
        }
        self.close(out, empty, depth);
        out.push(']');
        Ok(())
    }

    fn map(&self, out: &mut String, value: &Value, depth: u32, budget: &mut Budget) -> Result<(), Error> {
        let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
        let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
        if self.sort_keys {
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
        }
        out.push('{');
        let mut empty = true;
        for (key, item) in pairs {
            self.next_item(out, &mut empty, depth + 1, budget)?;
            match key.kind() {
                ValueKind::String => self.write(out, &key, depth + 1, budget)?,
                ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                    out.push('"');
                    self.write(out, &key, depth + 1, budget)?;
                    out.push('"');
                }
                kind => return Err(bad(format!("a key of type {kind} is not JSON serializable"))),
            }
            out.push_str(&self.key_separator);
            self.write(out, &item, depth + 1, budget)?;
        }
        self.close(out, empty, depth);
        out.push('}');
        Ok(())
    }

    fn next_item(
        &self,
        out: &mut String,
        empty: &mut bool,
        depth: u32,
        budget: &mut Budget,
    ) -> Result<(), Error> {
        if !*empty {
            out.push_str(&self.item_separator);
        }
        *empty = false;
        budget.bytes(self.item_separator.len())?;
        if let Some(indent) = &self.indent {
            budget.bytes(indent.len() * depth as usize)?;
            self.line(out, indent, depth);
        }
        Ok(())
    }

    fn close(&self, out: &mut String, empty: bool, depth: u32) {
        if let (Some(indent), false) = (&self.indent, empty) {
            self.line(out, indent, depth);
        }
    }

    fn line(&self, out: &mut String, indent: &str, depth: u32) {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    let mut units = [0u16; 2];
                    c.encode_utf16(&mut units)
                        .iter()
                        .for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `indent=` as Python takes it: a number of spaces or the text itself.
fn indentation(value: Value) -> Result<String, Error> {
    let indent = match value.as_str() {
        Some(text) => text.to_owned(),
        None => match value.as_i64() {
            Some(spaces) => " ".repeat(spaces.clamp(0, INDENT_MAX as i64 + 1) as usize),
            None => return Err(bad("tojson: indent is neither a number nor a string")),
        },
    };
    if indent.len() > INDENT_MAX {
        return Err(bad(format!("tojson: indent is over {INDENT_MAX}")));
    }
    Ok(indent)
}

fn number(value: &Value) -> String {
    match show::number(value).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        finite => finite.to_owned(),
    }
}

fn bad(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}
