//! The fuzz targets over mutated seeds, on stable Rust and with a fixed seed: a quick net under the real fuzzing.

use std::path::Path;

use gaterail_kernels::ops::{self, ExpertPiece, Packing};
use gaterail_kernels::wire::write_piece;
use gaterail_kernels::{Arena, Bytes, GGUF_GROUP, Isa, Matrix, MatrixData, Q4_0_BLOCK, Weight};
use gaterail_model::ModelSource;
use gaterail_model::walk::{Runner, RunnerOptions};
use gaterail_model::weights::Precision;
use gaterail_model::weights::cache::{PackedCache, list, parse_cache};
use gaterail_tests::broken::Copy;
use gaterail_tests::cuts::hash;
use gaterail_tests::gguf::Parts;
use gaterail_tests::{device, fixtures, fuzzing, logits_in_chunks};
use serde_json::{Value, json};

/// Bytes that mean something in JSON and templates, and two that mean nothing anywhere.
const LETTERS: &[u8] = b"0123456789{}[]\",:-.eE%|\x00\xff";

/// Flips, cuts, doubles or splices bytes; a few at a time.
fn mutate(seed: &[u8], other: &[u8], round: u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    let mut state = hash(round);
    let mut below = |n: usize| {
        state = hash(state);
        (state % n.max(1) as u64) as usize
    };
    for _ in 0..1 + below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = below(bytes.len());
        match below(6) {
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = LETTERS[below(LETTERS.len())],
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + 1 + below(40)).min(bytes.len());
                let run = bytes[at..end].to_vec();
                bytes.splice(at..at, run);
            }
            _ => {
                let from = below(other.len());
                let run = other[from..(from + 1 + below(40)).min(other.len())].to_vec();
                bytes.splice(at..at, run);
            }
        }
    }
    bytes
}

