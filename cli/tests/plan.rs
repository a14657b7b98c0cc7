//! `gaterail plan`: on the demo model, and on a configuration whose figures are worked out by hand.

use std::process::Command;

use serde_json::{Value, json};

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn plan(flags: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_gaterail")).arg("plan").args(flags).output();
    let output = output.expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn plan_json(flags: &[&str]) -> Value {
    let ran = plan(&[flags, &["--json", "--threads", "1"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    serde_json::from_str(&ran.out).expect("JSON")
}

/// How often a machine may be too busy to measure anything.
const TRIES: usize = 5;

const HIDDEN: u64 = 512;
const WIDTH: u64 = 256;
const EXPERTS: u64 = 16;
const TOP_K: u64 = 4;
const LAYERS: u64 = 3;
const VOCAB: u64 = 1000;

/// A model of which there is nothing but its configuration.
fn configuration() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": HIDDEN,
        "intermediate_size": WIDTH, "num_attention_heads": 8, "num_key_value_heads": 8,
        "num_hidden_layers": LAYERS, "num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "vocab_size": VOCAB,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "norm_topk_prob": false,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": false,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    folder
}

fn forecast<'a>(plan: &'a Value, mode: &str) -> &'a Value {
    let all = plan["forecasts"].as_array().expect("a list");
    all.iter().find(|one| one["mode"] == mode).unwrap_or_else(|| panic!("no {mode}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn total(step: &Value) -> f64 {
    step["terms"].as_object().expect("terms").values().map(number).sum()
}

#[test]
fn the_demo_model_in_every_mode() {
    // What is measured while others have the cores says little: it is measured again.
    let mut found = Vec::new();
    while found.len() < TRIES && found.last().is_none_or(|(_, is_steady)| !is_steady) {
        let times = in_every_mode();
        // More streams take longer for a step, and give more tokens a second.
        let is_steady = times.iter().all(|[alone, four]| alone < four && *four < 4.0 * alone * 1.2);
        found.push((times, is_steady));
    }
    assert!(found.last().is_some_and(|(_, is_steady)| *is_steady), "{found:?}");
}

/// What a step of one stream and of four takes in each mode.
fn in_every_mode() -> Vec<[f64; 2]> {
    let plan =
        plan_json(&["demo", "--workers", "2", "--streams", "1,4", "--prefill", "64", "--context", "64"]);
    let modes: Vec<&str> =
        plan["forecasts"].as_array().unwrap().iter().map(|one| one["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["local", "ep", "tp"]);
    assert_eq!(plan["winners"].as_array().unwrap().len(), 3);
    let times = modes.into_iter().map(|mode| {
        let one = forecast(&plan, mode);
        assert_eq!(one["misfit"], Value::Null);
        for step in one["decode"].as_array().unwrap().iter().chain([&one["prefill"]]) {
            assert!(total(step) > 0.0 && total(step) < 10.0, "{mode}: {step}");
        }
        let travels = mode != "local";
        assert_eq!(number(&one["decode"][0]["hops"]) > 0.0, travels, "{mode}");
        assert_eq!(number(&one["decode"][0]["terms"]["dispatch"]) > 0.0, travels, "{mode}");
        [0, 1].map(|at| total(&one["decode"][at]))
    });
    times.collect()
}

#[test]
fn a_configuration_alone_by_hand() {
    let folder = configuration();
    let model = folder.path().to_str().unwrap();
    let machine = "memory=1g,read=80g,int8=20t,hop=30us,link=2g";
    let flags = [model, "--weights", "int4", "--streams", "1", "--context", "100", "--prefill", "100"];
    let plan = plan_json(&[&flags[..], &["--workers", &format!("2:{machine}")]].concat());
    assert_eq!(plan["model"]["estimated"], true);

    // 4 bits, and an f16 scale for 64 of them.
    let expert_bytes = (3 * HIDDEN * WIDTH) as f64 * (4.0 + 16.0 / 64.0) / 8.0;
    let experts_bytes = (LAYERS * EXPERTS) as f64 * expert_bytes;
    assert_eq!(number(&plan["model"]["experts_bytes"]), experts_bytes);
    // Attention in int4, the head in int8; embedding, gates and norms in bf16.
    let attention = (LAYERS * 4 * HIDDEN * HIDDEN) as f64 * 4.25 / 8.0;
    let head = (VOCAB.next_multiple_of(16) * HIDDEN) as f64 * 8.25 / 8.0;
    let plain = 2.0 * (VOCAB * HIDDEN + LAYERS * EXPERTS * HIDDEN) as f64;
    let norms = 2.0 * (LAYERS * 4 * HIDDEN + HIDDEN) as f64;
    let trunk = number(&plan["model"]["trunk_bytes"]);
    assert!((trunk - (attention + head + plain + norms)).abs() <= 0.001 * trunk, "{trunk}");
    // K and V of 512 in f16.
    assert_eq!(number(&plan["model"]["kv_bytes_per_position"]), (LAYERS * 2 * HIDDEN * 2) as f64);

    // Tensor parallel: every layer asks both, and half of each expert's two units is on each.
    let tp = &forecast(&plan, "tp")["decode"][0];
    assert_eq!(number(&tp["hops"]), (LAYERS * 2 * 2) as f64);
    // Rows go out in 8 bits with an f32 scale for 64 of them, and come home in 32.
    let out = (64 + HIDDEN + HIDDEN / 64 * 4 + 8 * TOP_K) as f64;
    let home = (64 + 4 * HIDDEN) as f64;
    let bytes = (LAYERS * 2) as f64 * (out + home);
    assert!((number(&tp["bytes_per_row"]) - bytes).abs() < 1e-6, "{} {bytes}", tp["bytes_per_row"]);
    let dispatch = LAYERS as f64 * (30e-6 + 2.0 * out / 2e9);
    assert!((number(&tp["terms"]["dispatch"]) / dispatch - 1.0).abs() < 1e-9);
    assert!(number(&tp["terms"]["wait"]).abs() < 1e-12, "{}", tp["terms"]["wait"]);
    for held in forecast(&plan, "tp")["memory"].as_array().unwrap() {
        assert_eq!(number(held), experts_bytes / 2.0);
    }
    // What this machine's experts reach of its memory is what those workers reach of theirs.
    let measured = &plan["measured"];
    let reached =
        number(&measured["experts"]["read_bytes_per_second"]) / number(&measured["read_bytes_per_second"]);
    let at_least = LAYERS as f64 * TOP_K as f64 * expert_bytes / 2.0 / (80e9 * reached);
    let experts = number(&tp["terms"]["experts"]);
    assert!(experts > 0.999 * at_least, "{experts} {at_least}");

    // Expert parallel: K of one layer are 0 to 4 on each, so that somebody has more than the mean, and some ask one only.
    let ep = &forecast(&plan, "ep")["decode"][0];
    assert!(number(&ep["terms"]["wait"]) > 0.0 && number(&ep["imbalance"]) > 1.1, "{ep}");
    assert!(number(&ep["hops"]) < number(&tp["hops"]), "{ep}");
}

#[test]
fn what_does_not_fit_says_what_would() {
    let folder = configuration();
    let model = folder.path().to_str().unwrap();
    // 16 experts of 3 layers in bf16 are 37.7 MB, in int4 10.
    let flags = [model, "--weights", "stored", "--workers", "2:memory=8MB", "--parallel", "ep,tp,local"];
    let plan = plan_json(&flags);
    for mode in ["ep", "tp"] {
        let why = forecast(&plan, mode)["misfit"].as_str().unwrap_or_else(|| panic!("{mode} fits"));
        assert!(why.contains("--weights int4") && why.contains("--workers"), "{why}");
    }
    assert_eq!(forecast(&plan, "local")["misfit"], Value::Null);
    let ran = self::plan(&[&flags[..], &["--threads", "1"]].concat());
    assert!(ran.out.contains("ep: the experts do not fit") && ran.out.contains("local wins"), "{}", ran.out);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (flags, says) in [
        (&["demo", "--workers", "3", "--parallel", "ep:2,tp:2"][..], "--workers 4"),
        (&["demo", "--workers", "two"], "two"),
        (&["demo", "--workers", "2", "--workers", "2"], "only descriptions"),
        (&["demo", "--parallel", "fast"], "local, ep, tp"),
        (&["demo", "--streams", "0"], "--streams is 0"),
        (&["demo", "--expert-copies", "0"], "--expert-copies"),
        (&["/no/such/model"], "no folder"),
    ] {
        let ran = plan(flags);
        assert!(ran.code.is_some_and(|code| code != 0), "{flags:?}: {}", ran.out);
        assert!(ran.err.contains(says), "{flags:?}: {}", ran.err);
    }
}
