//! The filters, tests and functions that a template may use: Jinja2's names with Jinja2's meaning, nothing else.
//!
//! The environment starts empty, so that a name which is not here is refused. What minijinja does as Jinja2 does is
//! taken from it, with its inputs and outputs charged; the rest is written here.

use std::time::SystemTime;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions, tests};

use super::budget::{Budget, Halt};
use super::lazy::{Kind, Lazy};
use super::rewrite::PREFIX;
use super::{clock, json, methods, ops, show};

/// Numbers that a filter takes as an argument (widths, counts) stay below this.
const FILTER_NUMBER_MAX: i64 = 10_000;

/// The context variable with the moment of the rendering, in seconds since 1970.
pub const NOW: &str = "_gt_now";

/// A new environment with everything registered.
pub fn environment() -> Environment<'static> {
    let mut env = Environment::empty();
    ops::register(&mut env, PREFIX);
    add_hooks(&mut env);
    add_text_filters(&mut env);
    add_sequence_filters(&mut env);
    add_native_filters(&mut env);
    add_tests(&mut env);
    add_functions(&mut env);
    env.set_unknown_method_callback(methods::call);
    env
}

/// The functions that only the rewriter names.
fn add_hooks(env: &mut Environment<'static>) {
    env.add_function(format!("{PREFIX}text"), |text: Value| text);
    env.add_function(format!("{PREFIX}attr"), |value: Value, name: &str| methods::attribute(&value, name));
    env.add_function(format!("{PREFIX}key"), |state: &mut State<'_, '_>, key: Value| {
        ops::hashable(&key, Budget::of(state)).map(|()| key)
    });
    env.add_function(
        format!("{PREFIX}loop"),
        |state: &mut State<'_, '_>, value: Value, name: &str, args: Rest<Value>| {
            methods::loop_method(state, &value, name, &args)
        },
    );
    env.add_function(format!("{PREFIX}keep"), |state: &mut State<'_, '_>, value: Value| {
        Budget::of(state).storable(&value).map(|()| value)
    });
    env.add_function(format!("{PREFIX}new"), |state: &mut State<'_, '_>, value: Value| {
        let budget = Budget::of(state);
        budget.container(value.len().unwrap_or(0))?;
        budget.watch(&value);
        Ok::<_, Error>(value)
    });
    env.add_function(format!("{PREFIX}iter"), |state: &mut State<'_, '_>, value: Value| match value.kind() {
        ValueKind::Seq | ValueKind::Map => Ok(value),
        _ => listed(&value, Budget::of(state)),
    });
}

/// `list(value)`.
fn listed(value: &Value, budget: &mut Budget) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    if value.is_none() {
        return Err(bad("none is not iterable"));
    }
    budget.shallow(value)?;
    let mut items = Vec::new();
    for item in value.try_iter()? {
        budget.elements(1)?;
        items.push(item);
    }
    budget.container(0)?;
    Ok(Value::from(items))
}

fn add_text_filters(env: &mut Environment<'static>) {
    add_text(env, "string", |text| text);
    add_text(env, "safe", Value::from_safe_string);
    add_text(env, "upper", |text| text.to_uppercase());
    add_text(env, "lower", |text| text.to_lowercase());
    add_text(env, "capitalize", |text| methods::capitalize(&text));
    add_text(env, "title", |text| filters::title(text.into()));
    for name in ["escape", "e"] {
        env.add_filter(name, |state: &mut State<'_, '_>, value: Value| {
            ops::escaped(&value, Budget::of(state))
        });
    }
    add_text(env, "wordcount", |text| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).count()
    });
    env.add_filter("trim", |state: &mut State<'_, '_>, value: Value, set: Option<&str>| {
        let text = show::text(&value, Budget::of(state))?;
        Budget::of(state).bytes(set.map_or(0, str::len))?;
        Ok::<_, Error>(methods::strip(&text, set, true, true).to_owned())
    });
    env.add_filter("replace", replace);
    env.add_filter("join", join);
    env.add_filter("tojson", json::tojson);
    env.add_filter("pprint", |state: &mut State<'_, '_>, value: Value| {
        let mut out = String::new();
        show::write_repr(&mut out, &value, 0, Budget::of(state)).map(|()| out)
    });
    env.add_filter("format", |state: &mut State<'_, '_>, text: &str, args: Rest<Value>| {
        methods::printf(text, &args, Budget::of(state))
    });
}