/// Runs `target` over mutations of `seeds`; a panic names the round.
fn replay(seeds: &[Vec<u8>], rounds: u64, target: fn(&[u8])) {
    for seed in seeds {
        target(seed);
    }
    for round in 0..rounds {
        let seed = &seeds[(hash(round ^ 1) % seeds.len() as u64) as usize];
        let other = &seeds[(hash(round ^ 2) % seeds.len() as u64) as usize];
        let bytes = mutate(seed, other, round);
        let result = std::panic::catch_unwind(|| target(&bytes));
        assert!(result.is_ok(), "round {round} panics on {:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn headers() {
    // The header and a little of the data are enough; whole files would only be slow.
    let seeds: Vec<Vec<u8>> = fixtures()
        .iter()
        .filter_map(|folder| std::fs::read(folder.join("model.safetensors")).ok())
        .map(|file| {
            let header = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
            file[..(8 + header + 64).min(file.len())].to_vec()
        })
        .chain([gaterail_tests::broken::safetensors(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}"#,
            &[0; 14],
        )])
        .collect();
    replay(&seeds, 6_000, fuzzing::header);
}

#[test]
fn gguf_files() {
    let folder = gaterail_tests::fixtures_folder().join("../tokenizers");
    let tokenizers =
        ["gpt2", "llama_spm"].map(|name| std::fs::read(folder.join(format!("{name}.gguf"))).unwrap());
    // Metadata and names of whole models over tensors of one number, so that mutations meet the header.
    let models = ["gguf_olmoe", "gguf_qwen3moe", "gguf_mixtral_each", "gguf_llama"].map(|name| {
        let mut file = Parts::of(name);
        file.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
        for tensor in file.tensors.iter_mut().filter(|tensor| tensor.name != "token_embd.weight") {
            (tensor.kind, tensor.shape) = (0, vec![1]);
            tensor.bytes.truncate(4);
        }
        file.bytes()
    });
    let seeds: Vec<Vec<u8>> = tokenizers.into_iter().chain(models).collect();
    for seed in &seeds {
        assert!(gaterail_model::gguf::parse_gguf(seed).is_ok());
    }
    replay(&seeds, 6_000, fuzzing::gguf);
}

#[test]
fn configurations() {
    let seeds: Vec<Vec<u8>> =
        fixtures().iter().filter_map(|folder| std::fs::read(folder.join("config.json")).ok()).collect();
    replay(&seeds, 20_000, fuzzing::config);
}

#[test]
fn indices() {
    let seeds: Vec<Vec<u8>> = fixtures()
        .iter()
        .filter_map(|folder| std::fs::read(folder.join("model.safetensors.index.json")).ok())
        .chain([br#"{"weight_map": {"a": "b.safetensors", "c": "../d", "e": "/f", "g": "."}}"#.to_vec()])
        .collect();
    replay(&seeds, 6_000, fuzzing::index);
}

#[test]
fn heads_of_packed_weights() {
    let device = device(Isa::detect());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = PackedCache { bytes_min: 0, ..PackedCache::new(folder.path().to_path_buf()) };
    for (name, precision) in [
        ("mixtral_a", Precision::Int4),
        ("gpt_oss_a", Precision::AsStored),
        ("qwen3_moe_gptq_b", Precision::AsStored),
        ("gguf_olmoe", Precision::AsStored),
    ] {
        let source = ModelSource::open(&gaterail_tests::fixtures_folder().join(name)).expect("a fixture");
        let (spec, checkpoint) = (source.spec().unwrap(), source.checkpoint().unwrap());
        let options =
            RunnerOptions { rows_max: 4, positions: 64, shards: Vec::new(), precision, kv: precision.kv() };
        let loaded = Runner::with_cache(spec, &checkpoint, &device, &options, Some(&cache), &mut |_| {});
        loaded.expect("a fixture").1.pending.expect("packed weights").write(&mut |_| {}).expect("a file");
    }
    let files = list(folder.path()).expect("the cache");
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(&file.path).unwrap()).collect();
    assert_eq!(seeds.len(), 4);
    assert!(seeds.iter().all(|seed| parse_cache(seed, seed.len() as u64).is_ok()));
    replay(&seeds, 3_000, fuzzing::packed);
    // The head alone, over and over: mutations of whole files mostly meet data.
    let cut = |seed: &Vec<u8>| {
        let index = u64::from_le_bytes(seed[16..24].try_into().expect("eight bytes")) as usize;
        let sums = u64::from_le_bytes(seed[24..32].try_into().expect("eight bytes")) as usize;
        seed[..40 + index + 8 * sums].to_vec()
    };
    replay(&seeds.iter().map(cut).collect::<Vec<_>>(), 6_000, fuzzing::packed);
}

#[test]
fn pieces_of_experts() {
    let device = device(Isa::detect());
    let seed = |matrix: &dyn Fn(usize, usize) -> Weight, biases: bool| {
        let bias = |n: usize| biases.then(|| vec![0.5; n]);
        let piece = ExpertPiece {
            expert: 1,
            gate: matrix(32, 64),
            up: matrix(32, 64),
            down: matrix(64, 32),
            gate_bias: bias(32),
            up_bias: bias(32),
            down_bias: bias(64),
        };
        let mut bytes = Vec::new();
        write_piece(&piece, &mut |run| bytes.extend_from_slice(run));
        bytes
    };
    let plain = |rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.7).sin()).collect();
        Matrix::from_f32(&values, rows, cols)
    };
    let blocks = |rows: usize, cols: usize| {
        let bytes: Vec<u8> =
            (0..rows * cols / GGUF_GROUP * Q4_0_BLOCK).map(|i| (i * 37 % 256) as u8).collect();
        Matrix::new(MatrixData::Q4_0 { blocks: Bytes::copied(&bytes) }, rows, cols)
    };
    let packed = |packing| {
        let device = device.clone();
        move |rows: usize, cols: usize| -> Weight {
            ops::pack(&device, &plain(rows, cols), packing, &mut Arena::default()).into()
        }
    };
    let seeds = [
        seed(&|rows, cols| plain(rows, cols).into(), true),
        seed(&|rows, cols| plain(rows, cols).to_bf16().into(), false),
        seed(&|rows, cols| blocks(rows, cols).into(), false),
        seed(&packed(Packing::Int4), true),
        seed(&packed(Packing::Int8), false),
    ];
    replay(&seeds, 6_000, fuzzing::piece);
    // The headers alone.
    let cut = |seed: &Vec<u8>| seed[..64].to_vec();
    replay(&seeds.iter().map(cut).collect::<Vec<_>>(), 2_000, fuzzing::piece);
}

