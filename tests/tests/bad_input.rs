//! What is wrong with a model folder is said before anything runs: which file, which tensor, and what is supported.

use gaterail_kernels::Isa;
use gaterail_kernels::ops::KvForm;
use gaterail_model::walk::{Runner, RunnerOptions};
use gaterail_model::weights::Precision;
use gaterail_tests::broken::{Copy, safetensors};
use gaterail_tests::{bits, device, fixtures_folder, logits_in_chunks};
use serde_json::{Value, json};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Loads the folder, which must fail, with all of `parts` in the message.
#[track_caller]
fn check(copy: &Copy, parts: &[&str]) -> String {
    let options = RunnerOptions {
        rows_max: 4,
        positions: 64,
        shards: Vec::new(),
        precision: Precision::F32,
        kv: KvForm::F32,
    };
    let error = match Runner::load(copy.path(), &device(Isa::detect()), &options, &mut |_| {}) {
        Ok(_) => panic!("a broken folder was loaded; {parts:?} was expected"),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    error
}

#[test]
fn truncated_and_malformed_files() {
    let whole = Copy::of("olmoe_a").bytes(SINGLE);
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("empty", Vec::new(), "0 bytes are too few"),
        ("seven bytes", whole[..7].to_vec(), "7 bytes are too few"),
        ("cut in the header", whole[..header_end / 2].to_vec(), "truncated"),
        ("cut in the data", whole[..whole.len() - 1].to_vec(), "truncated"),
        ("a byte too many", [whole.as_slice(), b"x"].concat(), "bytes behind its end"),
        ("a huge header", [&u64::MAX.to_le_bytes(), &whole[8..]].concat(), "the header claims"),
        ("no JSON", safetensors("not json at all!", b""), "not valid JSON"),
        ("a list", safetensors("[1, 2]", b""), "not valid JSON"),
        ("half a name", safetensors("{\"a\":", b""), "not valid JSON"),
        ("a name twice", safetensors(&double("a"), &[0; 8]), "tensor a stands twice"),
        (
            "an unknown type",
            safetensors(r#"{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]),
            "header",
        ),
    ];
    for (what, bytes, expected) in cases {
        let copy = Copy::of("olmoe_a");
        copy.write(SINGLE, &bytes);
        let error = check(&copy, &[SINGLE, expected]);
        assert!(error.len() < 400, "{what}: a message of {} bytes", error.len());
    }
}

fn double(name: &str) -> String {
    let tensor = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    format!(r#"{{"{name}":{tensor},"{name}":{tensor}}}"#)
}

#[test]
fn offsets_that_overlap_leave_holes_or_lie() {
    let tensor = |start: u64, end: u64| json!({"dtype": "F32", "shape": [1], "data_offsets": [start, end]});
    let cases = [
        (json!({"a": tensor(0, 4), "b": tensor(2, 6)}), "offsets"),
        (json!({"a": tensor(0, 4), "b": tensor(8, 12)}), "offsets"),
        (json!({"a": tensor(4, 0)}), "offsets"),
        (json!({"a": tensor(0, 8)}), "tensor a: its offsets do not match its shape"),
        (
            json!({"a": {"dtype": "F32", "shape": [1u64 << 40, 1u64 << 40], "data_offsets": [0, 4]}}),
            "too large",
        ),
    ];
    for (header, expected) in cases {
        let copy = Copy::of("olmoe_a");
        copy.write(SINGLE, &safetensors(&header.to_string(), &[0; 12]));
        check(&copy, &[SINGLE, expected]);
    }
}

#[test]
fn missing_extra_and_misshapen_tensors_are_all_listed() {
    let copy = Copy::of("olmoe_a");
    copy.tensors(SINGLE, |header, data| {
        let q = header.remove("model.layers.0.self_attn.q_proj.weight").unwrap();
        header.insert("model.layers.0.self_attn.spare.weight".into(), q);
        let norm = header["model.norm.weight"].as_object_mut().unwrap();
        let length = norm["shape"][0].as_u64().unwrap();
        norm["shape"] = json!([1, length]);
        let gate = header["model.layers.1.mlp.gate.weight"].as_object_mut().unwrap();
        assert_eq!(gate["dtype"], "F32");
        gate["dtype"] = "U32".into();
        let _ = data;
    });
    check(
        &copy,
        &[
            "4 tensor(s) do not fit",
            "model.layers.0.self_attn.q_proj.weight: missing",
            "model.layers.0.self_attn.spare.weight: not part of this architecture",
            "model.norm.weight in model.safetensors: shape [1, ",
            "model.layers.1.mlp.gate.weight in model.safetensors: stored as an unsupported type, f32 or f16 or bf16",
        ],
    );
}

#[test]
fn twenty_problems_are_enough() {
    let copy = Copy::of("olmoe_a");
    copy.write(SINGLE, &safetensors("{}", b""));
    let error = check(&copy, &["tensor(s) do not fit", "… and "]);
    assert_eq!(error.lines().count(), 22, "{error}");
}

#[test]
fn quantised_tensors_need_their_scales_in_their_shape() {
    let copy = Copy::of("deepseek_v3_c");
    copy.tensors(SINGLE, |header, _| {
        let name = "model.layers.1.self_attn.o_proj.weight_scale_inv";
        let scale = header.remove(name).unwrap();
        header.insert("vision_model.spare".into(), scale);
    });
    check(&copy, &["o_proj.weight_scale_inv: missing", "vision_model.spare: not part"]);

    let copy = Copy::of("gpt_oss_a");
    copy.tensors(SINGLE, |header, _| {
        let scales = header["model.layers.0.mlp.experts.down_proj_scales"].as_object_mut().unwrap();
        let mut shape: Vec<u64> = serde_json::from_value(scales["shape"].clone()).unwrap();
        shape.swap(0, 1);
        scales["shape"] = json!(shape);
    });
    check(&copy, &["model.layers.0.mlp.experts.down_proj_scales in model.safetensors: shape"]);
}

#[test]
fn what_of_gptq_and_awq_is_not_read_is_named() {
    let (gptq, awq) = ("qwen3_moe_gptq_b", "mixtral_awq");
    let cases: [(&str, &str, Value, &[&str]); 19] = [
        (gptq, "bits", json!(3), &["bits: 3 is not supported", "reads 4"]),
        (gptq, "bits", json!(null), &["bits: missing"]),
        (gptq, "group_size", json!(null), &["group_size: missing"]),
        (gptq, "group_size", json!(48), &["group_size: 48 is not supported", "32, 64, 128"]),
        (gptq, "group_size", json!(0), &["group_size: 0 is not supported"]),
        (gptq, "checkpoint_format", json!("marlin"), &["checkpoint_format: \"marlin\"", "gptq_v2"]),
        (gptq, "is_marlin_format", json!(true), &["is_marlin_format"]),
        (gptq, "lm_head", json!(true), &["lm_head: true is not supported"]),
        (gptq, "pack_dtype", json!("int8"), &["pack_dtype: \"int8\"", "int32"]),
        (gptq, "rotation", json!("hadamard"), &["rotation: \"hadamard\" is not supported"]),
        (gptq, "adapter", json!({"name": "lora"}), &["adapter:", "is not supported"]),
        (gptq, "dynamic", json!({"+:.*down.*": {"bits": 8}}), &["dynamic: \"+:.*down.*\" sets bits to 8"]),
        (gptq, "dynamic", json!({".*": {"group_size": 32}}), &["\".*\" sets group_size to 32"]),
        (gptq, "dynamic", json!([]), &["dynamic: not an object"]),
        (awq, "bits", json!(8), &["bits: 8 is not supported"]),
        (awq, "version", json!("gemv"), &["version: \"gemv\" is not supported", "gemm"]),
        (awq, "checkpoint_format", json!("gemv_fast"), &["checkpoint_format: \"gemv_fast\""]),
        (awq, "zero_point", json!(false), &["zero_point: false is not supported"]),
        (awq, "backend", json!("llm-awq"), &["backend: \"llm-awq\" is not supported"]),
    ];
    for (fixture, field, value, parts) in cases {
        let copy = Copy::of(fixture);
        copy.json(CONFIG, |config| {
            drop(config["quantization_config"].as_object_mut().unwrap().insert(field.into(), value))
        });
        check(&copy, &[&[CONFIG, "quantization_config."], parts].concat());
    }
    // Experts that are one tensor have no published 4-bit form that would be read.
    let copy = Copy::of("llama4_a");
    let quantization = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
    copy.json(CONFIG, |config| drop(config.insert("quantization_config".into(), quantization)));
    check(&copy, &[CONFIG, "4-bit experts of this architecture"]);
}

#[test]
fn tensors_of_4_bit_layers_are_checked_by_name() {
    let copy = Copy::of("qwen3_moe_gptq_b");
    copy.tensors(SINGLE, |header, _| {
        let layer = "model.layers.0.mlp.experts.1";
        let zeros = header.remove(&format!("{layer}.up_proj.qzeros")).unwrap();
        header.insert(format!("{layer}.up_proj.spare"), zeros);
        let words = header.remove(&format!("{layer}.gate_proj.qweight")).unwrap();
        header.insert(format!("{layer}.gate_proj.codes"), words);
        let shape = |name: &str| format!("model.layers.0.self_attn.{name}");
        header[&shape("q_proj.qweight")]["shape"].as_array_mut().unwrap().reverse();
        header[&shape("k_proj.scales")]["dtype"] = "I16".into();
        header[&shape("v_proj.qweight")]["dtype"] = "F32".into();
    });
    check(
        &copy,
        &[
            "7 tensor(s) do not fit",
            "experts.1.up_proj.qzeros: missing, [1, 12] expected",
            "experts.1.up_proj.spare: not part",
            "experts.1.gate_proj.qweight: missing, [8, 96] expected",
            "experts.1.gate_proj.codes: not part",
            "q_proj.qweight in model.safetensors: shape [64, 8], [8, 64] expected",
            "k_proj.scales in model.safetensors: stored as an unsupported type, f16 or bf16 expected",
            "v_proj.qweight in model.safetensors: stored as f32, i32 expected",
        ],
    );

    let copy = Copy::of("mixtral_awq");
    copy.json(CONFIG, |config| config["quantization_config"]["group_size"] = json!(64));
    check(
        &copy,
        &["q_proj.qzeros in model.safetensors: shape [1, 16], [2, 16] expected", "q_proj.scales in"],
    );
}

/// The data of a tensor.
fn data_of<'a>(header: &serde_json::Map<String, Value>, data: &'a mut [u8], name: &str) -> &'a mut [u8] {
    let [start, end]: [usize; 2] = serde_json::from_value(header[name]["data_offsets"].clone()).unwrap();
    &mut data[start..end]
}