fn add_text<T: Into<Value> + 'static>(
    env: &mut Environment<'static>,
    name: &'static str,
    change: fn(String) -> T,
) {
    env.add_filter(name, move |state: &mut State<'_, '_>, value: Value| {
        let text = show::text(&value, Budget::of(state))?;
        Budget::of(state).bytes(text.len())?;
        Ok::<Value, Error>(change(text).into())
    });
}

fn replace(state: &mut State<'_, '_>, value: Value, old: Value, args: Rest<Value>) -> Result<Value, Error> {
    let budget = Budget::of(state);
    let [new, count @ ..] = &args.0[..] else {
        return Err(bad("replace: what to put in its place is missing"));
    };
    let (text, old, new) = (show::text(&value, budget)?, show::text(&old, budget)?, show::text(new, budget)?);
    methods::replace(&text, &old, &new, count.first().and_then(Value::as_i64), budget)
}

/// `join(value, d="", attribute=None)`: every item as `str` prints it.
fn join(
    state: &mut State<'_, '_>,
    value: Value,
    separator: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let separator = separator.or(kwargs.get::<Option<Value>>("d")?).unwrap_or_else(|| Value::from(""));
    let attribute: Option<String> = kwargs.get("attribute")?;
    kwargs.assert_all_used()?;
    let budget = Budget::of(state);
    let mut out = String::new();
    for (i, mut item) in listed(&value, budget)?.try_iter()?.enumerate() {
        if let Some(attribute) = &attribute {
            budget.bytes(attribute.len())?;
            item = item.get_attr(attribute)?;
        }
        if i > 0 {
            show::write_text(&mut out, &separator, budget)?;
        }
        show::write_text(&mut out, &item, budget)?;
    }
    Ok(out)
}

fn add_sequence_filters(env: &mut Environment<'static>) {
    env.add_filter("list", |state: &mut State<'_, '_>, value: Value| listed(&value, Budget::of(state)));
    env.add_filter("first", |state: &mut State<'_, '_>, value: Value| {
        Ok::<_, Error>(listed(&value, Budget::of(state))?.try_iter()?.next().unwrap_or_default())
    });
    env.add_filter("last", |state: &mut State<'_, '_>, value: Value| {
        Ok::<_, Error>(listed(&value, Budget::of(state))?.try_iter()?.last().unwrap_or_default())
    });
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("items", |state: &mut State<'_, '_>, value: Value| match value.kind() {
        ValueKind::Undefined => Ok(Lazy::value(Kind::Generator, Vec::new())),
        ValueKind::Map => {
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            let items = pairs.into_iter().flatten().map(|(key, item)| Value::from(Tuple::from([key, item])));
            let items: Vec<Value> = items.collect();
            Budget::of(state).container(items.len())?;
            Ok(Lazy::value(Kind::Generator, items))
        }
        kind => Err(bad(format!("items: a value of type {kind} has no pairs"))),
    });
    env.add_filter("reverse", |state: &mut State<'_, '_>, value: Value| {
        if let Some(text) = value.as_str() {
            Budget::of(state).bytes(text.len())?;
            return Ok(Value::from(text.chars().rev().collect::<String>()));
        }
        let mut items: Vec<Value> = listed(&value, Budget::of(state))?.try_iter()?.collect();
        items.reverse();
        Ok::<_, Error>(Lazy::value(Kind::Generator, items))
    });
    env.add_filter("sum", |state: &mut State<'_, '_>, value: Value, args: Kwargs| {
        let attribute: Option<String> = args.get("attribute")?;
        let mut total: Value = args.get::<Option<Value>>("start")?.unwrap_or_else(|| Value::from(0));
        args.assert_all_used()?;
        for item in listed(&value, Budget::of(state))?.try_iter()? {
            Budget::of(state).bytes(attribute.as_ref().map_or(0, String::len))?;
            let item = attribute.as_ref().map_or_else(|| Ok(item.clone()), |name| item.get_attr(name))?;
            total = ops::add(&total, &item, Budget::of(state))?;
        }
        Ok::<_, Error>(total)
    });
}

