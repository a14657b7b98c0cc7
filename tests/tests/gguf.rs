//! GGUF files: values and tokens against the gguf and tokenizers packages, and broken files by their messages.
//!
//! Their log-probabilities, and that no cut or chunking changes a bit, are in `transformers` and `contracts`, with all
//! other fixtures.

use std::collections::HashSet;
use std::path::Path;

use gaterail_kernels::Isa;
use gaterail_kernels::ops::KvForm;
use gaterail_model::ModelSource;
use gaterail_model::config::GenerationDefaults;
use gaterail_model::gguf::Value;
use gaterail_model::text::ChatInput;
use gaterail_model::walk::{Runner, RunnerOptions};
use gaterail_model::weights::{
    Form, Loader, Precision, Role, Slot, account, check_tensors, expected_tensors, mixed_layers,
    resident_by_role, resident_bytes,
};
use gaterail_tests::gguf::Parts;
use gaterail_tests::{device, expected, fixtures, fixtures_folder, load, log_softmax, logits_in_chunks};
use serde::Deserialize;
use serde_json::json;

/// A row of a tensor as the gguf package dequantises it.
#[derive(Deserialize)]
struct Row {
    tensor: String,
    /// Over all dimensions but the last.
    row: usize,
    bits: Vec<u32>,
}

#[derive(Deserialize)]
struct Rows {
    #[serde(default)]
    rows: Vec<Row>,
}

#[test]
fn rows_are_those_of_the_gguf_package() {
    let device = device(Isa::detect());
    let mut kinds = HashSet::new();
    for folder in fixtures() {
        let text = std::fs::read(folder.join("expected.json")).unwrap();
        let recorded: Rows = serde_json::from_slice(&text).unwrap();
        if recorded.rows.is_empty() {
            continue;
        }
        let source = ModelSource::open(&folder).unwrap();
        let (spec, checkpoint) = (source.spec().unwrap(), source.checkpoint().unwrap());
        check_tensors(&spec, &checkpoint).unwrap();
        let loading = &mut |_: u64| {};
        let mut loader = Loader::new(&spec, &checkpoint, &device, Precision::F32, loading);
        let table = expected_tensors(&spec);
        for Row { tensor, row, bits } in recorded.rows {
            let expected = table.iter().find(|expected| expected.name == tensor).unwrap();
            let (matrix, row) = match expected.form {
                Form::OutputStack => {
                    (loader.output_stacked(expected.slot, row / expected.shape[1]), row % expected.shape[1])
                }
                _ => (loader.matrix(expected.slot), row),
            };
            let mut values = vec![0.0; matrix.cols()];
            matrix.dequantize_row(row, &mut values);
            let ours: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
            assert!(ours == bits, "{}: row {row} of {tensor}", folder.display());
            kinds.insert((checkpoint.tensor(&tensor).unwrap().stored, expected.form == Form::OutputStack));
        }
        assert!(matches!(table[0].slot, Slot::Embedding));
    }
    // Q4_0, Q8_0 and f16, in stacks and alone, and bf16.
    assert_eq!(kinds.len(), 7, "{kinds:?}");
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
    decoded: String,
    shown: String,
}

fn tokenizers() -> Vec<(String, ModelSource, Vec<Encoded>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tokenizers");
    let read = |name: &str| {
        let source = ModelSource::open(&folder.join(format!("{name}.gguf"))).unwrap();
        let cases = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        (name.to_owned(), source, serde_json::from_slice(&cases).unwrap())
    };
    ["gpt2", "olmo", "qwen2", "llama_bpe", "llama_spm", "llama_spm_bare"].map(read).into()
}

#[test]
fn tokens_are_those_of_the_tokenizer_that_the_file_was_made_from() {
    let mut seen = HashSet::new();
    for (name, source, cases) in tokenizers() {
        let tokenizer = source.tokenizer().unwrap();
        assert!(cases.len() >= 16);
        for case in cases {
            let Encoded { text, ids, plain, decoded, shown } = case;
            assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(&text, false).unwrap(), plain, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), decoded, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), shown, "{name}: {text:?}");
            seen.insert((text, plain));
        }
    }
    // The six differ: a wrong choice among them would show.
    assert!(seen.len() > 40, "{}", seen.len());
}