#[test]
fn templates() {
    let seeds: Vec<Vec<u8>> = [
        "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}",
        "{%- macro show(x, n=2) -%}{{ x ~ n }}{%- endmacro -%}{%- set ns = namespace(a=0) -%}{%- for i in range(3) -%}{%- set ns.a = ns.a + i -%}{{ show(ns.a) }}{%- endfor -%}",
        "{{ messages[::-1][0].content.split(' ')[-1].upper() }}{{ messages | tojson(indent=2) }}{{ raise_exception('no') if false }}",
        "{% set x = [1, 2, {'a': none}] %}{{ x }}{{ x[2].a is none }}{{ 'abc'[1:] * 3 }}{{ 7 // 2 ** 2 % 3 }}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    replay(&seeds, 1_500, fuzzing::template);
}

#[test]
fn tokenizers() {
    let model = r#""model": {"type": "BPE", "vocab": {"a": 0, "▁": 1, "<0xF0>": 2, "<unk>": 3, "aa": 4}, "merges": [["a", "a"]], "unk_token": "<unk>", "byte_fallback": true}"#;
    let seeds: Vec<Vec<u8>> = [
        r#""added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}, "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#,
        r#""added_tokens": [{"id": 5, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}], "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#,
        r#""pre_tokenizer": {"type": "FixedLength", "length": 3}, "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}}, "decoder": {"type": "Strip", "content": "a", "start": 1, "stop": 1}"#,
    ]
    .map(|parts| format!(r#"{{"version": "1.0", {parts}, {model}}}"#).into_bytes())
    .to_vec();
    // Every one of them has to load, so that mutations reach further than the parser.
    assert!(seeds.iter().all(|seed| gaterail_model::text::Tokenizer::from_bytes("seed", seed).is_ok()));
    replay(&seeds, 3_000, fuzzing::tokenizer);
}

#[test]
fn generation_configurations() {
    let seeds = [
        r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "eos_token_id": [151645, 151643]}"#,
        r#"{"temperature": 1e30, "top_k": -1, "repetition_penalty": 1.05, "eos_token_id": 2, "do_sample": false}"#,
    ]
    .map(|text| text.as_bytes().to_vec());
    replay(&seeds, 6_000, fuzzing::generation);
}

/// Folders with 4-bit layers whose headers and configurations are well formed but say something else: they are refused,
/// or they run.
#[test]
fn folders_of_4_bit_layers() {
    let device = device(Isa::detect());
    let settings = [
        ("bits", vec![json!(3), json!(4), json!("4")]),
        ("group_size", vec![json!(32), json!(64), json!(96), json!(128), json!(-1), json!(65_536), json!(0)]),
        ("checkpoint_format", vec![json!("gptq"), json!("gptq_v2"), json!("gemm")]),
        ("quant_method", vec![json!("gptq"), json!("awq"), json!("fp8")]),
        ("desc_act", vec![json!(true), json!(false)]),
        ("sym", vec![json!(true), json!(false)]),
    ];
    let swaps = [("I32", "F32"), ("F32", "U32"), ("F16", "BF16"), ("BF16", "F16"), ("U32", "I32")];
    let (mut refused, mut run) = (0, 0);
    for round in 0..300 {
        let mut state = hash(round);
        let mut below = |n: usize| {
            state = hash(state);
            (state % n as u64) as usize
        };
        let copy = Copy::of(["qwen3_moe_gptq_b", "qwen2_moe_gptq", "mixtral_awq", "qwen3_gptq"][below(4)]);
        if below(2) == 0 {
            let (field, values) = &settings[below(settings.len())];
            let value = values[below(values.len())].clone();
            copy.json("config.json", |config| config["quantization_config"][field] = value);
        }
        copy.tensors("model.safetensors", |header, data| {
            let names: Vec<String> = header.keys().filter(|name| *name != "__metadata__").cloned().collect();
            for _ in 0..below(3) {
                let [name, other] = [names[below(names.len())].clone(), names[below(names.len())].clone()];
                match below(4) {
                    0 => header[&name]["shape"].as_array_mut().expect("a shape").reverse(),
                    1 => {
                        let dtype = header[&name]["dtype"].clone();
                        let swap = swaps.iter().find(|(from, _)| dtype == *from);
                        header[&name]["dtype"] = swap.map_or(dtype, |(_, to)| Value::from(*to));
                    }
                    2 => {
                        let [a, b] = [header[&name].clone(), header[&other].clone()];
                        (header[&name], header[&other]) = (b, a);
                    }
                    _ => {
                        let at = below(data.len());
                        data[at] ^= 1 << below(8);
                    }
                }
            }
        });
        let precision = [Precision::F32, Precision::AsStored][below(2)];
        let options =
            RunnerOptions { rows_max: 4, positions: 64, shards: Vec::new(), precision, kv: precision.kv() };
        // Nothing of a panicking round is used again but the device's threads, which outlive it.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut runner = Runner::load(copy.path(), &device, &options, &mut |_| {}).ok()?;
            Some(logits_in_chunks(&mut runner, &[5, 6, 7], std::iter::repeat(3)).len())
        }));
        match outcome {
            Ok(None) => refused += 1,
            Ok(Some(_)) => run += 1,
            Err(_) => panic!("round {round} panics"),
        }
    }
    assert!(refused > 50 && run > 50, "{refused} refused, {run} run: one of them is hardly tested");
}

