//! Files that lie, by what is said of them.

use super::*;

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
