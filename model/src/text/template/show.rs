//! Values as Python prints them: `str()` for output and concatenation, `repr()` inside containers.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::budget::{Budget, Halt, NESTING_MAX};
use super::lazy::{Kind, Lazy};

/// Characters of a message that a template wrote.
const MESSAGE_CHARS_MAX: usize = 300;

/// `str(value)`; undefined prints nothing, as Jinja2's default `Undefined` does.
pub fn text(value: &Value, budget: &mut Budget) -> Result<String, Error> {
    let mut out = String::new();
    write_text(&mut out, value, budget)?;
    Ok(out)
}

pub fn write_text(out: &mut String, value: &Value, budget: &mut Budget) -> Result<(), Error> {
    if value.is_undefined() {
        return Ok(());
    }
    match value.as_str() {
        Some(text) => {
            budget.bytes(text.len())?;
            out.push_str(text);
            Ok(())
        }
        None => write_repr(out, value, 0, budget),
    }
}

/// `repr(value)`.
pub fn write_repr(out: &mut String, value: &Value, depth: u32, budget: &mut Budget) -> Result<(), Error> {
    if depth > NESTING_MAX {
        return Err(Halt::Nesting.into());
    }
    budget.shallow(value)?;
    let start = out.len();
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => return write_sequence(out, value, depth, budget),
        ValueKind::Map => return write_map(out, value, depth, budget),
        _ => out.push_str("<object>"),
    }
    budget.bytes(out.len() - start)
}

fn write_sequence(out: &mut String, value: &Value, depth: u32, budget: &mut Budget) -> Result<(), Error> {
    let view = match Lazy::kind_of(value) {
        None => "",
        Some(Kind::Generator) => {
            out.push_str("<generator object>");
            return Ok(());
        }
        Some(Kind::Keys) => "dict_keys(",
        Some(Kind::Values) => "dict_values(",
        Some(Kind::Items) => "dict_items(",
    };
    let tuple = value.is_tuple();
    out.push_str(view);
    out.push(if tuple { '(' } else { '[' });
    let mut count = 0;
    for item in value.try_iter()? {
        if count > 0 {
            out.push_str(", ");
        }
        write_repr(out, &item, depth + 1, budget)?;
        budget.elements(1)?;
        count += 1;
    }
    if tuple && count == 1 {
        out.push(',');
    }
    out.push(if tuple { ')' } else { ']' });
    out.push_str(if view.is_empty() { "" } else { ")" });
    Ok(())
}

fn write_map(out: &mut String, value: &Value, depth: u32, budget: &mut Budget) -> Result<(), Error> {
    let namespace = is_namespace(value);
    out.push_str(if namespace { "<Namespace {" } else { "{" });
    let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
    for (i, (key, item)) in pairs.into_iter().flatten().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write_repr(out, &key, depth + 1, budget)?;
        out.push_str(": ");
        write_repr(out, &item, depth + 1, budget)?;
    }
    out.push_str(if namespace { "}>" } else { "}" });
    Ok(())
}

/// Whether `value` is what `namespace()` returns: the one kind of value that a template can change.
pub fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Whether storing `value` inside another could close a cycle that nobody would ever free.
pub fn holds_state(value: &Value) -> bool {
    is_namespace(value) || value.as_object().is_some_and(|object| object.type_name().ends_with("::Loop"))
}

/// A number as Python prints it.
pub fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    // A number that is no integer is a float in minijinja.
    float(f64::try_from(value.clone()).unwrap_or(f64::NAN))
}

/// `repr(float)`: the shortest digits that read back as `x`, with an exponent outside 1e-4 .. 1e16.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    // `{:e}` always writes an `e` followed by an integer.
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// A string as `repr` quotes it.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&code(c)),
        }
    }
    out.push(mark);
}

/// A character as `repr` writes one that cannot be printed.
pub fn code(c: char) -> String {
    match c as u32 {
        code @ 0..=0xff => format!("\\x{code:02x}"),
        code @ 0..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

/// A message that a template wrote: at most [`MESSAGE_CHARS_MAX`] characters, none of them moves a terminal's cursor.
pub fn tame(message: &str) -> String {
    let mut out = String::new();
    for c in message.chars().take(MESSAGE_CHARS_MAX) {
        match c {
            '\n' => out.push_str("\\n"),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&code(c)),
        }
    }
    if message.chars().nth(MESSAGE_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

/// Python's `str.isprintable` for one character, without the unassigned code points.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c as u32,
        0xa0 | 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x1680 | 0x180e | 0x2000..=0x200f
        | 0x2028..=0x202f | 0x205f..=0x206f | 0x3000 | 0xe000..=0xf8ff | 0xfeff | 0xfff9..=0xfffb
        | 0xe0000..=0xe007f | 0xf0000..=0x10_ffff);
    !c.is_control() && !hidden
}
