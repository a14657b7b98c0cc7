//! `gaterail evaluate` on the demo model: the committed figures, and that each figure says what it is called.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Standard output, or standard error of a command that fails.
fn gaterail(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaterail"));
    command.args(args).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).env("HF_HUB_CACHE", "/nonexistent");
    let output = command.output().expect("the binary runs");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.into_owned()) } else { Err(error.into_owned()) }
}

#[track_caller]
fn evaluate(args: &[&str]) -> Value {
    let text = gaterail(&[&["evaluate", "--json"], args].concat()).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&text).expect("JSON")
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/demo-model")
}

/// The report that is committed, of all prompts.
fn committed() -> Value {
    let text = std::fs::read(demo_folder().join("evaluated.json")).expect("evaluated.json");
    serde_json::from_slice(&text).expect("JSON")
}

fn task<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut tasks = report["tasks"].as_array().expect("tasks").iter();
    tasks.find(|task| task["task"] == name).unwrap_or_else(|| panic!("no task {name}"))
}

/// The tasks whose prompts are short.
fn short_tasks() -> String {
    let report = committed();
    let names =
        report["tasks"].as_array().expect("tasks").iter().map(|task| task["task"].as_str().expect("a name"));
    names
        .filter(|name| !["lookup_1024", "lookup_2048", "lookup_4096"].contains(name))
        .collect::<Vec<_>>()
        .join(",")
}

fn prompts_file(lines: &[Value]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(file.path(), text).expect("written");
    file
}

fn line(task: &str, question: &str, answer: &str) -> Value {
    json!({"task": task, "messages": [{"role": "user", "content": question}], "answer": answer})
}

#[test]
fn the_committed_accuracy_holds() {
    let (report, committed) = (evaluate(&["--tasks", &short_tasks(), "--weights", "f32"]), committed());
    for now in report["tasks"].as_array().expect("tasks") {
        let then = task(&committed, now["task"].as_str().expect("a name"));
        for figure in ["prompts", "right", "perplexity"] {
            assert_eq!(now[figure], then[figure], "{}: {figure}", now["task"]);
        }
    }
    // Goals that do not move with the committed figures.
    assert!(committed["mean_accuracy"].as_f64() > Some(0.93), "{}", committed["mean_accuracy"]);
    assert!(task(&committed, "lookup_2048")["right"].as_u64() >= Some(18));
    assert!(task(&committed, "lookup_4096")["right"].as_u64() >= Some(15));
    for layer in committed["layers"].as_array().expect("layers") {
        assert!(layer["least_of_fair_share"].as_f64() >= Some(0.25), "{layer}");
    }
}

#[test]
fn a_precision_is_near_another_and_nothing_is_apart_from_itself() {
    let few = ["--limit", "4", "--tasks", "add_steps,copy,lookup_256,sort_words,spell,story"];
    let against = |weights: &str, truth: &str| {
        evaluate(&[few.as_slice(), &["--weights", weights, "--against", truth]].concat())
    };
    let itself = against("stored", "stored");
    assert_eq!(
        (&itself["against"]["kl_nats"], &itself["against"]["same_likeliest"]),
        (&json!(0.0), &json!(1.0))
    );
    let int4 = against("int4", "f32");
    let divergence = int4["against"]["kl_nats"].as_f64().expect("a number");
    assert!(divergence > 1e-5 && divergence < 0.1, "KL of int4: {divergence}");
    let same = int4["against"]["same_likeliest"].as_f64().expect("a number");
    assert!(same > 0.95, "int4 finds the same token likeliest in {same}");
    for (itself, int4) in
        itself["layers"].as_array().expect("layers").iter().zip(int4["layers"].as_array().expect("layers"))
    {
        assert_eq!(itself["same_experts"], json!(1.0));
        let same = int4["same_experts"].as_f64().expect("a number");
        assert!(same > 0.7 && same < 1.0, "int4 picks the same experts in {same}");
    }
    // What is stored in bf16 differs from f32 by what KV rounds away, and by nothing else.
    let stored = against("stored", "f32")["against"]["kl_nats"].as_f64().expect("a number");
    assert!(
        stored > 0.0 && stored < divergence / 10.0,
        "KL of what is stored: {stored}, of int4: {divergence}"
    );
    assert_ne!(int4["perplexity"], itself["perplexity"]);
}

