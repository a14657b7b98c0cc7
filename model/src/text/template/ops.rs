//! Python's operators on template values. In: operands and the account of the rendering. Out: a value or an error.
//!
//! The rewritten template calls these under the names of [`OPERATORS`] in place of minijinja's own instructions: first
//! because those copy without a limit, second because Python decides differently in places (`1 == True`, `"a" < 1`).

use std::cmp::Ordering;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::budget::{Budget, Halt, NESTING_MAX};
use super::{methods, show};

/// How a two-operand function looks.
type Binary = fn(&Value, &Value, &mut Budget) -> Result<Value, Error>;

/// The names that a rewritten template calls, without their prefix.
pub const OPERATORS: [(&str, Binary); 16] = [
    ("add", add),
    ("sub", |a, b, _| arithmetic("-", a, b, i128::checked_sub, |a, b| a - b)),
    ("mul", mul),
    ("div", div),
    ("floordiv", floordiv),
    ("mod", modulo),
    ("pow", pow),
    ("concat", concat),
    ("eq", |a, b, budget| equal(a, b, 0, budget).map(Value::from)),
    ("ne", |a, b, budget| equal(a, b, 0, budget).map(|same| Value::from(!same))),
    ("lt", |a, b, budget| order("<", a, b, budget).map(|o| Value::from(o == Some(Ordering::Less)))),
    ("le", |a, b, budget| order("<=", a, b, budget).map(|o| Value::from(matches!(o, Some(o) if o.is_le())))),
    ("gt", |a, b, budget| order(">", a, b, budget).map(|o| Value::from(o == Some(Ordering::Greater)))),
    ("ge", |a, b, budget| order(">=", a, b, budget).map(|o| Value::from(matches!(o, Some(o) if o.is_ge())))),
    ("item", item),
    ("in", |item, container, budget| contains(container, item, budget).map(Value::from)),
];

pub fn register(env: &mut Environment<'static>, prefix: &str) {
    for (name, operator) in OPERATORS {
        let call = move |state: &mut State<'_, '_>, a: Value, b: Value| operator(&a, &b, Budget::of(state));
        env.add_function(format!("{prefix}{name}"), call);
    }
    env.add_function(format!("{prefix}neg"), |value: Value| negate(&value));
    env.add_function(format!("{prefix}slice"), |state: &mut State<'_, '_>, value: Value, bounds: Value| {
        slice(&value, &bounds, Budget::of(state))
    });
}

#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Number> {
        match value.kind() {
            ValueKind::Bool => Some(Number::Int(value.is_true().into())),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Number::Int),
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
            _ => None,
        }
    }

    fn as_f64(self) -> f64 {
        match self {
            Number::Int(int) => int as f64,
            Number::Float(float) => float,
        }
    }
}

fn integer(value: i128) -> Value {
    i64::try_from(value).map_or_else(|_| Value::from(value), Value::from)
}

pub fn add(a: &Value, b: &Value, budget: &mut Budget) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        if a.is_safe() || b.is_safe() {
            return join_markup(a, b, budget);
        }
        budget.bytes(left.len() + right.len())?;
        return Ok(Value::from([left, right].concat()));
    }
    if is_sequence(a) && is_sequence(b) && a.is_tuple() == b.is_tuple() {
        let count = a.len().unwrap_or(0) + b.len().unwrap_or(0);
        budget.container(count)?;
        return collect(a.try_iter()?.chain(b.try_iter()?).collect(), a.is_tuple());
    }
    arithmetic("+", a, b, i128::checked_add, |a, b| a + b)
}

fn mul(a: &Value, b: &Value, budget: &mut Budget) -> Result<Value, Error> {
    let (thing, times) = if Number::of(a).is_some() { (b, a) } else { (a, b) };
    if Number::of(thing).is_some() {
        return arithmetic("*", a, b, i128::checked_mul, |a, b| a * b);
    }
    let Some(Number::Int(times)) = Number::of(times) else { return Err(unsupported("*", a, b)) };
    let times = usize::try_from(times.max(0)).map_err(|_| Halt::Bytes)?;
    if let Some(text) = thing.as_str() {
        budget.bytes(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    if !is_sequence(thing) {
        return Err(unsupported("*", a, b));
    }
    let once: Vec<Value> = thing.try_iter()?.collect();
    budget.container(once.len().saturating_mul(times))?;
    collect(std::iter::repeat_n(once, times).flatten().collect(), thing.is_tuple())
}

fn div(a: &Value, b: &Value, _: &mut Budget) -> Result<Value, Error> {
    let (Some(x), Some(y)) = (Number::of(a), Number::of(b)) else { return Err(unsupported("/", a, b)) };
    if y.as_f64() == 0.0 {
        return Err(bad("division by zero"));
    }
    Ok(Value::from(x.as_f64() / y.as_f64()))
}

fn floordiv(a: &Value, b: &Value, _: &mut Budget) -> Result<Value, Error> {
    require_divisor(b)?;
    let floor = |a: i128, b: i128| {
        Some(a.checked_div_euclid(b)? - i128::from(b < 0 && a.checked_rem_euclid(b)? != 0))
    };
    arithmetic("//", a, b, floor, |a, b| (a / b).floor())
}

fn modulo(a: &Value, b: &Value, budget: &mut Budget) -> Result<Value, Error> {
    if let Some(format) = a.as_str() {
        let args: Vec<Value> = if b.is_tuple() { b.try_iter()?.collect() } else { vec![b.clone()] };
        return methods::printf(format, &args, budget);
    }
    require_divisor(b)?;
    let rem =
        |a: i128, b: i128| a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r });
    arithmetic("%", a, b, rem, |a, b| {
        let r = a % b;
        if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
    })
}

