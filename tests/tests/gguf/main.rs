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

mod broken;

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
