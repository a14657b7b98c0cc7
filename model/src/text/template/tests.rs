//! The committed templates against real Jinja2, byte for byte; and templates that misbehave.

use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{ChatInput, ChatTemplate};
use crate::text::TextError;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source("test.jinja", source, Map::new()).unwrap()
}

fn render(source: &str) -> Result<String, TextError> {
    let extra =
        json!({"s": "héllo wörld", "n": 3, "f": 0.5, "xs": [3, 1, 2], "d": {"b": 1, "a": [true, null]}});
    let Value::Object(extra) = extra else { unreachable!("written as an object") };
    template(source).render(&ChatInput { messages: json!([]), extra, ..ChatInput::default() })
}

/// The input of one recorded case; `shared` holds the conversations and tools that cases name.
fn input(case: &Value, shared: &Value) -> ChatInput {
    let messages =
        case["conversation"].as_str().map_or(json!([]), |name| shared["conversations"][name].clone());
    ChatInput {
        messages,
        tools: case.get("tools").map(|_| shared["tools"].clone()),
        documents: None,
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
        continue_final_message: case["continue_final_message"].as_bool().unwrap_or(false),
        extra: case["extra"].as_object().cloned().unwrap_or_default(),
        now: case["now"].as_u64().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
    }
}

#[test]
fn templates_equal_jinja2() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/templates"));
    let read =
        |path: &Path| -> Value { serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() };
    let shared = read(&folder.join("conversations.json"));
    let mut cases = 0;
    for path in folder.read_dir().unwrap().flatten().map(|entry| entry.path()) {
        let file = read(&path);
        for case in file["cases"].as_array().into_iter().flatten() {
            check(&path, &file, case, &shared);
            cases += 1;
        }
    }
    assert!(cases >= 200, "only {cases} recorded cases");
}

fn check(path: &Path, file: &Value, case: &Value, shared: &Value) {
    // A file holds one template, or one in each case and variables for all of them.
    let source = file.get("template").unwrap_or(&case["template"]).as_str().unwrap();
    let special = file["special"].as_object().cloned().unwrap_or_default();
    let mut input = input(case, shared);
    input.extra.extend(file["extra"].as_object().cloned().unwrap_or_default());
    let outcome = ChatTemplate::from_source(&path.display().to_string(), source, special)
        .and_then(|template| template.render(&input));
    let name = case["conversation"].as_str().unwrap_or(source);
    match case["expected"].as_str() {
        Some(expected) => {
            assert_eq!(outcome.map_err(|e| e.to_string()), Ok(expected.into()), "{path:?} {name}")
        }
        None => assert!(outcome.is_err(), "{path:?} {name} should fail: {outcome:?}"),
    }
}