#[test]
fn stops_and_templates_come_from_the_metadata() {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    for (name, source, _) in tokenizers() {
        let tokenizer = source.tokenizer().unwrap();
        let (end, begin) = match name.as_str() {
            "llama_spm" | "llama_spm_bare" => ("</s>", "<s>"),
            "llama_bpe" => ("<|end|>", "<|user|>"),
            _ => ("<|end|>", "<|end|>"),
        };
        assert_eq!(tokenizer.stop_ids(), tokenizer.encode(end, false).unwrap(), "{name}");
        assert!(source.has_tokenizer());
        let prompt = source.chat_template().unwrap().unwrap().render(&input).unwrap();
        assert_eq!(prompt, format!("<|user|>Hi<|end|>{begin}"), "{name}");
        assert!(source.generation_defaults().unwrap().stop_ids.is_empty());
    }
}

#[test]
fn sampling_comes_from_the_metadata() {
    let mut file = Parts::of("gguf_llama");
    for (key, number) in
        [("temp", 0.7), ("top_p", 0.9), ("top_k", 20.0), ("min_p", 0.05), ("penalty_repeat", 1.1)]
    {
        file.set(&format!("general.sampling.{key}"), Some(Value::Float(number)));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.gguf"), file.bytes()).unwrap();
    let expected = GenerationDefaults {
        sample: true,
        greedy: false,
        temperature: Some(0.7),
        top_p: Some(0.9),
        top_k: Some(20),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        stop_ids: Vec::new(),
    };
    assert_eq!(ModelSource::open(folder.path()).unwrap().generation_defaults().unwrap(), expected);
    let plain = ModelSource::open(&fixtures_folder().join("gguf_llama")).unwrap();
    assert_eq!(plain.generation_defaults().unwrap(), GenerationDefaults::default());
}

/// Loads the file, which must fail, with its name and all of `parts` in the message.
#[track_caller]
fn check(file: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.gguf");
    std::fs::write(&path, file).unwrap();
    let options = RunnerOptions {
        rows_max: 4,
        positions: 64,
        shards: Vec::new(),
        precision: Precision::F32,
        kv: KvForm::F32,
    };
    let error = match Runner::load(&path, &device(Isa::detect()), &options, &mut |_| {}) {
        Ok(_) => panic!("a broken file was loaded; {parts:?} was expected"),
        Err(error) => error.to_string(),
    };
    for part in parts.iter().chain(&["broken.gguf"]) {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert!(error.len() < 2500, "a message of {} bytes", error.len());
}

/// A fixture with something changed, which must not load.
#[track_caller]
fn check_changed(fixture: &str, change: impl FnOnce(&mut Parts), parts: &[&str]) {
    let mut file = Parts::of(fixture);
    change(&mut file);
    check(&file.bytes(), parts);
}

#[test]
fn what_is_taken_apart_and_written_again_still_runs() {
    for fixture in ["gguf_olmoe", "gguf_mixtral_each", "gguf_llama"] {
        let folder = tempfile::tempdir().unwrap();
        // A name says nothing, and a folder of one GGUF file is that file.
        std::fs::write(folder.path().join("x.gguf"), Parts::of(fixture).bytes()).unwrap();
        let options = RunnerOptions {
            rows_max: 4,
            positions: 64,
            shards: Vec::new(),
            precision: Precision::F32,
            kv: KvForm::F32,
        };
        for path in [folder.path().to_path_buf(), folder.path().join("x.gguf")] {
            Runner::load(&path, &device(Isa::detect()), &options, &mut |_| {}).unwrap();
        }
        std::fs::write(folder.path().join("y.gguf"), b"GGUF").unwrap();
        let several = Runner::load(folder.path(), &device(Isa::detect()), &options, &mut |_| {});
        assert!(several.err().unwrap().to_string().contains("several GGUF files"));
    }
}

#[test]
fn truncated_and_malformed_headers() {
    let whole = Parts::of("gguf_llama").bytes();
    let at = |position: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[position..position + bytes.len()].copy_from_slice(bytes);
        file
    };
    let key = |name: &str| {
        let found = whole.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
        found + name.len()
    };
    let huge = u64::MAX.to_le_bytes();
    let architecture = key("general.architecture");
    check(b"", &["not a GGUF file"]);
    check(b"GGUF", &["the version", "ends at byte 4"]);
    check(b"{\"a\": 1}", &["not a GGUF file"]);
    check(b"version https://git-lfs.github.com/spec/v1\n", &["git-lfs"]);
    check(&at(4, &1u32.to_le_bytes()), &["GGUF version 1", "reads 2 and 3"]);
    check(&at(4, &3u32.to_be_bytes()), &["big-endian"]);
    check(&at(8, &huge), &["tensors; at most"]);
    check(&at(8, &1_000_000u64.to_le_bytes()), &["1000000 entries are claimed"]);
    check(&at(16, &huge), &["metadata keys; at most"]);
    check(&at(16, &60_000u64.to_le_bytes()), &["metadata key"]);
    check(&at(24, &huge), &["metadata key 0", "a string of 18446744073709551615 bytes"]);
    check(&at(24, &(1u64 << 20).to_le_bytes()), &["metadata key 0", "in the middle"]);
    check(&at(architecture, &99u32.to_le_bytes()), &["general.architecture", "no value type 99"]);
    check(&at(architecture + 4, &huge), &["general.architecture", "a string of"]);
    check(&at(architecture + 12, &[0xff]), &["general.architecture", "not UTF-8"]);
    for end in [5, 12, 20, 40, 100, 400, 1000, 1500] {
        check(&whole[..end], &["header"]);
    }
    check(&whole[..whole.len() - 64], &["tensor", "beyond the file's end", "truncated"]);
}

#[test]
fn metadata_that_explodes() {
    let mut list = Value::List(vec![Value::Unsigned(1)]);
    for _ in 0..4 {
        list = Value::List(vec![list]);
    }
    check_changed("gguf_llama", |file| file.set("deep", Some(list)), &["deep", "nested more than 4"]);
    check_changed(
        "gguf_llama",
        |file| file.keys.push(file.keys[0].clone()),
        &["metadata key", "stands twice"],
    );
    // A list that claims more than can follow.
    let mut file = Parts::of("gguf_llama");
    file.keys.insert(0, ("list".into(), Value::List(vec![Value::Unsigned(7)])));
    let mut file = file.bytes();
    let count = 24 + 8 + 4 + 4 + 4;
    assert_eq!(file[count..count + 8], 1u64.to_le_bytes());
    file[count..count + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    check(&file, &["list", "1099511627776 entries are claimed"]);
}

#[test]
fn tensors_that_lie_about_themselves() {
    const NORM: &str = "blk.0.attn_norm.weight";
    const QUERY: &str = "blk.0.attn_q.weight";
    let case = |change: fn(&mut Parts), parts: &[&str]| check_changed("gguf_mixtral", change, parts);
    case(|file| file.tensor(NORM).kind = 14, &[NORM, "stored as Q6_K", "F32, F16, BF16, Q4_0 and Q8_0"]);
    case(|file| file.tensor(NORM).kind = 77, &[NORM, "stored as type 77"]);
    case(
        |file| file.tensors.iter_mut().filter(|tensor| tensor.kind == 2).for_each(|tensor| tensor.kind = 12),
        &["stored as Q4_K", "more tensors as Q4_K"],
    );
    case(|file| file.tensor(NORM).shape = vec![0], &[NORM, "a side of its shape is 0"]);
    case(|file| file.tensor(NORM).shape = Vec::new(), &[NORM, "0 dimensions"]);
    case(|file| file.tensor(NORM).shape = vec![1; 5], &[NORM, "5 dimensions"]);
    case(|file| file.tensor(NORM).shape = vec![1 << 40, 1 << 40], &[NORM, "cannot be stored as f32"]);
    case(|file| file.tensor(NORM).shape = vec![usize::MAX], &[NORM, "cannot be stored"]);
    case(|file| file.tensor(QUERY).shape = vec![128, 16], &[QUERY, "cannot be stored as q4_0"]);
    case(|file| file.tensor(NORM).offset = Some(7), &[NORM, "no multiple of 32"]);
    case(|file| file.tensor(NORM).offset = Some(1 << 40), &[NORM, "beyond the file's end"]);
    case(|file| file.tensor(NORM).offset = Some(u64::MAX - 31), &[NORM, "beyond the file's end"]);
    case(|file| file.tensor(NORM).offset = Some(0), &["its bytes overlap those of"]);
    case(|file| file.tensor(NORM).name = QUERY.into(), &[QUERY, "stands twice"]);
    case(|file| file.tensor(NORM).name = String::new(), &["a name of 0 bytes"]);
    case(|file| file.set("general.alignment", Some(Value::Unsigned(24))), &["general.alignment", "24"]);
    case(|file| file.set("split.count", Some(Value::Unsigned(3))), &["one of 3 files"]);
}

#[test]
fn missing_extra_and_misshapen_tensors_are_all_listed() {
    check_changed(
        "gguf_mixtral",
        |file| {
            file.tensor("blk.0.attn_q.weight").name = "blk.0.spare.weight".into();
            let norm = file.tensor("output_norm.weight");
            (norm.kind, norm.shape) = (1, vec![128]);
            let norm = file.tensor("blk.1.ffn_norm.weight");
            norm.kind = 2;
            norm.bytes.truncate(36);
            file.tensor("blk.1.ffn_up_exps.weight").shape.swap(1, 2);
        },
        &[
            "5 tensor(s) do not fit",
            "blk.0.attn_q.weight: missing, [64, 64] expected",
            "blk.0.spare.weight: not part of this architecture",
            "output_norm.weight in broken.gguf: shape [128]",
            "blk.1.ffn_norm.weight in broken.gguf: stored as q4_0, f32 or f16 or bf16 expected",
            "blk.1.ffn_up_exps.weight in broken.gguf: shape [5, 64, 96], [5, 96, 64] expected",
        ],
    );
}

#[test]
fn metadata_that_no_model_has() {
    let number = |number: u64| Some(Value::Unsigned(number));
    let real = |number: f64| Some(Value::Float(number));
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    let cases: [(&str, &str, Option<Value>, &[&str]); 22] = [
        (
            "gguf_olmoe",
            "general.architecture",
            None,
            &["general.architecture: missing", "olmoe, qwen3moe, llama"],
        ),
        ("gguf_olmoe", "general.architecture", text("mamba"), &["\"mamba\" is not supported", "qwen3moe"]),
        ("gguf_olmoe", "general.architecture", number(1), &["general.architecture: not a string"]),
        ("gguf_olmoe", "olmoe.block_count", None, &["olmoe.block_count: missing"]),
        ("gguf_olmoe", "olmoe.context_length", None, &["olmoe.context_length: missing"]),
        ("gguf_olmoe", "olmoe.attention.layer_norm_rms_epsilon", None, &["layer_norm_rms_epsilon: missing"]),
        (
            "gguf_olmoe",
            "olmoe.attention.layer_norm_rms_epsilon",
            real(f64::NAN),
            &["layer_norm_rms_epsilon", "NaN"],
        ),
        ("gguf_olmoe", "olmoe.block_count", number(0), &["olmoe.block_count", "0 is not a whole number"]),
        ("gguf_olmoe", "olmoe.block_count", number(1 << 60), &["olmoe.block_count"]),
        ("gguf_olmoe", "olmoe.embedding_length", text("64"), &["olmoe.embedding_length"]),
        ("gguf_olmoe", "olmoe.expert_count", None, &["olmoe.expert_count: missing, or 0"]),
        ("gguf_olmoe", "olmoe.expert_used_count", number(7), &["olmoe.expert_used_count", "7 of 6 experts"]),
        ("gguf_olmoe", "olmoe.expert_gating_func", number(2), &["olmoe.expert_gating_func: 2"]),
        ("gguf_olmoe", "olmoe.expert_shared_count", number(1), &["olmoe.expert_shared_count"]),
        ("gguf_olmoe", "olmoe.rope.freq_base", real(0.5), &["olmoe.rope.freq_base", "0.5 is not above 1"]),
        (
            "gguf_olmoe",
            "olmoe.rope.scaling.type",
            text("longrope"),
            &["rope.scaling.type", "longrope", "yarn"],
        ),
        (
            "gguf_qwen3moe",
            "qwen3moe.rope.scaling.factor",
            real(0.5),
            &["qwen3moe.rope.scaling.factor: 0.5 is below 1"],
        ),
        ("gguf_qwen3moe", "qwen3moe.attention.value_length", number(16), &["attention.value_length", "16"]),
        ("gguf_mixtral", "llama.rope.dimension_count", number(8), &["llama.rope.dimension_count: 8"]),
        ("gguf_mixtral", "llama.attention.head_count_kv", number(3), &["llama.attention.head_count_kv"]),
        ("gguf_mixtral", "llama.attention.sliding_window", real(2.5), &["sliding_window: 2.5"]),
        ("gguf_llama", "llama.rope.scaling.factor", real(4.0), &["rope_freqs.weight", "does not combine"]),
    ];
    for (fixture, key, value, parts) in cases {
        check_changed(fixture, |file| file.set(key, value), parts);
    }
    // A list that says the same for every layer is one number, another is not.
    let list = |kv: [u64; 2]| Some(Value::List(kv.map(Value::Unsigned).into()));
    let mut file = Parts::of("gguf_mixtral");
    file.set("llama.attention.head_count_kv", list([2, 2]));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("lists.gguf"), file.bytes()).unwrap();
    assert!(ModelSource::open(folder.path()).unwrap().spec().is_ok());
    check_changed(
        "gguf_mixtral",
        |file| file.set("llama.attention.head_count_kv", list([2, 1])),
        &["llama.attention.head_count_kv", "a list of several values"],
    );
    check_changed(
        "gguf_llama",
        |file| file.tensor("rope_freqs.weight").bytes.fill(0),
        &["rope_freqs.weight", "above 0"],
    );
}

#[test]
fn tokenizers_that_contradict_themselves() {
    let text = |text: &str| Value::Text(text.to_owned());
    let whole = std::fs::read(fixtures_folder().join("../tokenizers/olmo.gguf")).unwrap();
    let case = |key: &str, value: Option<Value>, part: &str| {
        let mut file = Parts::parse(&whole);
        file.set(key, value);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("broken.gguf"), file.bytes()).unwrap();
        let error = ModelSource::open(folder.path()).unwrap().tokenizer().err().unwrap().to_string();
        assert!(error.contains("broken.gguf") && error.contains(part), "{part:?} is not in: {error}");
    };
    case(
        "tokenizer.ggml.model",
        Some(text("rwkv")),
        "\"rwkv\" is not supported; this version has gpt2 and llama",
    );
    case("tokenizer.ggml.model", None, "tokenizer.ggml.model: missing");
    case("tokenizer.ggml.pre", Some(text("tekken")), "\"tekken\" is not supported; this version has");
    case("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens: missing");
    case("tokenizer.ggml.tokens", Some(Value::List(vec![text("a"); 427])), "is both token 0 and token 1");
    case("tokenizer.ggml.tokens", Some(Value::List(vec![text("a")])), "entries for 1 tokens");
    case("tokenizer.ggml.token_type", Some(Value::List(vec![Value::Unsigned(9); 427])), "none of 1 to 6");
    case("tokenizer.ggml.merges", None, "tokenizer.ggml.merges: missing");
    case("tokenizer.ggml.merges", Some(Value::List(vec![text("ab")])), "entry 0 is no pair");
    case("tokenizer.ggml.eos_token_id", Some(Value::Unsigned(9999)), "eos_token_id: 9999");
    case("tokenizer.ggml.add_eos_token", Some(text("yes")), "add_eos_token: not true or false");
}