#[test]
fn wrong_answers_are_found_and_shown() {
    let file = prompts_file(&[
        line("right", "What is 27 + 58?", " 85"),
        line("wrong", "What is 27 + 58?", " 95"),
        line("too_short", "What is 27 + 58?", " 8"),
        line("too_long", "What is 27 + 58?", " 855"),
    ]);
    let report = evaluate(&["--prompts", file.path().to_str().expect("UTF-8")]);
    let right = |name: &str| task(&report, name)["right"].as_u64();
    assert_eq!(
        [right("right"), right("wrong"), right("too_short"), right("too_long")],
        [Some(1), Some(0), Some(0), Some(0)]
    );
    assert_eq!(report["mean_accuracy"], json!(0.25));
    let wrong = report["wrong"].as_array().expect("wrong answers");
    assert!(wrong.len() == 3 && wrong.iter().all(|wrong| wrong["answer"] == " 85"), "{wrong:?}");
}

#[test]
fn the_answers_are_those_of_generate_and_company_changes_nothing() {
    // The first ones of a task that is often wrong, as far as they are single questions.
    let text = std::fs::read_to_string(demo_folder().join("prompts.jsonl")).expect("prompts");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lines: Vec<Value> = lines.filter(|line| line["task"] == "join").take(12).collect();
    let file = prompts_file(&lines);
    let together = evaluate(&["--prompts", file.path().to_str().expect("UTF-8"), "--threads", "2"]);
    let mut wrong = together["wrong"].as_array().expect("wrong answers").iter();
    let (mut loss, mut tokens) = (0.0, 0.0);
    for line in &lines {
        let file = prompts_file(std::slice::from_ref(line));
        let alone = evaluate(&["--prompts", file.path().to_str().expect("UTF-8"), "--threads", "1"]);
        let count = alone["answer_tokens"].as_f64().expect("a number");
        loss += alone["perplexity"].as_f64().expect("a number").ln() * count;
        tokens += count;
        let question = line["messages"][0]["content"].as_str().expect("a question");
        let answer = gaterail(&["generate", "demo", question]).unwrap_or_else(|error| panic!("{error}"));
        let answer = answer.strip_suffix('\n').expect("a line");
        let shown = match alone["mean_accuracy"].as_f64() {
            Some(1.0) => line["answer"].clone(),
            _ => wrong.next().expect("as many wrong ones as alone")["answer"].clone(),
        };
        assert_eq!(shown, answer, "{question}");
    }
    assert!(wrong.next().is_none());
    let perplexity = together["perplexity"].as_f64().expect("a number");
    assert!((perplexity.ln() - loss / tokens).abs() < 1e-12, "{perplexity}");
}

#[test]
fn a_model_is_its_own_best_draft() {
    let few = ["--limit", "2", "--tasks", "add,join,story,lookup_256"];
    let itself = evaluate(
        &[few.as_slice(), &["--draft", demo_folder().join("model").to_str().expect("UTF-8")]].concat(),
    );
    assert_eq!(itself["draft_agreement"], json!(1.0));
    let draft = evaluate(&["--limit", "4", "--tasks", &short_tasks(), "--draft", "demo"]);
    let agreement = draft["draft_agreement"].as_f64().expect("a number");
    assert!(agreement > 0.8 && agreement < 1.0, "the demo model's draft agrees in {agreement}");
}

#[test]
fn what_cannot_be_evaluated_is_said() {
    let fails = |args: &[&str], parts: &[&str]| {
        let error = gaterail(&[&["evaluate"], args].concat()).expect_err("it must fail");
        assert!(
            parts.iter().all(|part| error.contains(part)) && !error.contains("panicked"),
            "{args:?}: {error}"
        );
    };
    let fixture = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        folder.to_str().expect("UTF-8").to_string()
    };
    fails(&["--tasks", "add,nothing"], &["no task \"nothing\"", "add, add_list"]);
    fails(&["--limit", "0"], &["no prompts"]);
    fails(&["--prompts", "/no/such/file"], &["/no/such/file"]);
    fails(&[&fixture("olmoe_a")], &["tokenizer.json"]);
    fails(&["--tasks", "add", "--draft", &fixture("qwen3_a")], &["vocabulary"]);
    fails(&["--against", "int5"], &["int5"]);
    let broken = prompts_file(&[line("a", "b", " c"), json!({"task": "a"})]);
    fails(&["--prompts", broken.path().to_str().expect("UTF-8")], &["line 2", "messages"]);
    let empty = prompts_file(&[line("a", "b", "")]);
    fails(&["--prompts", empty.path().to_str().expect("UTF-8")], &["line 1", "no tokens"]);
    let long = prompts_file(&[line("a", &"far ".repeat(5000), " c")]);
    fails(&["--prompts", long.path().to_str().expect("UTF-8")], &["line 1", "context of 4096"]);
}