#[test]
fn templates_that_misbehave_end_soon_and_say_why() {
    let doubling = |step: &str, last: &str| {
        format!(
            "{{% set ns = namespace(x={last}) %}}{{% for i in range(200) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x }}}}"
        )
    };
    let long = |body: &str| {
        format!("{{% set s = 'a' * 60000000 %}}{{% for i in range(100000) %}}{body}{{% endfor %}}")
    };
    let raised = format!("refuses this conversation: \\x1b[2J\\n{}…", "a".repeat(295));
    let table = [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into(),
            "ran past 20000000 instr",
        ),
        ("{% for i in range(1000000000) %}x{% endfor %}".into(), "too many elements"),
        ("{{ 'a' * 1000000000 }}".into(), "67108864 bytes in one string"),
        ("{{ ([0] * 1000000000) | length }}".into(), "67108864 bytes in one string or list"),
        (doubling("ns.x ~ ns.x", "'ab'"), "bytes in one"),
        (doubling("ns.x + ns.x", "[1]"), "bytes in one"),
        (long("{{ 'x' if s is lower }}"), "536870912 bytes built"),
        (long("{{ 'x' if s is upper }}"), "bytes built"),
        (long("{{ 'x' if s is sameas s }}"), "bytes built"),
        (long("{% if s[-1] %}{% endif %}"), "bytes built"),
        (long("{% if s[i] %}{% endif %}"), "bytes built"),
        (long("{% if s | length %}{% endif %}"), "bytes built"),
        (long("{% if s in {} %}{% endif %}"), "bytes built"),
        (long("{% if {}[s] %}{% endif %}"), "bytes built"),
        (long("{% if {s: 1} %}{% endif %}"), "bytes built"),
        (long("{% if {}.get(s) %}{% endif %}"), "bytes built"),
        (long("{% set j = {s: 1} | tojson %}"), "bytes built"),
        (long("{% if loop.changed(s) %}{% endif %}"), "bytes built"),
        (long("{% set l = [d] | map(attribute=s) | list %}"), "bytes built"),
        (long("{% set l = [d, d, d] | join(attribute=s) %}"), "bytes built"),
        ("{% set s = 'a' * 500000000 %}{% for i in range(100000) %}{{ 'x' if s is lower }}{% endfor %}".into(), "in one string"),
        ("{% set ns = namespace(x=0) %}{% for i in range(99999) %}{% for j in range(99999) %}{% set ns.x = (ns.x + i) %}{% endfor %}{% endfor %}".into(), "ran past"),
        (doubling("[ns.x, ns.x]", "1"), "nested more than 100 deep"),
        (doubling("[ns.x, ns.x]", "1").replace("{{ ns.x }}", "{{ ns.x == ns.x }}"), "nested more than 100"),
        (
            doubling("[ns.x, ns.x]", "1").replace("200", "60").replace("{{ ns.x }}", "{{ ns.x | tojson }}"),
            "bytes built",
        ),
        (
            doubling("[ns.x, ns.x]", "1")
                .replace("200", "60")
                .replace("{{ ns.x }}", "{{ [ns.x] | unique | list }}"),
            "bytes built",
        ),
        (doubling("'%9999d' % 1 ~ ns.x ~ ns.x", "''"), "bytes in one"),
        (doubling("ns.x.replace('', 'xxxxxxxx')", "'ab'"), "bytes in one"),
        (doubling("ns.x.ljust(99999999) ~ ns.x", "'ab'"), "bytes in one"),
        (
            "{% set x = 'a' * 9000000 %}{% for i in range(9) %}{{ x }}{% endfor %}".into(),
            "33554432 bytes put out",
        ),
        (
            "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}".into(),
            "bytes built",
        ),
        (format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "text ".repeat(2000)), "put out"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".into(), "calls itself too deeply"),
        ("{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}".into(), "calls itself too deeply"),
        ("{% set ns = namespace() %}{% set ns.x = ns %}".into(), "cannot be stored"),
        ("{% set ns = namespace() %}{% set ns.x = [[ns]] %}".into(), "cannot be stored"),
        (
            "{% set a = namespace() %}{% set b = namespace(x=a) %}{% set a.x = [1] | batch(2, b) | list %}"
                .into(),
            "cannot be stored",
        ),
        ("{% set x = ('a' * 9000000).strip('b' * 9000000 ~ 'a') %}{{ raise_exception('quick' ~ x) }}".into(), "conversation: quick"),
        ("{{ ('%(a)s' * 9999) % {'a': 'a' * 9000000} }}".into(), "bytes built"),
        ("{{ ('{0}' * 9999).format('a' * 9000000) }}".into(), "bytes built"),
        (doubling("[ns.x, ns.x]", "1").replace("200", "60").replace("{{ ns.x }}", "{{ '{}'.format(ns.x) }}"), "bytes built"),
        ("{{ '%99999999999d' % 1 }}".into(), "width in the format string"),
        ("{{ '%*d' % (999999999, 1) }}".into(), "width in the format string"),
        ("{{ '{:>{}}'.format('a', 999999999) }}".into(), "width in the format string"),
        ("{{ 'a\nb' | indent(999999999) }}".into(), "a number over"),
        ("{{ [1] | batch(999999999, 1) | list }}".into(), "a number over"),
        ("{{ loop_forever.x.y }}".into(), "undefined"),
        ("{{ raise_exception('no system role') }}".into(), "refuses this conversation: no system role"),
        ("{{ 7 ** 7 ** 7 }}".into(), "overflow"),
        ("{% for x in [1] %}{{ loop.cycle() }}{% endfor %}".into(), "cycle() of nothing (line 1)"),
        ("{% for x in [1] %}{{ loop.cycle(*[]) }}{% endfor %}".into(), "cycle() of nothing (line 1)"),
        ("{{ raise_exception('\x1b[2J\n' ~ 'a' * 900) }}".into(), &raised),
    ];
    for (source, expected) in table {
        let refused_in_time = |_| {
            let started = Instant::now();
            let message = render(&source).unwrap_err().to_string();
            // On a machine that is busy with other things the limit on time may come first.
            let late = started.elapsed() >= Duration::from_secs(5) && message.contains("s of work");
            assert!(message.contains(expected) || late, "{source:.80}: {message}");
            // The limit on time is 5 s of a rendering; the rest is for a busy machine, and one that stands still is asked again.
            started.elapsed() < Duration::from_secs(10)
        };
        assert!((0..5).any(refused_in_time), "{source:.80} took more than 10 s each time");
    }
}

