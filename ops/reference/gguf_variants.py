"""The table of GGUF fixtures: name -> a variant as in variants.py, and what the file says about it.

`types` maps ends of GGUF tensor names to stored types, the first that fits; `keys` are metadata keys
beside the usual ones; `transforms` are the ways in which a file says the same thing otherwise.
"""

from variants import COMMON, LLAMA3, YARN, rope

GGUF = {}


def variant(name, arch, gguf_arch, config, *, rope, types, keys=(), tokenizer=False, gains=None,
            version=3, each_expert=False, scale=None, rope_factors=False, long=False):
    GGUF[name] = dict(
        arch=arch, gguf_arch=gguf_arch, config={**COMMON, **config}, rope=rope, types=types,
        keys=dict(keys), tokenizer=tokenizer, gains=gains or {}, version=version,
        each_expert=each_expert, scale=scale, rope_factors=rope_factors, long=long,
        dtype="float32", spelling="old", shards=1, quant=None, same_weights_as=None)


variant("gguf_olmoe", "olmoe", "olmoe", dict(
    vocab_size=320, hidden_size=64, intermediate_size=160, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
    attention_bias=False, clip_qkv=None, num_experts=6, num_experts_per_tok=3,
    norm_topk_prob=False, pad_token_id=1, rms_norm_eps=0.01, tie_word_embeddings=False,
    router_aux_loss_coef=0.01, output_router_logits=False,
), rope=rope(3000.0), tokenizer=True, long=True, types=[
    ("ffn_gate_inp.weight", "F32"), ("norm.weight", "F32"), ("ffn_down_exps.weight", "Q8_0"),
    ("token_embd.weight", "Q8_0"), ("", "Q4_0")])

# No expert_weights_norm: this architecture's own meaning is that the weights add up to 1.
variant("gguf_qwen3moe", "qwen3_moe", "qwen3moe", dict(
    vocab_size=112, hidden_size=64, head_dim=32, intermediate_size=80, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    attention_bias=False, max_window_layers=2, moe_intermediate_size=40, num_experts=8,
    num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
    use_sliding_window=False, sliding_window=None, rms_norm_eps=1e-6,
    tie_word_embeddings=True, router_aux_loss_coef=0.001, output_router_logits=False,
), rope=rope(10000.0, **YARN), gains=dict(expert=3.0), types=[
    ("ffn_gate_inp.weight", "F32"), ("norm.weight", "F32"), ("ffn_down_exps.weight", "F16"),
    ("attn_v.weight", "BF16"), ("attn_q.weight", "Q8_0"), ("", "Q4_0")])

variant("gguf_mixtral", "mixtral", "llama", dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    num_local_experts=5, num_experts_per_tok=2, sliding_window=None, rms_norm_eps=1e-5,
    tie_word_embeddings=False, router_aux_loss_coef=0.02, output_router_logits=False,
), rope=rope(500.0), types=[
    ("ffn_gate_inp.weight", "F32"), ("norm.weight", "F32"), ("attn_k.weight", "F16"),
    ("output.weight", "Q8_0"), ("", "Q4_0")])

# As the oldest files: version 2, a tensor for every expert's matrix.
variant("gguf_mixtral_each", "mixtral", "llama", dict(
    vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=256,
    num_local_experts=3, num_experts_per_tok=2, sliding_window=7, rms_norm_eps=0.01,
    tie_word_embeddings=False, router_aux_loss_coef=0.02, output_router_logits=False,
), rope=rope(10000.0), version=2, each_expert=True, scale=1.5,
    keys={"attention.sliding_window": 7, "expert_weights_scale": 1.5, "expert_weights_norm": True},
    types=[("ffn_gate_inp.weight", "F16"), ("norm.weight", "F32"), ("attn_output.weight", "F16"),
           ("", "Q8_0")])

variant("gguf_llama", "llama", "llama", dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    rms_norm_eps=1e-5, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
), rope=rope(20000.0, **LLAMA3), rope_factors=True, types=[
    ("norm.weight", "F32"), ("bias", "F32"), ("rope_freqs.weight", "F32"), ("attn_q.weight", "Q8_0"),
    ("", "Q4_0")])

variant("gguf_llama_linear", "llama", "llama", dict(
    vocab_size=104, hidden_size=40, intermediate_size=72, num_hidden_layers=2,
    num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=256,
    rms_norm_eps=0.01, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
), rope=rope(10000.0, rope_type="linear", factor=2.5), types=[
    ("norm.weight", "F32"), ("attn_q.weight", "BF16"), ("ffn_down.weight", "F16"), ("", "F32")])