#[test]
fn inputs_out_of_order_and_doubtful_zero_points_are_refused() {
    for desc_act in [false, true] {
        let copy = Copy::of("qwen3_gptq");
        let name = "model.layers.1.mlp.down_proj.g_idx";
        copy.json(CONFIG, |config| config["quantization_config"]["desc_act"] = json!(desc_act));
        // 200 inputs in groups of 128: the first now counts to the second group.
        copy.tensors(SINGLE, |header, data| data_of(header, data, name)[..4].copy_from_slice(&[1, 0, 0, 0]));
        check(&copy, &[name, "in model.safetensors: inputs are not in the order", "128", "static_groups"]);
    }
    let copy = Copy::of("qwen2_moe_gptq");
    let name = "model.layers.0.self_attn.k_proj.qzeros";
    copy.tensors(SINGLE, |header, data| data_of(header, data, name)[2] |= 0xf0);
    check(&copy, &[name, "stored as 15", "gptq_v2"]);
}

#[test]
fn an_order_may_be_left_unsaid_and_a_bias_of_zeros_said() {
    let copy = Copy::of("qwen2_moe_gptq");
    // This group index is all zeros, as is a bias that some writers add; another is put where nothing is looked at.
    let rename = |from: &'static str, to: &'static str| {
        move |header: &mut serde_json::Map<String, Value>, _: &mut Vec<u8>| {
            let tensor = header.remove(from).unwrap();
            header.insert(to.into(), tensor);
        }
    };
    let down = "model.layers.0.mlp.experts.0.down_proj.g_idx";
    copy.tensors(SINGLE, rename(down, "model.layers.0.mlp.experts.0.down_proj.bias"));
    let query = "model.layers.0.self_attn.q_proj.g_idx";
    copy.tensors(SINGLE, rename(query, "model.layers.0.self_attn.rotary_emb.inv_freq"));
    let device = device(Isa::detect());
    let logits = |folder: &std::path::Path| {
        let mut runner = gaterail_tests::load(folder, &device, Vec::new());
        bits(&logits_in_chunks(&mut runner, &[5, 6, 7, 8], std::iter::repeat(4)))
    };
    assert_eq!(logits(copy.path()), logits(&fixtures_folder().join("qwen2_moe_gptq")));

    copy.json(CONFIG, |config| config["quantization_config"]["desc_act"] = json!(true));
    check(&copy, &["down_proj.g_idx: missing", "q_proj.g_idx: missing"]);
    copy.json(CONFIG, |config| config["quantization_config"]["desc_act"] = json!(false));
    let bias = "model.layers.0.mlp.experts.0.down_proj.bias";
    copy.tensors(SINGLE, |header, data| data_of(header, data, bias)[0] = 1);
    check(&copy, &[bias, "not part of this architecture"]);
}

