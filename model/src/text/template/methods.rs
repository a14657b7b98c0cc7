//! Python's methods of `str`, `dict` and `list` that templates call. In: the value, the name, the arguments.
//!
//! Where Python and minijinja's pycompat agree, pycompat answers; what differs is written here.

use std::collections::BTreeSet;

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::budget::Budget;
use super::lazy::{Kind, Lazy};
use super::{ops, show};

/// Digits that a width or precision in a format string may have.
const FORMAT_DIGITS_MAX: usize = 4;

/// What `dict` knows: an attribute of that name is the method and not the key of the same name.
const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];

/// The environment's callback for methods that the objects themselves do not have.
pub fn call(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    for input in std::iter::once(value).chain(args) {
        Budget::of(state).shallow(input)?;
    }
    let known = match value.kind() {
        ValueKind::String => {
            string_method(value.as_str().unwrap_or_default(), name, args, Budget::of(state))?
        }
        ValueKind::Map => dict_method(value, name, args, Budget::of(state))?,
        ValueKind::Seq | ValueKind::Iterable => list_method(value, name, args, Budget::of(state))?,
        _ => None,
    };
    let result = match known {
        Some(result) => result,
        None => unknown_method_callback(state, value, name, args)?,
    };
    Budget::of(state).shallow(&result)?;
    Ok(result)
}

/// `value.name` where `name` is a method of `dict`: Jinja2 looks for attributes before keys.
pub fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if value.kind() == ValueKind::Map && !show::is_namespace(value) && is_dict_method(name) {
        return Ok(Value::from_function(|| -> Result<Value, Error> {
            Err(bad("a method taken as a value"))
        }));
    }
    if value.is_undefined() {
        return Err(Error::new(
            ErrorKind::UndefinedError,
            format!("no attribute {name} in an undefined value"),
        ));
    }
    value.get_attr(name)
}

/// `loop.cycle(...)` and `loop.changed(...)`, where `value` is a loop; otherwise any method of that name.
pub fn loop_method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if show::holds_state(value) {
        if name == "cycle" && args.is_empty() {
            return Err(bad("loop.cycle() of nothing"));
        }
        for arg in args {
            // `changed` compares everything inside with what it saw before.
            Budget::of(state).deep(arg, 0)?;
        }
    }
    value.call_method(state, name, args)
}

/// Whether the rewritten template calls [`loop_method`] for a method of this name.
pub fn is_loop_method(name: &str) -> bool {
    matches!(name, "cycle" | "changed")
}

pub fn is_dict_method(name: &str) -> bool {
    DICT_METHODS.contains(&name)
}

fn string_method(
    text: &str,
    name: &str,
    args: &[Value],
    budget: &mut Budget,
) -> Result<Option<Value>, Error> {
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, set, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let (separator, limit) = split_args(args)?;
            let parts = split(text, separator.as_deref(), limit, name == "rsplit")?;
            budget.container(parts.len())?;
            Value::from(parts)
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            let lines = splitlines(text, keep.unwrap_or(false));
            budget.container(lines.len())?;
            Value::from(lines)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text, separator, name == "rpartition")?
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            join(text, &items, budget)?
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(text, old, new, count, budget)?
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" | "find" | "rfind" => find(text, name, args)?,
        "ljust" | "rjust" | "center" | "zfill" => pad(text, name, args, budget)?,
        "capitalize" => Value::from(capitalize(text)),
        "swapcase" => Value::from(text.chars().map(swap_case).collect::<String>()),
        "istitle" | "isidentifier" | "encode" | "translate" | "maketrans" => {
            return Err(no_method("str", name));
        }
        "format" => {
            require_tame(text, '{')?;
            charge_fields(text, '{', args, budget)?;
            Value::from(format(FormatStyle::StrFormat, text, args)?)
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn dict_method(
    value: &Value,
    name: &str,
    args: &[Value],
    budget: &mut Budget,
) -> Result<Option<Value>, Error> {
    let Some(object) = value.as_object() else { return Ok(None) };
    let result = match name {
        "items" | "keys" | "values" => {
            let () = from_args(args)?;
            let pairs = object.try_iter_pairs().into_iter().flatten();
            let (kind, items): (_, Vec<Value>) = match name {
                "keys" => (Kind::Keys, pairs.map(|(key, _)| key).collect()),
                "values" => (Kind::Values, pairs.map(|(_, item)| item).collect()),
                _ => (Kind::Items, pairs.map(|(key, item)| Value::from(Tuple::from([key, item]))).collect()),
            };
            budget.container(items.len())?;
            Lazy::value(kind, items)
        }
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            ops::hashable(key, budget)?;
            object.get_value(key).or(default).unwrap_or(Value::from(()))
        }
        "copy" => value.clone(),
        "clear" | "pop" | "popitem" | "setdefault" | "update" => {
            return Err(bad(format!("access to the method {name} of a dict is unsafe")));
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn list_method(
    value: &Value,
    name: &str,
    args: &[Value],
    budget: &mut Budget,
) -> Result<Option<Value>, Error> {
    match name {
        "count" | "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let mut count = 0;
            for (at, item) in value.try_iter()?.enumerate() {
                let same = ops::equal(&item, wanted, 0, budget)?;
                if same && name == "index" {
                    return Ok(Some(Value::from(at)));
                }
                count += usize::from(same);
            }
            if name == "index" { Err(bad("not in list")) } else { Ok(Some(Value::from(count))) }
        }
        "copy" => Ok(Some(value.clone())),
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => {
            Err(bad(format!("access to the method {name} of a list is unsafe")))
        }
        _ => Ok(None),
    }
}

/// Python's `str.strip` family: a set of characters, or white space.
pub fn strip<'a>(text: &'a str, set: Option<&str>, left: bool, right: bool) -> &'a str {
    let set: Option<BTreeSet<char>> = set.map(|set| set.chars().collect());
    let drop = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    let text = if left { text.trim_start_matches(drop) } else { text };
    if right { text.trim_end_matches(drop) } else { text }
}

