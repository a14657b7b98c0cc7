//! What the tensors of an architecture are called.

/// Names as templates: `model` stands before `layers.N`, the others are parts of the path behind it.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Before `embed_tokens`, `layers` and `norm`.
    pub model: &'static str,
    pub head: &'static str,
    /// The MLP or MoE block of a layer.
    pub mlp: &'static str,
    /// The gate, inside `mlp`.
    pub router: &'static str,
    /// The shared expert, inside `mlp`.
    pub shared: &'static str,
    pub experts: ExpertNames,
    /// Which format's names these are.
    pub tensors: TensorNames,
    /// Tensors that begin so belong to parts that are not run (a vision tower).
    pub ignored: &'static [&'static str],
}

/// How a checkpoint lays out its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertNames {
    /// `experts.E.{gate,up,down}.weight`, one matrix each.
    Each { gate: &'static str, up: &'static str, down: &'static str },
    /// `experts.gate_up_proj` `[E, H, 2F]` and `experts.down_proj` `[E, F, H]`, inputs first. Gate and up are halves of
    /// the last axis, or take turns.
    Fused { take_turns: bool },
    /// A stack of all experts' matrices for each of gate, up and down, outputs first: `[E, out, in]` (GGUF).
    Stacked,
}

/// Whose names a checkpoint's tensors bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorNames {
    /// As the templates in `Names` say.
    HuggingFace,
    /// As llama.cpp's converter calls them, whatever the architecture.
    Gguf,
}

impl Names {
    /// What most architectures have in common.
    pub const COMMON: Names = Names {
        model: "model.",
        head: "lm_head.weight",
        mlp: "mlp",
        router: "gate",
        shared: "shared_expert",
        experts: ExpertNames::Each { gate: "gate_proj", up: "up_proj", down: "down_proj" },
        tensors: TensorNames::HuggingFace,
        ignored: &[],
    };
}
