//! A specification in words.

use gaterail_kernels::ops::{GroupScore, Mask, Score, WeightOn};
use gaterail_model::config::{Rope, RopeScaling};
use gaterail_model::spec::{AttentionSpec, GroupedSpec, MlpSpec, ModelSpec, QkNorm, SparseSpec};

/// Lines of (what, how).
pub fn architecture(spec: &ModelSpec) -> Vec<(&'static str, String)> {
    let sparse = spec.layers.iter().filter(|layer| layer.mlp.sparse().is_some()).count();
    let layers = match (sparse, spec.layers.len() - sparse) {
        (0, dense) => format!("{dense} dense"),
        (sparse, 0) => format!("{sparse} sparse"),
        (sparse, dense) => format!("{} ({sparse} sparse, {dense} dense)", sparse + dense),
    };
    let mut lines = vec![
        ("layers", format!("{layers}, hidden {}", spec.hidden)),
        (
            "vocabulary",
            format!("{}{}", spec.vocab, if spec.tied_embeddings { ", tied embeddings" } else { "" }),
        ),
        ("context", format!("{} tokens", spec.context)),
    ];
    if let Some(layer) = spec.layers.first() {
        lines.push(("attention", attention(&layer.attention)));
    }
    lines.push(("masks", masks(spec)));
    lines.extend(spec.ropes.first().map(|rope| ("RoPE", rope_text(rope))));
    if let Some(sparse) = spec.sparse() {
        lines.push(("experts", experts(spec, sparse)));
        lines.push(("gate", gate(sparse)));
    }
    if let Some(width) = spec.layers.iter().find_map(|layer| match layer.mlp {
        MlpSpec::Dense { width, .. } => Some(width),
        MlpSpec::Sparse(_) => None,
    }) {
        lines.push(("dense layers", format!("width {width}")));
    }
    lines
}

fn attention(attention: &AttentionSpec) -> String {
    match attention {
        AttentionSpec::Grouped(a) => grouped(a),
        AttentionSpec::Latent(a) => {
            let query = a.q_rank.map_or("full-rank query".to_string(), |rank| format!("query rank {rank}"));
            let widths = format!("{} + {} (RoPE), values {}", a.nope_dim, a.rope_dim, a.value_dim);
            format!("latent, {} heads of {widths}; KV rank {}, {query}", a.heads, a.kv_rank)
        }
    }
}

fn grouped(a: &GroupedSpec) -> String {
    let mut text = match a.heads == a.kv_heads {
        true => format!("{} heads of {}", a.heads, a.head_dim),
        false => format!("{} heads of {} on {} KV heads", a.heads, a.head_dim, a.kv_heads),
    };
    let extras = [
        (a.qkv_bias, "biases"),
        (a.qk_norm != QkNorm::None, "q/k norms"),
        (a.sinks, "sinks"),
        (a.clip.is_some(), "clamped q, k, v"),
    ];
    extras.iter().filter(|(there, _)| *there).for_each(|(_, name)| text += &format!(", {name}"));
    text
}

/// Such as `12 layers full, 12 layers window 128`.
fn masks(spec: &ModelSpec) -> String {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for layer in &spec.layers {
        let name = match &layer.attention {
            AttentionSpec::Latent(_) => "full".to_string(),
            AttentionSpec::Grouped(a) => {
                let mask = match a.mask {
                    Mask::Full => "full".to_string(),
                    Mask::Sliding { window } => format!("window {window}"),
                    Mask::Chunked { size } => format!("chunks of {size}"),
                };
                if a.rope.is_none() { format!("{mask} without RoPE") } else { mask }
            }
        };
        match kinds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => kinds.push((name, 1)),
        }
    }
    match kinds.as_slice() {
        [(only, _)] => only.clone(),
        _ => {
            kinds.iter().map(|(name, count)| format!("{count} layers {name}")).collect::<Vec<_>>().join(", ")
        }
    }
}

fn rope_text(rope: &Rope) -> String {
    let scaling = match rope.scaling {
        RopeScaling::Default => "default".to_string(),
        RopeScaling::Linear { factor } => format!("linear, factor {factor}"),
        RopeScaling::Llama3 { factor, original, .. } => format!("llama3, factor {factor} on {original}"),
        RopeScaling::Yarn(yarn) => yarn.to_string(),
        RopeScaling::Divided => "scaled by factors in the file".to_string(),
    };
    format!("{scaling}, theta {}", rope.theta)
}

fn experts(spec: &ModelSpec, sparse: &SparseSpec) -> String {
    let unit = gaterail_model::weights::unit_length(spec);
    let shared = match sparse.shared {
        None => String::new(),
        Some(shared) => {
            format!(
                ", shared expert of width {}{}",
                shared.width,
                if shared.gated { " with its gate" } else { "" }
            )
        }
    };
    let units = sparse.width.div_ceil(unit);
    format!(
        "{}, {} per token, width {} ({units} unit{} of {unit}){shared}",
        sparse.experts,
        sparse.top_k,
        sparse.width,
        if units == 1 { "" } else { "s" }
    )
}

fn gate(sparse: &SparseSpec) -> String {
    let gate = &sparse.gate;
    let mut text = match gate.score {
        Score::Softmax => "softmax",
        Score::Sigmoid => "sigmoid",
        Score::SoftmaxOfSelected => "softmax over the selected",
        Score::SigmoidOfSelected => "sigmoid of the selected",
    }
    .to_string();
    if let Some(groups) = gate.groups.filter(|groups| groups.count > 1) {
        let by = if groups.score == GroupScore::Largest { "best" } else { "two best" };
        text += &format!(", {} of {} groups by their {by}", groups.taken, groups.count);
    }
    let extras = [
        (sparse.correction_bias, "correction bias".to_string()),
        (gate.normalise.is_some(), "normalised".to_string()),
        (gate.scale != 1.0, format!("times {}", gate.scale)),
        (sparse.weight_on == WeightOn::Input, "scales the input".to_string()),
    ];
    extras.iter().filter(|(there, _)| *there).for_each(|(_, name)| text += &format!(", {name}"));
    text
}
