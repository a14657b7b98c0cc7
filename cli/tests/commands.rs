//! The binary as a person meets it: what it prints, and what it says when it cannot.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn gaterail(args: &[&str]) -> Output {
    command(args).output().expect("the binary runs")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gaterail"));
    // Nothing of the person who runs the tests may matter.
    command.args(args).stdin(Stdio::null()).env("HF_HUB_CACHE", "/nonexistent").env_remove("HF_TOKEN");
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Standard output of a command that must succeed.
#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let output = gaterail(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Standard error of a command that must fail, without a panic and with all of `parts`.
#[track_caller]
fn fails(args: &[&str], parts: &[&str]) {
    let output = gaterail(args);
    let error = text(&output.stderr);
    assert!(!output.status.success(), "{args:?} succeeded: {}", text(&output.stdout));
    assert!(output.stdout.is_empty(), "{args:?} printed {}", text(&output.stdout));
    assert!(!error.contains("panicked"), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

fn fixture(name: &str) -> String {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    folder.to_str().expect("UTF-8").to_string()
}

/// A random model with a tokenizer, made by the binary itself.
fn mini() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("mini").to_str().expect("UTF-8").to_string();
    succeeds(&["synth", "--shape", "mini", &model]);
    (folder, model)
}

#[test]
fn generate_prints_transformers_tokens() {
    let folder = fixture("gpt_oss_b");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(Path::new(&folder).join("expected.json")).unwrap()).unwrap();
    let case = &expected["cases"][1];
    let list = |tokens: &Value| {
        let ids: Vec<String> = tokens.as_array().unwrap().iter().map(Value::to_string).collect();
        ids.join(",")
    };
    let out = succeeds(&["generate", &folder, "--tokens", &list(&case["prompt"]), "-n", "12"]);
    assert_eq!(out.trim(), list(&case["continuation"]));
}

#[test]
fn json_holds_tokens_logprobs_and_text() {
    let (_keep, model) = mini();
    let args = ["generate", &model, "Hello, world", "-n", "6", "--json", "--logprobs", "3"];
    let answer: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    assert_eq!(answer["prompt_tokens"].as_array().unwrap().len(), 12);
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 6);
    let pieces: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(answer["text"].as_str().unwrap(), pieces);
    for token in tokens {
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0][0], token["id"], "greedy takes the first");
        assert_eq!(top[0][1], token["logprob"]);
        assert!(token["logprob"].as_f64().unwrap() < 0.0);
    }
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 18);
}