#[test]
fn values_nested_deep_are_dropped_without_overflowing_the_stack() {
    let source =
        "{% set ns = namespace(x=1) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}done";
    assert_eq!(render(source).unwrap(), "done");
}

#[test]
fn templates_that_do_not_parse_name_file_and_line() {
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    let table = [
        ("a\nb {% if x %}", "line 2"),
        ("{% include 'other' %}", "cannot reach other templates"),
        ("{% extends '/etc/passwd' %}", "cannot reach other templates"),
        ("{{ _gt_text(1) }}", "reserved"),
        (&nested, "recursion"),
    ];
    for (source, expected) in table {
        let message = ChatTemplate::from_source("m/x.jinja", source, Map::new()).unwrap_err().to_string();
        assert!(message.starts_with("the chat template of m/x.jinja is not valid: "), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let long = " ".repeat(super::TEMPLATE_BYTES_MAX + 1);
    assert!(matches!(ChatTemplate::from_source("f", &long, Map::new()), Err(TextError::TooLarge { .. })));
    let message = render("{{ n }}\n\n{{ s + n }}").unwrap_err().to_string();
    assert!(message.ends_with("(line 3)"), "{message}");
}

#[test]
fn folders_hold_templates_in_several_ways() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || ChatTemplate::from_folder(folder.path());
    let show = |tools: Option<Value>| {
        let input =
            ChatInput { messages: json!([{"role": "user", "content": "hi"}]), tools, ..ChatInput::default() };
        load().unwrap().unwrap().render(&input)
    };
    assert!(load().unwrap().is_none());
    write("tokenizer_config.json", "{\"bos_token\": {\"content\": \"<s>\"}}");
    assert!(load().unwrap().is_none());
    let list = json!({"bos_token": {"content": "<s>"}, "chat_template": [
        {"name": "default", "template": "D{{ bos_token }}{{ eos_token }}"}, {"name": "tool_use", "template": "T"}]});
    write("tokenizer_config.json", &list.to_string());
    assert_eq!((show(None).unwrap(), show(Some(json!([]))).unwrap()), ("D<s>".into(), "T".into()));
    write("chat_template.jinja", "J{{ bos_token }}{{ messages[0].content }}\n");
    assert_eq!(show(None).unwrap(), "J<s>hi");
    write("chat_template.jinja", "{% for %}");
    assert!(load().unwrap_err().to_string().contains("chat_template.jinja is not valid"));
    let refused = template("x").render(&ChatInput { messages: json!(["hi"]), ..ChatInput::default() });
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the conversation does not fit a chat template: a message is not an object"
    );
}