#[test]
fn an_index_cannot_lead_astray() {
    let first = |map: &serde_json::Map<String, Value>| map.keys().next().unwrap().clone();
    let cases: [(&str, &str); 6] = [
        ("../olmoe_a/model.safetensors", "points outside the folder"),
        ("/etc/passwd", "points outside the folder"),
        ("sub/model.safetensors", "points outside the folder"),
        ("..", "points outside the folder"),
        ("absent.safetensors", "absent.safetensors, which is missing"),
        ("config.json", "config.json"),
    ];
    for (file, expected) in cases {
        let copy = Copy::of("mixtral_b");
        copy.json(INDEX, |index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            let name = first(map);
            map.insert(name, file.into());
        });
        check(&copy, &[expected]);
    }
}

#[test]
fn index_and_shards_must_agree() {
    let copy = Copy::of("mixtral_b");
    copy.json(INDEX, |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.insert("model.spare.weight".into(), map["model.norm.weight"].clone());
    });
    check(&copy, &[INDEX, "model.spare.weight", "is not in"]);

    let copy = Copy::of("mixtral_b");
    let mut removed = String::new();
    copy.json(INDEX, |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        removed = map.keys().next().unwrap().clone();
        map.remove(&removed);
    });
    check(&copy, &[INDEX, &removed, "not in the index"]);

    let copy = Copy::of("mixtral_b");
    copy.write(INDEX, br#"{"weight_map": {}}"#);
    check(&copy, &[INDEX, "names 0 files"]);
    copy.write(INDEX, br#"{"weight_map": 3}"#);
    check(&copy, &[INDEX, "malformed"]);
}

#[test]
fn unknown_architectures_and_quantisations_say_what_is_supported() {
    let cases: [(&str, Value, &[&str]); 9] = [
        ("architectures", json!(["MambaForCausalLM"]), &["MambaForCausalLM", "Qwen3MoeForCausalLM"]),
        ("architectures", json!([]), &["architectures: missing", "MixtralForCausalLM"]),
        (
            "quantization_config",
            json!({"quant_method": "aqlm", "bits": 2}),
            &["quant_method", "\"aqlm\"", "mxfp4", "gptq"],
        ),
        ("quantization_config", json!({"quant_method": "fp8"}), &["weight_block_size: missing"]),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 4.0}), &["rope_type", "longrope", "yarn"]),
        ("hidden_act", json!("gelu"), &["hidden_act", "gelu"]),
        ("hidden_size", json!(0), &["hidden_size", "0 is not a whole number"]),
        ("hidden_size", json!(-3), &["hidden_size", "-3"]),
        ("num_attention_heads", json!(1u64 << 60), &["num_attention_heads"]),
    ];
    for (field, value, parts) in cases {
        let copy = Copy::of("olmoe_a");
        copy.json(CONFIG, |config| {
            config.remove("rope_parameters");
            config.insert(field.into(), value);
        });
        check(&copy, &[&[CONFIG], parts].concat());
    }
    let copy = Copy::of("olmoe_a");
    copy.write(CONFIG, b"{");
    check(&copy, &[CONFIG, "not valid JSON"]);
    std::fs::remove_file(copy.file(CONFIG)).unwrap();
    check(&copy, &[CONFIG, "No such file"]);
}