/// Python's white space is Unicode's and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn split_args(args: &[Value]) -> Result<(Option<String>, Option<usize>), Error> {
    let (separator, limit, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(kwargs.get::<Option<Value>>("sep")?).filter(|value| !value.is_none());
    let limit = limit.or(kwargs.get::<Option<i64>>("maxsplit")?);
    kwargs.assert_all_used()?;
    let separator = match separator {
        None => None,
        Some(value) => {
            Some(value.as_str().ok_or_else(|| bad("split: the separator is not a string"))?.to_owned())
        }
    };
    Ok((separator, limit.and_then(|limit| usize::try_from(limit).ok())))
}

fn split(
    text: &str,
    separator: Option<&str>,
    limit: Option<usize>,
    from_end: bool,
) -> Result<Vec<Value>, Error> {
    let limit = limit.unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(bad("empty separator")),
        Some(separator) if from_end => text.rsplitn(limit + 1, separator).collect(),
        Some(separator) => text.splitn(limit + 1, separator).collect(),
        None => split_space(text, limit, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `split()` without a separator: runs of white space part, and never give an empty piece.
fn split_space(text: &str, limit: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, true, true);
    while !rest.is_empty() {
        let at = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = at.filter(|_| parts.len() < limit) else { break };
        let (head, tail) = rest.split_at(at);
        let (part, left) = if from_end { (tail, head) } else { (head, tail) };
        parts.push(strip(part, None, true, true));
        rest = strip(left, None, !from_end, from_end);
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

fn splitlines(text: &str, keep: bool) -> Vec<Value> {
    let is_break = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_break) {
        let width = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(Value::from(&rest[..if keep { at + width } else { at }]));
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    lines
}

fn partition(text: &str, separator: &str, from_end: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(bad("empty separator"));
    }
    let found = if from_end { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match found {
        Some((head, tail)) => [head, separator, tail],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// `separator.join(items)`: strings only.
fn join(separator: &str, items: &Value, budget: &mut Budget) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        let Some(text) = item.as_str() else {
            return Err(bad(format!("join: item {i} is of type {} and not a string", item.kind())));
        };
        budget.bytes(text.len() + separator.len())?;
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(Value::from(out))
}

pub fn replace(
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
    budget: &mut Budget,
) -> Result<Value, Error> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let hits = text.matches(old).take(count).count();
    budget.bytes(text.len().saturating_add(hits.saturating_mul(new.len())))?;
    Ok(Value::from(text.replacen(old, new, count)))
}

fn find(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (part, start): (&str, Option<i64>) = from_args(args)?;
    let length = text.chars().count() as i64;
    let start = start.map_or(0, |start| if start < 0 { (start + length).max(0) } else { start });
    let offset = text.char_indices().nth(start as usize).map_or(text.len(), |(at, _)| at);
    let tail = &text[offset..];
    let at = if name.starts_with('r') { tail.rfind(part) } else { tail.find(part) };
    match at.filter(|_| start <= length) {
        Some(at) => Ok(Value::from(text[..offset + at].chars().count())),
        None if name.ends_with("index") => Err(bad("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn pad(text: &str, name: &str, args: &[Value], budget: &mut Budget) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = if name == "zfill" { "0" } else { fill.unwrap_or(" ") };
    let length = text.chars().count();
    let room = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    budget.bytes(room.saturating_mul(fill.len()).saturating_add(text.len()))?;
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) if name == "zfill" => text.split_at(text.len() - digits.len()),
        _ => ("", text),
    };
    // CPython's `center` puts the odd one to the left only where the width is odd.
    let left = match name {
        "ljust" => 0,
        "center" => room / 2 + (room & width as usize & 1),
        _ => room,
    };
    Ok(Value::from([sign, &fill.repeat(left), digits, &fill.repeat(room - left)].concat()))
}

pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

fn swap_case(c: char) -> char {
    let mut other =
        if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
    if other.chars().count() == 1 { other.pop().unwrap_or(c) } else { c }
}

/// `format % args`.
pub fn printf(text: &str, args: &[Value], budget: &mut Budget) -> Result<Value, Error> {
    require_tame(text, '%')?;
    budget.bytes(text.len())?;
    charge_fields(text, '%', args, budget)?;
    Ok(Value::from(format(FormatStyle::Printf, text, args)?))
}

/// Charges every argument for every field of a format string: each may print any of them, whole.
fn charge_fields(text: &str, opening: char, args: &[Value], budget: &mut Budget) -> Result<(), Error> {
    for _ in 0..text.matches(opening).count() {
        args.iter().try_for_each(|arg| budget.deep(arg, 0))?;
    }
    Ok(())
}

/// Refuses widths that would allocate without end: long numbers, and widths that come from arguments.
fn require_tame(text: &str, opening: char) -> Result<(), Error> {
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    let nested = match opening {
        '{' => text.replace("{{", "").split('{').skip(1).any(|field| !field.contains('}')),
        _ => text.split('%').skip(1).any(|spec| {
            let spec = spec.trim_start_matches(|c: char| "#0- +.".contains(c) || c.is_ascii_digit());
            spec.starts_with('*')
        }),
    };
    if digits > FORMAT_DIGITS_MAX || nested {
        return Err(bad("a width in the format string is too large or comes from an argument"));
    }
    Ok(())
}

fn no_method(kind: &str, name: &str) -> Error {
    Error::new(ErrorKind::UnknownMethod, format!("{kind} has no method {name} here"))
}

fn bad(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}