fn require_divisor(value: &Value) -> Result<(), Error> {
    match Number::of(value) {
        Some(divisor) if divisor.as_f64() == 0.0 => Err(bad("division or modulo by zero")),
        _ => Ok(()),
    }
}

fn pow(a: &Value, b: &Value, _: &mut Budget) -> Result<Value, Error> {
    if let (Some(Number::Int(base)), Some(Number::Int(exponent))) = (Number::of(a), Number::of(b)) {
        if exponent < 0 {
            return Ok(Value::from((base as f64).powf(exponent as f64)));
        }
        let power = u32::try_from(exponent).ok().and_then(|exponent| base.checked_pow(exponent));
        return power.map(integer).ok_or_else(|| bad("integer overflow in **"));
    }
    arithmetic("**", a, b, |_, _| None, f64::powf)
}

fn concat(a: &Value, b: &Value, budget: &mut Budget) -> Result<Value, Error> {
    let mut out = show::text(a, budget)?;
    show::write_text(&mut out, b, budget)?;
    Ok(Value::from(out))
}

/// What `|safe` marked escapes what it is joined with (markupsafe's `Markup.__add__`).
fn join_markup(a: &Value, b: &Value, budget: &mut Budget) -> Result<Value, Error> {
    let (left, right) = (escaped(a, budget)?, escaped(b, budget)?);
    let mut out = show::text(&left, budget)?;
    show::write_text(&mut out, &right, budget)?;
    Ok(Value::from_safe_string(out))
}

/// `value` as text with the signs of HTML escaped, unless it is marked as safe.
pub fn escaped(value: &Value, budget: &mut Budget) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = show::text(value, budget)?;
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let text = text.replace('\'', "&#39;").replace('"', "&#34;");
    budget.bytes(text.len())?;
    Ok(Value::from_safe_string(text))
}

fn negate(value: &Value) -> Result<Value, Error> {
    match Number::of(value) {
        Some(Number::Int(int)) => int.checked_neg().map(integer).ok_or_else(|| bad("integer overflow in -")),
        Some(Number::Float(float)) => Ok(Value::from(-float)),
        None => Err(bad(format!("bad operand type for unary -: {}", value.kind()))),
    }
}

fn arithmetic(
    sign: &str,
    a: &Value,
    b: &Value,
    ints: fn(i128, i128) -> Option<i128>,
    floats: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    match (Number::of(a), Number::of(b)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => {
            ints(a, b).map(integer).ok_or_else(|| bad(format!("integer overflow in {sign}")))
        }
        (Some(a), Some(b)) => Ok(Value::from(floats(a.as_f64(), b.as_f64()))),
        _ => Err(unsupported(sign, a, b)),
    }
}