#[test]
fn a_seed_decides_the_text_and_a_stop_string_ends_it() {
    let (_keep, model) = mini();
    let sample = |seed: &str| {
        succeeds(&["generate", &model, "Hello", "-n", "12", "--temperature", "1", "--seed", seed])
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
    let whole = sample("7");
    let stop: String = whole.chars().skip(4).take(3).collect();
    let args =
        ["generate", &model, "Hello", "-n", "12", "--temperature", "1", "--seed", "7", "--stop", &stop];
    let cut = succeeds(&args);
    assert_eq!(cut.trim_end_matches('\n'), &whole[..whole.find(&stop).unwrap()]);
    // Before --min-tokens a stop string ends nothing, and what is shown is the same.
    let late =
        ["generate", &model, "Hello", "-n", "12", "--temperature", "1", "--seed", "7", "--min-tokens", "12"];
    let whole = succeeds(&late);
    let stop: String = whole.chars().skip(1).take(10).collect();
    assert!(!whole.trim_end().ends_with(&stop), "{stop:?} would end the last token");
    assert_eq!(succeeds(&[&late[..], &["--stop", &stop]].concat()), whole);
}

#[test]
fn the_prompt_may_come_on_standard_input() {
    let (_keep, model) = mini();
    let mut child = command(&["generate", &model, "-n", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    child.stdin.take().unwrap().write_all(b"Hello").unwrap();
    let piped = text(&child.wait_with_output().unwrap().stdout);
    assert_eq!(piped, succeeds(&["generate", &model, "Hello", "-n", "4"]));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (_keep, model) = mini();
    let mut child = command(&["generate", &model, "Hello", "-n", "400", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    assert!(output.status.success());
}

#[test]
fn a_full_disk_behind_an_output_is_an_error_and_no_panic() {
    let (_keep, model) = mini();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let code = |args: &[&str], out: Stdio, err: Stdio| {
        command(args).stdout(out).stderr(err).status().unwrap().code()
    };
    let generate = ["generate", &model, "x", "-n", "2"];
    assert_eq!(code(&generate, full(), Stdio::null()), Some(1));
    assert_eq!(code(&generate, Stdio::null(), full()), Some(0));
    assert_eq!(code(&["generate", "/no/such/folder", "x"], Stdio::null(), full()), Some(1));
    assert_eq!(code(&["inspect", &model, "--no-measure"], full(), full()), Some(1));
    let out = format!("{model}2");
    assert_eq!(code(&["synth", "--shape", "mini", &out], full(), full()), Some(1));
}

#[test]
fn a_damaged_folder_is_no_estimate() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(format!("{}/config.json", fixture("olmoe_a")), folder.path().join("config.json")).unwrap();
    let path = folder.path().to_str().unwrap();
    assert!(succeeds(&["inspect", path, "--no-measure"]).contains("estimated from config.json"));
    std::os::unix::fs::symlink("/no/such/blob", folder.path().join("model.safetensors")).unwrap();
    fails(&["inspect", path, "--no-measure"], &["neither model.safetensors nor"]);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\n")
        .unwrap();
    fails(&["inspect", path, "--no-measure"], &["git-lfs"]);
}

#[test]
fn what_a_file_says_cannot_steer_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(format!("{}/config.json", fixture("olmoe_a")), folder.path().join("config.json")).unwrap();
    let header = "{\"evil\\u001b]0;x\\u0007\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let output = gaterail(&["inspect", folder.path().to_str().unwrap(), "--no-measure"]);
    let error = text(&output.stderr);
    assert!(!output.status.success() && !error.contains(['\u{1b}', '\u{7}']), "{error:?}");
}

#[test]
fn inspect_counts_what_is_there() {
    let (_keep, model) = mini();
    let report: Value =
        serde_json::from_str(&succeeds(&["inspect", &model, "--json", "--no-measure"])).unwrap();
    let on_disk = std::fs::metadata(Path::new(&model).join("model.safetensors")).unwrap().len();
    let stored = report["total"]["bytes"].as_u64().unwrap();
    assert!(stored < on_disk && on_disk < stored + 20_000, "{stored} of {on_disk}");
    // 4 layers, 8 experts of 3 x 256 x 256, 2 active.
    assert_eq!(report["parts"]["experts"]["parameters"], 4 * 8 * 3 * 256 * 256);
    assert_eq!(report["parts"]["experts"]["active_parameters"], 4 * 2 * 3 * 256 * 256);
    // KV in f16, as inspect counts it by default.
    assert_eq!(report["kv_bytes_per_token"], 4 * 2 * 256 * 2);
    assert_eq!(report["fits"], true);
    let table = succeeds(&["inspect", &model, "--no-measure"]);
    assert!(table.contains("8, 2 per token, width 256 (2 units of 128)"), "{table}");
    for name in ["deepseek_v3_c", "gpt_oss_a", "llama4_b", "llama_b"] {
        let table = succeeds(&["inspect", &fixture(name), "--no-measure"]);
        assert!(table.contains("total"), "{table}");
    }
}

#[test]
fn inspect_counts_4_bit_weights() {
    let cases = [
        ("qwen3_moe_gptq_b", "int4 gptq g64", 3 * 4 * 64 * 96, 64),
        ("qwen2_moe_gptq", "int4 gptq per row", 0, 0),
        ("mixtral_awq", "int4 awq g128", 3 * 3 * 128 * 256, 128),
    ];
    for (name, precision, parameters, group) in cases {
        let report: Value =
            serde_json::from_str(&succeeds(&["inspect", &fixture(name), "--json", "--no-measure"])).unwrap();
        let file = std::fs::read(format!("{}/model.safetensors", fixture(name))).unwrap();
        let data = file.len() as u64 - 8 - u64::from_le_bytes(file[..8].try_into().unwrap());
        assert_eq!(report["total"]["bytes"], data, "{name}");
        let experts = &report["parts"]["experts"];
        assert_eq!(experts["bytes_by_precision"][precision], experts["bytes"], "{name}: {experts}");
        if group > 0 {
            // Codes, f16 scales and 4-bit zero points.
            let groups = |inputs: u64, outputs: u64| inputs.div_ceil(group) * outputs;
            assert_eq!(experts["parameters"], parameters, "{name}");
            let (h, f, count) = if group == 64 { (64, 96, 4) } else { (128, 256, 3) };
            let groups = count * (2 * groups(h, f) + groups(f, h));
            let order = if precision.contains("gptq") { count * 4 * (2 * h + f) } else { 0 };
            assert_eq!(experts["bytes"], parameters / 2 + groups * 2 + groups / 2 + order, "{name}");
        }
        let table = succeeds(&["inspect", &fixture(name), "--no-measure"]);
        assert!(table.contains(precision), "{table}");
    }
    // o_proj was left out of the quantisation.
    let table = succeeds(&["inspect", &fixture("qwen3_moe_gptq_b"), "--no-measure"]);
    assert!(table.contains("bf16 + int4 gptq g64"), "{table}");
}

#[test]
fn gguf_files_are_models() {
    let folder = fixture("gguf_olmoe");
    let file = format!("{folder}/model.gguf");
    let table = succeeds(&["inspect", &file, "--no-measure"]);
    for part in ["OlmoeForCausalLM", "6, 3 per token, width 160 (2 units of 128)", "q4_0 + q8_0", "softmax\n"]
    {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    // The file by its name, or the folder that holds it; with its tokenizer and its chat template, or without.
    let answer = |args: &[&str]| -> Value {
        let rest = ["-n", "4", "--json"];
        serde_json::from_str(&succeeds(&[&["generate"], args, &rest].concat())).unwrap()
    };
    let spoken = answer(&[&file, "Hello"]);
    assert_eq!(spoken["prompt_tokens"], answer(&[&folder, "Hello"])["prompt_tokens"]);
    let raw = answer(&[&file, "<|user|>Hello<|end|><|end|>", "--raw"]);
    assert_eq!(spoken["prompt_tokens"], raw["prompt_tokens"]);
    assert_ne!(spoken["prompt_tokens"], answer(&[&file, "Hello", "--raw"])["prompt_tokens"]);
    let ids = spoken["prompt_tokens"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>();
    assert_eq!(spoken["text"], answer(&[&file, "--tokens", &ids.join(",")])["text"]);
    fails(&["generate", &fixture("gguf_llama"), "Hello"], &["model.gguf", "tokenizer.ggml.tokens: missing"]);

    let keep = tempfile::tempdir().unwrap();
    let path = keep.path().join("x.gguf");
    std::fs::write(&path, "{}").unwrap();
    fails(&["inspect", path.to_str().unwrap()], &["x.gguf", "does not begin like one"]);
    fails(&["inspect", keep.path().to_str().unwrap()], &["x.gguf", "not a GGUF file"]);
}

#[test]
fn synth_writes_every_form_and_generate_runs_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["deepseek_v3_c", "gpt_oss_a", "llama4_a", "qwen2_moe_b", "qwen3_gptq", "mixtral_awq"] {
        let out = folder.path().join(name).to_str().unwrap().to_string();
        let config = format!("{}/config.json", fixture(name));
        succeeds(&["synth", "--config", &config, &out, "--shard-bytes", "100000"]);
        assert!(Path::new(&out).join("model.safetensors.index.json").is_file(), "{name}: shards");
        let tokens = succeeds(&["generate", &out, "--tokens", "1,2,3", "-n", "3"]);
        assert_eq!(tokens.trim().split(',').count(), 3, "{name}: {tokens}");
    }
    // A query rank wider than all heads together.
    let text = std::fs::read_to_string(format!("{}/config.json", fixture("deepseek_v3_a"))).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in [("num_attention_heads", 1), ("num_key_value_heads", 1), ("q_lora_rank", 200)] {
        config[field] = value.into();
    }
    let path = folder.path().join("wide.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let out = folder.path().join("wide").to_str().unwrap().to_string();
    succeeds(&["synth", "--config", path.to_str().unwrap(), &out]);
    succeeds(&["generate", &out, "--tokens", "1,2,3", "-n", "3"]);
}

#[test]
fn without_a_model_the_demo_model_answers_wherever_the_program_is_started() {
    let empty = tempfile::tempdir().expect("a folder");
    for line in [["generate", "What is 27 + 58?"].as_slice(), &["generate", "demo", "What is 27 + 58?"]] {
        for _ in ["first it is written", "then it is found"] {
            let mut command = command(line);
            let output = command.current_dir(empty.path()).env("XDG_CACHE_HOME", empty.path().join("cache"));
            let output = output.output().expect("the binary runs");
            assert_eq!(text(&output.stdout), " 85\n", "{line:?}: {}", text(&output.stderr));
        }
    }
    let files = std::fs::read_dir(empty.path()).expect("a folder").count();
    assert_eq!(files, 1, "something was written beside the cache");
}

#[test]
fn what_cannot_be_done_is_said() {
    let (keep, model) = mini();
    let olmoe = fixture("olmoe_a");
    fails(&[], &["Usage"]);
    fails(&["generate"], &["there is no prompt"]); // standard input is empty here
    fails(&["generate", "and/or"], &["gaterail pull and/or", "gaterail generate demo"]);
    fails(&["generate", "/no/such/folder", "x"], &["there is no folder \"/no/such/folder\""]);
    fails(&["generate", "org/name", "x"], &["gaterail pull org/name"]);
    fails(&["generate", &format!("{olmoe}/model.safetensors"), "x"], &["give its folder"]);
    fails(&["generate", &olmoe, "Hello"], &["tokenizer.json"]);
    fails(&["generate", &olmoe, "--tokens", "1,99999"], &["token 99999", "vocabulary"]);
    fails(&["generate", &olmoe, "--tokens", "1,x"], &["x"]);
    fails(&["generate", &model], &["there is no prompt"]);
    fails(&["generate", &model, ""], &["no tokens"]);
    fails(&["generate", &model, "x", "--temperature", "-1"], &["temperature"]);
    fails(&["generate", &model, "x", "--temperature", "nan"], &["temperature"]);
    fails(&["generate", &model, "x", "--top-p", "0"], &["top_p"]);
    fails(&["generate", &model, "x", "--logit-bias", "5"], &["ID=BIAS"]);
    fails(&["generate", &model, "x", "--logit-bias", "99999=1"], &["99999"]);
    fails(&["generate", &model, "x", "--max-tokens", "0"], &["--max-tokens"]);
    fails(&["generate", &model, "x", "--threads", "0"], &["threads"]);
    fails(&["generate", &model, "x", "--stop", ""], &["stop"]);
    fails(&["generate", &model, "x", "--min-tokens", "9", "--max-tokens", "8"], &["--min-tokens 9"]);
    fails(&["generate", &olmoe, "--tokens", "1", "--stop", "x"], &["--stop needs a tokenizer"]);
    fails(&["generate", &model, "x", "--system", "s"], &["no chat template"]);
    fails(&["generate", &model, &"long ".repeat(2000)], &["the prompt has 10000 tokens", "4096"]);
    fails(&["synth", "--shape", "gpt-9", "/tmp/never"], &["no shape \"gpt-9\"", "olmoe-1b-7b"]);
    fails(&["synth", "--shape", "mini"], &["OUT"]);
    fails(&["synth", "--shape", "mini", &model], &["is not empty"]);
    fails(&["synth", "--shape", "mini", "--layers", "9", "/tmp/never"], &["1 to 4"]);
    fails(&["synth", "--shape", "deepseek-v3", "/tmp/never"], &["would need", "free"]);
    fails(&["pull", "no-organisation"], &["no-organisation"]);
    std::fs::write(Path::new(&model).join("generation_config.json"), r#"{"do_sample": true, "top_p": 0}"#)
        .unwrap();
    fails(&["generate", &model, "x"], &["generation_config.json", "top_p"]);
    fails(&["inspect", keep.path().to_str().unwrap()], &["has no config.json"]);
    fails(&["generate", "https://host/org/name", "x"], &["is an address"]);
    fails(&["generate", &olmoe, "--tokens", "-1"], &["--tokens"]);
    fails(&["synth"], &["OUT"]);
    fails(&["synth", "/tmp/never"], &["--shape NAME", "--list"]);
    for (args, code) in [
        (vec!["generate", model.as_str(), "x", "--temperature", "-1"], 2),
        (vec!["generate", "/no/such/folder", "x"], 1),
    ] {
        assert_eq!(gaterail(&args).status.code(), Some(code), "{args:?}");
    }
}
