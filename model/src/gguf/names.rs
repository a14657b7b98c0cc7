//! What llama.cpp's converter calls the tensors, by their place in the model.

use crate::weights::{Part, Slot};

/// The name of a tensor in a GGUF file.
pub(crate) fn tensor_name(slot: Slot) -> String {
    match slot {
        Slot::Embedding => EMBEDDING.to_string(),
        Slot::FinalNorm => "output_norm.weight".to_string(),
        Slot::Head => HEAD.to_string(),
        Slot::Layer(layer, part) => format!("blk.{layer}.{}", in_layer(part)),
        Slot::Expert(layer, expert, part) => {
            format!("blk.{layer}.{}.{expert}.weight", in_layer(part).trim_end_matches(".weight"))
        }
    }
}

/// `[V, H]`
pub const EMBEDDING: &str = "token_embd.weight";
/// Absent where the head is the embedding.
pub const HEAD: &str = "output.weight";
/// What RoPE's frequencies are divided by, `[rotated / 2]`, where the file scales them one by one (Llama 3.1).
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

fn in_layer(part: Part) -> &'static str {
    match part {
        Part::InputNorm => "attn_norm.weight",
        Part::PostNorm => "ffn_norm.weight",
        Part::Query => "attn_q.weight",
        Part::QueryBias => "attn_q.bias",
        Part::Key => "attn_k.weight",
        Part::KeyBias => "attn_k.bias",
        Part::Value => "attn_v.weight",
        Part::ValueBias => "attn_v.bias",
        Part::Output => "attn_output.weight",
        Part::OutputBias => "attn_output.bias",
        Part::QueryNorm => "attn_q_norm.weight",
        Part::KeyNorm => "attn_k_norm.weight",
        Part::Router => "ffn_gate_inp.weight",
        Part::Gate => "ffn_gate.weight",
        Part::GateBias => "ffn_gate.bias",
        Part::Up => "ffn_up.weight",
        Part::UpBias => "ffn_up.bias",
        Part::Down => "ffn_down.weight",
        Part::DownBias => "ffn_down.bias",
        Part::StackedGate => "ffn_gate_exps.weight",
        Part::StackedUp => "ffn_up_exps.weight",
        Part::StackedDown => "ffn_down_exps.weight",
        other => panic!("{other:?} belongs to no architecture that is read from GGUF files"),
    }
}
