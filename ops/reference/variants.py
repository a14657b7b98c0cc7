"""The table of fixture variants: name -> architecture, config fields and options.

`config` holds the fields of config.json except the rotary ones, which are given
once under `rope` and written in the older or the newer spelling (`spelling`).
"""

HF = {
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "gpt_oss": "GptOssForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

COMMON = dict(
    hidden_act="silu",
    attention_dropout=0.0,
    initializer_range=0.02,
    use_cache=True,
    bos_token_id=1,
    eos_token_id=2,
)

VARIANTS = {}


def variant(name, arch, config, *, rope, dtype="float32", spelling="old", shards=1,
            quant=None, gains=None, same_weights_as=None, long=False):
    VARIANTS[name] = dict(
        arch=arch, config={**COMMON, **config}, rope=rope, dtype=dtype, spelling=spelling,
        shards=shards, quant=quant, gains=gains or {}, same_weights_as=same_weights_as, long=long,
    )


def rope(theta, **scaling):
    return dict(theta=theta, **scaling)


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)

# ---------------------------------------------------------------- Mixtral
variant("mixtral_a", "mixtral", dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    num_local_experts=5, num_experts_per_tok=2, sliding_window=None, rms_norm_eps=1e-5,
    tie_word_embeddings=False, router_aux_loss_coef=0.02, output_router_logits=False,
), rope=rope(1000000.0))