/// The log-probabilities after the fixture's second prompt, of the file as it is or changed.
fn log_probabilities(fixture: &str, change: impl FnOnce(&mut Parts)) -> Vec<f64> {
    let mut file = Parts::of(fixture);
    change(&mut file);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.gguf"), file.bytes()).unwrap();
    let mut runner = load(folder.path(), &device(Isa::detect()), Vec::new());
    let tokens = expected(&fixtures_folder().join(fixture)).cases[1].tokens();
    let logits = logits_in_chunks(&mut runner, &tokens, std::iter::repeat(tokens.len()));
    log_softmax(logits.last().unwrap())
}

/// Whatever a reader could leave out of the metadata changes the fixtures' numbers by far more than they may be off.
#[test]
fn every_key_matters() {
    let cases: [(&str, &str, Option<Value>); 13] = [
        ("gguf_olmoe", "olmoe.rope.freq_base", None),
        ("gguf_olmoe", "olmoe.expert_weights_norm", Some(Value::Flag(true))),
        ("gguf_olmoe", "olmoe.attention.layer_norm_rms_epsilon", Some(Value::Float(1e-5))),
        ("gguf_olmoe", "olmoe.attention.clamp_kqv", Some(Value::Float(0.5))),
        ("gguf_qwen3moe", "qwen3moe.expert_weights_norm", Some(Value::Flag(false))),
        ("gguf_qwen3moe", "qwen3moe.rope.scaling.type", Some(Value::Text("none".into()))),
        ("gguf_qwen3moe", "qwen3moe.rope.scaling.original_context_length", None),
        ("gguf_qwen3moe", "qwen3moe.rope.scaling.attn_factor", Some(Value::Float(0.5))),
        ("gguf_mixtral", "llama.rope.freq_base", None),
        ("gguf_mixtral", "llama.expert_weights_norm", Some(Value::Flag(false))),
        ("gguf_mixtral_each", "llama.attention.sliding_window", None),
        ("gguf_mixtral_each", "llama.expert_weights_scale", None),
        ("gguf_llama_linear", "llama.rope.scaling.factor", None),
    ];
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    for (fixture, key, value) in cases {
        let whole = log_probabilities(fixture, |_| {});
        let changed = log_probabilities(fixture, |file| file.set(key, value));
        assert!(far(&whole, &changed) > 1e-3, "{fixture}: {key} changes {:e}", far(&whole, &changed));
    }
    let factors = |file: &mut Parts| file.tensors.retain(|tensor| tensor.name != "rope_freqs.weight");
    assert!(far(&log_probabilities("gguf_llama", |_| {}), &log_probabilities("gguf_llama", factors)) > 1e-3);
    // A linear factor needs no type, and was once called otherwise.
    let whole = log_probabilities("gguf_llama_linear", |_| {});
    let old = log_probabilities("gguf_llama_linear", |file| {
        file.set("llama.rope.scaling.type", None);
        file.set("llama.rope.scaling.factor", None);
        file.set("llama.rope.scale_linear", Some(Value::Float(2.5)));
    });
    assert_eq!(whole, old);
}