#[test]
fn layers_beyond_the_last_are_ignored_only_where_the_configuration_declares_them() {
    let copy = Copy::of("deepseek_v3_c");
    copy.json(CONFIG, |config| drop(config.insert("num_nextn_predict_layers".into(), json!(0))));
    check(&copy, &["model.layers.", "not part of this architecture"]);

    let copy = Copy::of("olmoe_a");
    copy.json(CONFIG, |config| drop(config.insert("num_hidden_layers".into(), json!(1))));
    check(&copy, &["model.layers.1.", "not part of this architecture"]);
}

#[test]
fn pickles_are_not_read() {
    let copy = Copy::of("olmoe_a");
    std::fs::remove_file(copy.file(SINGLE)).unwrap();
    check(&copy, &["neither model.safetensors nor"]);
    copy.write("pytorch_model.bin", b"\x80\x02");
    check(&copy, &["pytorch_model.bin is a pickle"]);
}

#[test]
fn numbers_of_a_configuration_that_no_kernel_could_run() {
    let cases: [(&str, &str, Value, &str); 18] = [
        ("deepseek_v3_a", "n_group", json!(5), "n_group"),
        ("deepseek_v3_a", "topk_group", json!(1000), "topk_group"),
        ("deepseek_v3_a", "num_experts_per_tok", json!(1000), "num_experts_per_tok"),
        ("deepseek_v3_a", "qk_rope_head_dim", json!(7), "qk_rope_head_dim"),
        ("mixtral_a", "num_key_value_heads", json!(3), "num_key_value_heads"),
        ("mixtral_b", "sliding_window", json!(0), "sliding_window"),
        ("llama4_a", "attention_chunk_size", json!(0), "attention_chunk_size"),
        ("llama4_a", "no_rope_layers", json!([1]), "no_rope_layers"),
        ("llama_a", "rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        ("llama_a", "num_hidden_layers", json!(1_000_000), "num_hidden_layers"),
        ("gpt_oss_a", "layer_types", json!(["full_attention"]), "layer_types"),
        ("gpt_oss_a", "swiglu_limit", json!("seven"), "swiglu_limit"),
        ("deepseek_v3_a", "n_group", json!(12), "n_group"),
        ("deepseek_v3_a", "topk_method", json!("greedy"), "noaux_tc"),
        ("olmoe_a", "num_experts", json!(16_777_216), "num_experts"),
        ("olmoe_a", "intermediate_size", json!(1 << 20), "cannot be added exactly"),
        ("gpt_oss_a", "hidden_size", json!(65), "65 is no multiple"),
        ("llama_a", "hidden_size", json!(1 << 24), "hidden_size"),
    ];
    for (fixture, field, value, expected) in cases {
        let copy = Copy::of(fixture);
        copy.json(CONFIG, |config| drop(config.insert(field.into(), value)));
        check(&copy, &[CONFIG, expected]);
    }
}