fn length(state: &mut State<'_, '_>, value: &Value) -> Result<usize, Error> {
    Budget::of(state).characters(value)?;
    if value.is_undefined() {
        return Ok(0);
    }
    let length = value.len().filter(|_| Lazy::kind_of(value) != Some(Kind::Generator));
    length.ok_or_else(|| bad(format!("a value of type {} has no length", value.kind())))
}

/// How far a filter of minijinja's looks into its input, and what Python calls its output.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    Shallow,
    /// Compares or hashes what lies inside.
    Deep,
    /// Looks at every item once and gives a generator in Jinja2.
    Once,
}

fn add_native_filters(env: &mut Environment<'static>) {
    use Reach::{Deep, Once, Shallow};
    let natives = [
        ("default", Shallow, Value::from_function(filters::default)),
        ("d", Shallow, Value::from_function(filters::default)),
        ("abs", Shallow, Value::from_function(filters::abs)),
        ("int", Shallow, Value::from_function(filters::int)),
        ("float", Shallow, Value::from_function(filters::float)),
        ("round", Shallow, Value::from_function(filters::round)),
        ("attr", Shallow, Value::from_function(filters::attr)),
        ("indent", Shallow, Value::from_function(filters::indent)),
        ("batch", Once, Value::from_function(filters::batch)),
        ("slice", Once, Value::from_function(filters::slice)),
        ("select", Once, Value::from_function(filters::select)),
        ("reject", Once, Value::from_function(filters::reject)),
        ("selectattr", Once, Value::from_function(filters::selectattr)),
        ("rejectattr", Once, Value::from_function(filters::rejectattr)),
        ("map", Once, Value::from_function(filters::map)),
        ("min", Deep, Value::from_function(filters::min)),
        ("max", Deep, Value::from_function(filters::max)),
        ("sort", Deep, Value::from_function(filters::sort)),
        ("dictsort", Deep, Value::from_function(filters::dictsort)),
        ("unique", Deep, Value::from_function(filters::unique)),
        ("groupby", Deep, Value::from_function(filters::groupby)),
    ];
    for (name, reach, native) in natives {
        env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = all_values(args);
            charge_inputs(name, reach, &args, Budget::of(state))?;
            let result = native.call(state, &args)?;
            if reach == Reach::Once {
                let items = listed(&result, Budget::of(state))?.try_iter()?.collect();
                return Ok(Lazy::value(Kind::Generator, items));
            }
            Budget::of(state).shallow(&result)?;
            Ok::<_, Error>(result)
        });
    }
}

/// The arguments as minijinja's own functions take them, named ones in a value at the end.
fn all_values(args: Rest<ValueOrKwargs>) -> Vec<Value> {
    args.0.into_iter().map(ValueOrKwargs::into_value).collect()
}

fn charge_inputs(name: &str, reach: Reach, args: &[Value], budget: &mut Budget) -> Result<(), Error> {
    for arg in args {
        match reach {
            Reach::Deep => budget.deep(arg, 0)?,
            Reach::Shallow | Reach::Once => budget.shallow(arg)?,
        }
    }
    let Some((input, options)) = args.split_first() else { return Ok(()) };
    options.iter().for_each(|option| budget.watch_item(option));
    if reach != Reach::Shallow {
        // The name of an attribute is looked up in every item.
        let texts = all_options(options).filter_map(|option| option.as_str().map(str::len)).sum::<usize>();
        budget.bytes(texts.saturating_mul(input.len().unwrap_or(0)))?;
    }
    if input.is_undefined() && matches!(name, "int" | "float" | "abs" | "round") {
        return Err(Error::new(ErrorKind::UndefinedError, format!("{name} of an undefined value")));
    }
    if matches!(name, "indent" | "batch" | "slice" | "round") {
        let largest = largest_number(options);
        if largest > FILTER_NUMBER_MAX {
            return Err(bad(format!("{name}: a number over {FILTER_NUMBER_MAX}")));
        }
        let lines = input.as_str().map_or(0, |text| text.matches('\n').count());
        budget.bytes(lines.saturating_mul(largest as usize))?;
    }
    Ok(())
}