variant("mixtral_b", "mixtral", dict(
    vocab_size=112, hidden_size=32, intermediate_size=160, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
    num_local_experts=4, num_experts_per_tok=3, sliding_window=7, rms_norm_eps=0.01,
    tie_word_embeddings=True, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(10000.0), dtype="bfloat16", spelling="new", shards=3, long=True)

variant("mixtral_awq", "mixtral", dict(
    vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    num_local_experts=3, num_experts_per_tok=2, sliding_window=None, rms_norm_eps=1e-5,
    tie_word_embeddings=False, router_aux_loss_coef=0.02, output_router_logits=False,
), rope=rope(1000000.0), dtype="float16", quant="awq_g128")

# ---------------------------------------------------------------- Qwen2-MoE
variant("qwen2_moe_a", "qwen2_moe", dict(
    vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
    max_window_layers=4, moe_intermediate_size=24, shared_expert_intermediate_size=40,
    num_experts=6, num_experts_per_tok=3, norm_topk_prob=False, decoder_sparse_step=2,
    use_sliding_window=False, sliding_window=32768, rms_norm_eps=1e-6,
    tie_word_embeddings=False, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(1000000.0))

variant("qwen2_moe_b", "qwen2_moe", dict(
    vocab_size=128, hidden_size=48, intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
    max_window_layers=2, moe_intermediate_size=20, shared_expert_intermediate_size=36,
    num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1,
    mlp_only_layers=[1], use_sliding_window=True, sliding_window=6, rms_norm_eps=0.01,
    tie_word_embeddings=False, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(10000.0), dtype="bfloat16", spelling="new")

variant("qwen2_moe_gptq", "qwen2_moe", dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
    max_window_layers=2, moe_intermediate_size=48, shared_expert_intermediate_size=80,
    num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=1,
    use_sliding_window=False, sliding_window=32768, rms_norm_eps=1e-6,
    tie_word_embeddings=False, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(1000000.0), dtype="float16", quant="gptq_rows")

# ---------------------------------------------------------------- Qwen3-MoE
variant("qwen3_moe_a", "qwen3_moe", dict(
    vocab_size=128, hidden_size=48, head_dim=16, intermediate_size=80, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    attention_bias=False, max_window_layers=3, moe_intermediate_size=40, num_experts=8,
    num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[1],
    use_sliding_window=False, sliding_window=None, rms_norm_eps=1e-6,
    tie_word_embeddings=False, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(1000000.0), dtype="bfloat16")

variant("qwen3_moe_b", "qwen3_moe", dict(
    vocab_size=120, hidden_size=40, head_dim=16, intermediate_size=72, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=256,
    attention_bias=True, max_window_layers=3, moe_intermediate_size=28, num_experts=12,
    num_experts_per_tok=4, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[],
    use_sliding_window=False, sliding_window=None, rms_norm_eps=0.01,
    tie_word_embeddings=True, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(10000.0, **YARN), dtype="float16", spelling="new", shards=2, gains=dict(expert=3.0))

variant("qwen3_moe_gptq_a", "qwen3_moe", dict(
    vocab_size=96, hidden_size=64, head_dim=16, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    attention_bias=False, max_window_layers=2, moe_intermediate_size=160, num_experts=4,
    num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
    use_sliding_window=False, sliding_window=None, rms_norm_eps=1e-6,
    tie_word_embeddings=False, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(1000000.0), dtype="float16", quant="gptq_g32", shards=2)

variant("qwen3_moe_gptq_b", "qwen3_moe", dict(
    vocab_size=96, hidden_size=64, head_dim=16, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    attention_bias=True, max_window_layers=2, moe_intermediate_size=96, num_experts=4,
    num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[1],
    use_sliding_window=False, sliding_window=None, rms_norm_eps=1e-6,
    tie_word_embeddings=False, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(1000000.0), dtype="bfloat16", quant="gptq_v2_g64", spelling="new")

# ---------------------------------------------------------------- OLMoE
variant("olmoe_a", "olmoe", dict(
    vocab_size=96, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
    attention_bias=False, clip_qkv=None, num_experts=8, num_experts_per_tok=4,
    norm_topk_prob=False, pad_token_id=1, rms_norm_eps=1e-5, rope_scaling=None,
    tie_word_embeddings=False, router_aux_loss_coef=0.01, output_router_logits=False,
), rope=rope(10000.0), long=True)

variant("olmoe_b", "olmoe", dict(
    vocab_size=104, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
    attention_bias=False, clip_qkv=0.9, num_experts=6, num_experts_per_tok=2,
    norm_topk_prob=True, pad_token_id=1, rms_norm_eps=0.01,
    tie_word_embeddings=False, router_aux_loss_coef=0.01, output_router_logits=False,
), rope=rope(10000.0), dtype="bfloat16", spelling="new")

variant("olmoe_awq", "olmoe", dict(
    vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
    attention_bias=False, clip_qkv=None, num_experts=4, num_experts_per_tok=2,
    norm_topk_prob=True, pad_token_id=1, rms_norm_eps=1e-5,
    tie_word_embeddings=False, router_aux_loss_coef=0.01, output_router_logits=False,
), rope=rope(10000.0), dtype="bfloat16", quant="awq_g64", spelling="new")

# ---------------------------------------------------------------- DeepSeek-V2
variant("deepseek_v2_a", "deepseek_v2", dict(
    vocab_size=96, hidden_size=32, intermediate_size=64, moe_intermediate_size=20,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=256, attention_bias=False, q_lora_rank=None, kv_lora_rank=16,
    qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, n_routed_experts=6,
    n_shared_experts=2, num_experts_per_tok=3, first_k_dense_replace=1, moe_layer_freq=1,
    n_group=1, topk_group=1, topk_method="greedy", scoring_func="softmax", norm_topk_prob=False,
    routed_scaling_factor=1.5, aux_loss_alpha=0.001, seq_aux=True, ep_size=1,
    pretraining_tp=1, rms_norm_eps=1e-6, tie_word_embeddings=False,
), rope=rope(10000.0))

variant("deepseek_v2_b", "deepseek_v2", dict(
    vocab_size=128, hidden_size=48, intermediate_size=96, moe_intermediate_size=24,
    num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3,
    max_position_embeddings=8192, attention_bias=False, q_lora_rank=24, kv_lora_rank=32,
    qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, n_routed_experts=8,
    n_shared_experts=1, num_experts_per_tok=3, first_k_dense_replace=1, moe_layer_freq=1,
    n_group=4, topk_group=2, topk_method="group_limited_greedy", scoring_func="softmax",
    norm_topk_prob=False, routed_scaling_factor=16.0, aux_loss_alpha=0.001, seq_aux=True,
    ep_size=1, pretraining_tp=1, rms_norm_eps=1e-6, tie_word_embeddings=False,
), rope=rope(10000.0, rope_type="yarn", factor=16.0, original_max_position_embeddings=512,
             beta_fast=8, beta_slow=1, mscale=1.0, mscale_all_dim=0.707),
    dtype="bfloat16", spelling="old-type", gains=dict(expert=0.45))

# ---------------------------------------------------------------- DeepSeek-V3
V3 = dict(moe_layer_freq=1, topk_method="noaux_tc", scoring_func="sigmoid", ep_size=1,
          aux_loss_alpha=0.001, seq_aux=True, pretraining_tp=1, rms_norm_eps=1e-6,
          attention_bias=False, tie_word_embeddings=False, num_nextn_predict_layers=1)

variant("deepseek_v3_a", "deepseek_v3", dict(
    **{**V3, "rms_norm_eps": 0.01},
    vocab_size=96, hidden_size=32, intermediate_size=64, moe_intermediate_size=16,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=512, q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=12,
    qk_rope_head_dim=8, v_head_dim=10, n_routed_experts=12, n_shared_experts=1,
    num_experts_per_tok=4, first_k_dense_replace=1, n_group=4, topk_group=2,
    norm_topk_prob=True, routed_scaling_factor=2.5,
), rope=rope(10000.0), spelling="new", long=True)

variant("deepseek_v3_b", "deepseek_v3", dict(
    **V3, vocab_size=128, hidden_size=48, intermediate_size=80, moe_intermediate_size=28,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=256, q_lora_rank=None, kv_lora_rank=24, qk_nope_head_dim=16,
    qk_rope_head_dim=16, v_head_dim=12, n_routed_experts=8, n_shared_experts=2,
    num_experts_per_tok=2, first_k_dense_replace=2, n_group=1, topk_group=1,
    norm_topk_prob=False, routed_scaling_factor=1.7, rope_interleave=False,
), rope=rope(10000.0, rope_type="yarn", factor=8.0, original_max_position_embeddings=32,
             beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
    dtype="bfloat16", spelling="old-type", shards=2)

variant("deepseek_v3_c", "deepseek_v3", dict(
    **V3, vocab_size=96, hidden_size=160, intermediate_size=144, moe_intermediate_size=160,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=256, q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=24,
    qk_rope_head_dim=16, v_head_dim=24, n_routed_experts=6, n_shared_experts=1,
    num_experts_per_tok=3, first_k_dense_replace=1, n_group=2, topk_group=1,
    norm_topk_prob=True, routed_scaling_factor=2.5,
), rope=rope(10000.0, rope_type="yarn", factor=40, original_max_position_embeddings=64,
             beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
    dtype="bfloat16", spelling="old-type", quant="fp8")

# ---------------------------------------------------------------- Llama-4
variant("llama4_a", "llama4_text", dict(
    vocab_size=96, hidden_size=32, intermediate_size=160, intermediate_size_mlp=56,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=512, num_local_experts=4, num_experts_per_tok=1,
    interleave_moe_layer_step=2, no_rope_layers=[1, 1, 0, 1], attention_chunk_size=16,
    attn_temperature_tuning=True, floor_scale=8, attn_scale=0.5, use_qk_norm=True,
    attention_bias=False, rms_norm_eps=0.01, tie_word_embeddings=False,
    output_router_logits=False, router_aux_loss_coef=0.001, router_jitter_noise=0.0,
    rope_scaling=None,
), rope=rope(500000.0), spelling="old", long=True)

variant("llama4_b", "llama4", dict(
    vocab_size=128, hidden_size=48, intermediate_size=24, intermediate_size_mlp=64,
    num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=512, num_local_experts=4, num_experts_per_tok=2,
    interleave_moe_layer_step=1, no_rope_layers=[], attention_chunk_size=16,
    attn_temperature_tuning=False, use_qk_norm=False, attention_bias=False,
    rms_norm_eps=1e-5, tie_word_embeddings=False, output_router_logits=False,
    router_aux_loss_coef=0.001, router_jitter_noise=0.0,
), rope=rope(10000.0, **LLAMA3), dtype="bfloat16", spelling="old", shards=2)

# ---------------------------------------------------------------- gpt-oss
variant("gpt_oss_a", "gpt_oss", dict(
    vocab_size=128, hidden_size=64, intermediate_size=160, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
    initial_context_length=32, attention_bias=True, num_local_experts=6, num_experts_per_tok=3,
    experts_per_token=3, sliding_window=8, swiglu_limit=7.0, rms_norm_eps=1e-5,
    layer_types=["sliding_attention", "full_attention"] * 2, tie_word_embeddings=False,
    output_router_logits=False, router_aux_loss_coef=0.9, pad_token_id=0,
), rope=rope(150000.0, rope_type="yarn", factor=32.0, original_max_position_embeddings=32,
             beta_fast=32.0, beta_slow=1.0, truncate=False),
    dtype="bfloat16", quant="mxfp4", gains=dict(gate_up_bias=4.0, expert=0.5, down_bias=1.0), long=True)

variant("gpt_oss_b", "gpt_oss", dict(
    vocab_size=104, hidden_size=40, intermediate_size=160, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=3, head_dim=16, max_position_embeddings=256,
    attention_bias=True, num_local_experts=5, num_experts_per_tok=2, sliding_window=5,
    swiglu_limit=5.0, rms_norm_eps=0.01,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    tie_word_embeddings=False, output_router_logits=False, router_aux_loss_coef=0.9,
    pad_token_id=0,
), rope=rope(10000.0, rope_type="default"), dtype="bfloat16", spelling="new",
    gains=dict(gate_up_bias=3.0, expert=0.6, down_bias=1.0))

# ---------------------------------------------------------------- Llama
variant("llama_a", "llama", dict(
    vocab_size=96, hidden_size=32, intermediate_size=88, num_hidden_layers=3,
    num_attention_heads=4, max_position_embeddings=256, rms_norm_eps=1e-5,
    pretraining_tp=1, tie_word_embeddings=False, rope_scaling=None,
), rope=None)

LLAMA_B = dict(
    vocab_size=128, hidden_size=48, intermediate_size=104, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True, pretraining_tp=1,
    tie_word_embeddings=True,
)
variant("llama_b", "llama", LLAMA_B, rope=rope(500000.0, **LLAMA3), dtype="bfloat16")
variant("llama_b_newer", "llama", LLAMA_B, rope=rope(500000.0, **LLAMA3), dtype="bfloat16",
        spelling="new", same_weights_as="llama_b")

variant("llama_c", "llama", dict(
    vocab_size=120, hidden_size=40, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=512,
    rms_norm_eps=0.01, attention_bias=False, mlp_bias=False, pretraining_tp=1,
    tie_word_embeddings=False,
), rope=rope(10000.0, rope_type="linear", factor=4.0), dtype="float16", spelling="old-type")

# ---------------------------------------------------------------- Qwen3
variant("qwen3_a", "qwen3", dict(
    vocab_size=160, hidden_size=48, head_dim=16, intermediate_size=112, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    attention_bias=False, max_window_layers=3, use_sliding_window=False, sliding_window=None,
    rms_norm_eps=1e-6, tie_word_embeddings=True,
), rope=rope(1000000.0), dtype="bfloat16")

variant("qwen3_b", "qwen3", dict(
    vocab_size=96, hidden_size=32, head_dim=16, intermediate_size=72, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=256,
    attention_bias=True, max_window_layers=1, use_sliding_window=True, sliding_window=6,
    rms_norm_eps=0.01, tie_word_embeddings=False,
), rope=rope(10000.0), spelling="new")

variant("qwen3_gptq", "qwen3", dict(
    vocab_size=96, hidden_size=128, head_dim=16, intermediate_size=200, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    attention_bias=False, max_window_layers=2, use_sliding_window=False, sliding_window=None,
    rms_norm_eps=1e-6, tie_word_embeddings=True,
), rope=rope(1000000.0), dtype="float16", quant="gptq_v2_g128")