/// Experts whose matrices lie in different forms are counted as they run, and are named.
#[test]
fn layers_of_mixed_forms_are_counted_as_they_run() {
    let mut parts = Parts::of("gguf_olmoe");
    let up = parts.tensor("blk.0.ffn_up_exps.weight");
    let elements: usize = up.shape.iter().product();
    (up.kind, up.bytes) = (0, vec![0; 4 * elements]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mixed.gguf");
    std::fs::write(&path, parts.bytes()).expect("a file");
    let source = ModelSource::open(&path).expect("a model");
    let (spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("tensors"));
    check_tensors(&spec, &checkpoint).expect("a model that fits");
    let stored = |layer: usize| -> u64 {
        let names = ["gate", "up", "down"].map(|part| format!("blk.{layer}.ffn_{part}_exps.weight"));
        names.iter().map(|name| checkpoint.tensor(name).expect("experts").bytes.len() as u64).sum()
    };
    let all: u64 = (0..spec.layers.len()).map(stored).sum();
    for precision in [Precision::AsStored, Precision::Int8, Precision::Int4] {
        assert_eq!(mixed_layers(&spec, &checkpoint, precision), [0], "{precision:?}");
        let experts = resident_by_role(&spec, &checkpoint, precision)[&Role::Experts];
        assert_eq!(experts, all, "{precision:?}: integers stay, and the mixed layer too");
    }
    // Whatever becomes bf16 or f32 meets f32 activations, whatever it was.
    for precision in [Precision::Bf16, Precision::F32] {
        assert_eq!(mixed_layers(&spec, &checkpoint, precision), [0usize; 0], "{precision:?}");
    }
    let sparse = spec.layers[0].mlp.sparse().expect("experts");
    let elements = (3 * sparse.experts * sparse.width * spec.hidden * spec.layers.len()) as u64;
    assert_eq!(resident_by_role(&spec, &checkpoint, Precision::Bf16)[&Role::Experts], 2 * elements);
}

/// Sizes of a configuration that no tensor bears out are large, not small.
#[test]
fn sizes_do_not_wrap_around() {
    let source = ModelSource::open(&fixtures_folder().join("gguf_olmoe")).expect("a fixture");
    let (mut spec, checkpoint) = (source.spec().expect("a spec"), source.checkpoint().expect("tensors"));
    (spec.hidden, spec.vocab) = (1 << 33, 1 << 33);
    assert!(check_tensors(&spec, &checkpoint).is_err());
    assert!(resident_bytes(&spec, &checkpoint, Precision::Bf16) >= 1 << 62);
    let shares = account(&spec, None);
    assert!(shares[&Role::Embedding].parameters >= 1 << 62 && shares[&Role::Embedding].bytes >= 1 << 62);
}