/// The largest number among the arguments, named ones too.
fn largest_number(options: &[Value]) -> i64 {
    let numbers = all_options(options).filter_map(|value| value.as_i64());
    numbers.map(i64::saturating_abs).max().unwrap_or(0)
}

/// The arguments, and what the named ones are set to.
fn all_options(options: &[Value]) -> impl Iterator<Item = Value> {
    let named = options.iter().filter(|option| option.is_kwargs());
    let named = named.filter_map(|kwargs| kwargs.as_object()?.try_iter_pairs()).flatten();
    named.map(|(_, value)| value).chain(options.iter().cloned())
}

fn add_tests(env: &mut Environment<'static>) {
    env.add_test("defined", tests::is_defined);
    env.add_test("undefined", tests::is_undefined);
    env.add_test("none", tests::is_none);
    env.add_test("boolean", tests::is_boolean);
    env.add_test("true", tests::is_true);
    env.add_test("false", tests::is_false);
    env.add_test("odd", tests::is_odd);
    env.add_test("even", tests::is_even);
    env.add_test("divisibleby", tests::is_divisibleby);
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("integer", tests::is_integer);
    env.add_test("float", tests::is_float);
    env.add_test("string", tests::is_string);
    env.add_test("lower", |state: &mut State<'_, '_>, value: &Value| {
        Budget::of(state).characters(value).map(|()| tests::is_lower(value))
    });
    env.add_test("upper", |state: &mut State<'_, '_>, value: &Value| {
        Budget::of(state).characters(value).map(|()| tests::is_upper(value))
    });
    env.add_test("sameas", |state: &mut State<'_, '_>, value: &Value, other: &Value| {
        Budget::of(state).characters(value).map(|()| tests::is_sameas(value, other))
    });
    env.add_test("filter", tests::is_filter);
    env.add_test("test", tests::is_test);
    env.add_test("mapping", |value: &Value| value.kind() == ValueKind::Map && !show::holds_state(value));
    env.add_test("sequence", |value: &Value| {
        // Jinja2's undefined value has a length and a subscript.
        let kinds = [ValueKind::String, ValueKind::Seq, ValueKind::Map, ValueKind::Undefined];
        kinds.contains(&value.kind()) && !show::holds_state(value)
    });
    env.add_test("iterable", |value: &Value| {
        let kinds =
            [ValueKind::String, ValueKind::Seq, ValueKind::Map, ValueKind::Iterable, ValueKind::Undefined];
        kinds.contains(&value.kind()) && !show::is_namespace(value)
    });
    env.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined));
    let operators = [
        ("eq", &["eq", "equalto", "=="][..]),
        ("ne", &["ne", "!="]),
        ("lt", &["lt", "lessthan", "<"]),
        ("le", &["le", "<="]),
        ("gt", &["gt", "greaterthan", ">"]),
        ("ge", &["ge", ">="]),
        ("in", &["in"]),
    ];
    for (name, operator) in ops::OPERATORS {
        for test in operators.iter().filter(|(of, _)| *of == name).flat_map(|(_, names)| names.iter()) {
            let call =
                move |state: &mut State<'_, '_>, a: Value, b: Value| operator(&a, &b, Budget::of(state));
            env.add_test(*test, call);
        }
    }
}

fn add_functions(env: &mut Environment<'static>) {
    env.add_function("range", functions::range);
    env.add_function(
        "raise_exception",
        |state: &mut State<'_, '_>, message: Value| -> Result<Value, Error> {
            Err(Halt::Raised(show::tame(&show::text(&message, Budget::of(state))?)).into())
        },
    );
    env.add_function("strftime_now", |state: &mut State<'_, '_>, format: &str| {
        Budget::of(state).bytes(format.len().saturating_mul(16))?;
        let seconds = state.lookup(NOW).and_then(|now| now.as_i64()).unwrap_or(0);
        let moment = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds.max(0) as u64);
        Ok::<_, Error>(clock::strftime(format, moment))
    });
    for (name, native) in [
        ("namespace", Value::from_function(functions::namespace)),
        ("dict", Value::from_function(functions::dict)),
    ] {
        env.add_function(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = all_values(args);
            for arg in &args {
                Budget::of(state).container(arg.len().unwrap_or(0))?;
                Budget::of(state).watch(arg);
            }
            native.call(state, &args)
        });
    }
}

fn bad(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}