/// Python's `==`.
pub fn equal(a: &Value, b: &Value, depth: u32, budget: &mut Budget) -> Result<bool, Error> {
    if depth > NESTING_MAX {
        return Err(Halt::Nesting.into());
    }
    budget.elements(1)?;
    if let (Some(x), Some(y)) = (Number::of(a), Number::of(b)) {
        return Ok(compare_numbers(x, y) == Some(Ordering::Equal));
    }
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        budget.bytes(x.len().min(y.len()))?;
        return Ok(x == y);
    }
    if is_sequence(a) && is_sequence(b) {
        if a.is_tuple() != b.is_tuple() || a.len() != b.len() {
            return Ok(false);
        }
        for (x, y) in a.try_iter()?.zip(b.try_iter()?) {
            if !equal(&x, &y, depth + 1, budget)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    match (a.kind(), b.kind()) {
        (ValueKind::Map, ValueKind::Map) => equal_maps(a, b, depth, budget),
        (ValueKind::Plain, ValueKind::Plain) => Ok(a.to_string() == b.to_string()),
        (left, right) => Ok(left == right && matches!(left, ValueKind::None | ValueKind::Undefined)),
    }
}

fn equal_maps(a: &Value, b: &Value, depth: u32, budget: &mut Budget) -> Result<bool, Error> {
    let (Some(x), Some(y)) = (a.as_object(), b.as_object()) else { return Ok(false) };
    if x.enumerator_len() != y.enumerator_len() {
        return Ok(false);
    }
    for (key, left) in x.try_iter_pairs().into_iter().flatten() {
        match y.get_value(&key) {
            Some(right) if equal(&left, &right, depth + 1, budget)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn compare_numbers(a: Number, b: Number) -> Option<Ordering> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
        (a, b) => a.as_f64().partial_cmp(&b.as_f64()),
    }
}

/// Python's ordering of numbers, of strings and of sequences; `None` where NaN is involved.
fn order(sign: &str, a: &Value, b: &Value, budget: &mut Budget) -> Result<Option<Ordering>, Error> {
    if let (Some(x), Some(y)) = (Number::of(a), Number::of(b)) {
        return Ok(compare_numbers(x, y));
    }
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        budget.bytes(x.len().min(y.len()))?;
        return Ok(Some(x.cmp(y)));
    }
    if !(is_sequence(a) && is_sequence(b) && a.is_tuple() == b.is_tuple()) {
        return Err(unsupported(sign, a, b));
    }
    for (x, y) in a.try_iter()?.zip(b.try_iter()?) {
        if !equal(&x, &y, 1, budget)? {
            return order(sign, &x, &y, budget);
        }
    }
    Ok(Some(a.len().cmp(&b.len())))
}

/// Python's `in`. Nothing is in an undefined container.
pub fn contains(container: &Value, item: &Value, budget: &mut Budget) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        let Some(part) = item.as_str() else { return Err(unsupported("in", item, container)) };
        budget.bytes(text.len())?;
        return Ok(text.contains(part));
    }
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::Map => {
            hashable(item, budget)?;
            Ok(container.as_object().is_some_and(|object| object.get_value(item).is_some()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for element in container.try_iter()? {
                if equal(&element, item, 0, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Err(unsupported("in", item, container)),
    }
}

/// Refuses as keys what Python cannot hash, and charges for the rest.
pub fn hashable(value: &Value, budget: &mut Budget) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            Err(bad(format!("unhashable type: {}", value.kind())))
        }
        _ => budget.characters(value),
    }
}

/// Python's `value[key]`.
fn item(value: &Value, key: &Value, budget: &mut Budget) -> Result<Value, Error> {
    budget.characters(value)?;
    budget.characters(key)?;
    if value.kind() == ValueKind::Iterable {
        budget.shallow(value)?;
    }
    let fraction = key.kind() == ValueKind::Number && !key.is_integer();
    if fraction && !value.is_undefined() && value.kind() != ValueKind::Map {
        // No position, even where it is whole.
        return Ok(Value::UNDEFINED);
    }
    value.get_item(key)
}

/// Python's `value[start:stop:step]`; `bounds` holds the three, none where left out.
fn slice(value: &Value, bounds: &Value, budget: &mut Budget) -> Result<Value, Error> {
    let text: Option<Vec<char>> = match value.as_str() {
        Some(text) => {
            budget.bytes(text.len().saturating_mul(4))?;
            Some(text.chars().collect())
        }
        None if is_sequence(value) => None,
        None => return Err(unsupported("[:]", value, bounds)),
    };
    let length = text.as_ref().map_or_else(|| value.len().unwrap_or(0), Vec::len);
    let picked = positions(length, bounds)?;
    if let Some(chars) = text {
        return Ok(Value::from(picked.map(|at| chars[at]).collect::<String>()));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    budget.container(items.len())?;
    collect(picked.map(|at| items[at].clone()).collect(), value.is_tuple())
}

/// The positions that a slice of a sequence of `length` picks, in order (CPython's `PySlice_AdjustIndices`).
fn positions(length: usize, bounds: &Value) -> Result<impl Iterator<Item = usize>, Error> {
    let bound = |at: i64| -> Result<Option<i128>, Error> {
        let value = bounds.get_item(&Value::from(at))?;
        match Number::of(&value) {
            Some(Number::Int(int)) => Ok(Some(int)),
            None if value.is_none() => Ok(None),
            _ => Err(bad("slice indices must be integers or none")),
        }
    };
    let length = length as i128;
    let step = bound(2)?.unwrap_or(1).clamp(-length - 1, length + 1);
    let (lowest, highest) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let adjust = |at: i128| if at < 0 { at.saturating_add(length).max(lowest) } else { at.min(highest) };
    let (first, last) = if step < 0 { (highest, lowest) } else { (lowest, highest) };
    if bound(2)? == Some(0) {
        return Err(bad("slice step cannot be zero"));
    }
    let start = bound(0)?.map_or(first, adjust);
    let stop = bound(1)?.map_or(last, adjust);
    let distance = if step < 0 { start - stop } else { stop - start };
    let count = if distance <= 0 { 0 } else { (distance - 1) / step.abs() + 1 };
    // Every position lies within 0 .. length by the clamps above.
    Ok((0..count).map(move |i| (start + i * step) as usize))
}

pub fn is_sequence(value: &Value) -> bool {
    value.kind() == ValueKind::Seq
}

fn collect(items: Vec<Value>, tuple: bool) -> Result<Value, Error> {
    Ok(if tuple { Value::from(Tuple::from(items)) } else { Value::from(items) })
}

fn unsupported(sign: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("operand of {sign} is undefined"));
    }
    bad(format!("unsupported operand types for {sign}: {} and {}", a.kind(), b.kind()))
}

fn bad(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}