#[test]
fn mutated_requests_are_refused_or_within_their_bounds() {
    let table: Value = serde_json::from_str(include_str!("../data/bad_requests.json")).expect("a table");
    let mut seeds: Vec<Vec<u8>> = table
        .as_array()
        .expect("a list")
        .iter()
        .filter(|case| case["body"].is_object())
        .map(|case| case["body"].to_string().into_bytes())
        .filter(|body| body.len() < 1000)
        .collect();
    assert!(seeds.len() > 100, "only {} bodies", seeds.len());
    let whole = json!({
        "model": "demo", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "prompt": [[1, 2], [3]],
        "n": 2, "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": -3, "stop": ["a", "b"],
        "logit_bias": {"5": -1.5}, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1,
        "stream": true, "stream_options": {"include_usage": true}, "stop_token_ids": [7], "min_tokens": 1,
        "chat_template_kwargs": {"enable_thinking": false},
    });
    seeds.extend(vec![whole.to_string().into_bytes(); 40]);
    replay(&seeds, 60_000, fuzzing::request);
}

#[test]
fn frames() {
    // A call of two rows of three numbers with one expert each, and an empty one.
    let mut call = fuzzing::frame_of(40).to_vec();
    for (at, number) in [(36, 2), (40, 3), (44, 1)] {
        call[at] = number;
    }
    call.extend([0; 40]);
    // The same in int8, in groups of 64.
    let mut int8 = fuzzing::frame_of(152).to_vec();
    for (at, number) in [(5, 2), (36, 2), (40, 3), (44, 1)] {
        int8[at] = number;
    }
    int8.extend([0; 152]);
    let mut seeds = vec![call, int8, fuzzing::frame_of(0).to_vec(), fuzzing::frame_of(1 << 20).to_vec()];
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/frame");
    let files = std::fs::read_dir(found).expect("what a fuzzer has found").flatten();
    seeds.extend(files.map(|file| std::fs::read(file.path()).expect("a seed")));
    assert!(seeds.len() > 10, "{} seeds", seeds.len());
    replay(&seeds, 60_000, fuzzing::frame);
}

#[test]
fn shared_memory() {
    // Runs onto counters, sleepers, states and the beginnings of both directions' frames.
    let run = |word: u16, bytes: &[u8]| [&word.to_le_bytes()[..], &[bytes.len() as u8], bytes].concat();
    let counters = (64..192).step_by(16).map(|word| run(word, &64u64.to_le_bytes()));
    let frames = [512, 520, 528].map(|word| run(word, &fuzzing::frame_of(100)));
    let states = [16, 32, 192, 208, 224, 240].map(|word| run(word, &[1, 0, 0, 0, 2, 0, 0, 0]));
    let harmless = (0..40).map(|_| run(1000, &[7; 50]));
    let seeds: Vec<Vec<u8>> = vec![
        counters.clone().flatten().collect(),
        harmless.chain(counters).flatten().collect(),
        frames.into_iter().chain(states).flatten().collect(),
    ];
    replay(&seeds, 4_000, fuzzing::shared_memory);
}
