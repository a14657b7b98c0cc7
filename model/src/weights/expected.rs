//! The table of all tensors that a specification asks for: names, shapes, and what each is for.
//!
//! Readers look tensors up by slot; the check, `inspect` and `synth` go through the whole table. A bias or norm is used
//! exactly if it stands in the table.

use crate::arch::{ExpertNames, TensorNames};
use crate::config::Quantization;
use crate::spec::{AttentionSpec, GroupedSpec, LatentSpec, MlpSpec, ModelSpec, QkNorm, SparseSpec};

/// A tensor's place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    Embedding,
    FinalNorm,
    Head,
    Layer(usize, Part),
    /// Per-expert layouts.
    Expert(usize, usize, Part),
}

/// A tensor's place in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    InputNorm,
    PostNorm,
    Query,
    QueryBias,
    Key,
    KeyBias,
    Value,
    ValueBias,
    Output,
    OutputBias,
    QueryNorm,
    KeyNorm,
    Sinks,
    QueryA,
    QueryABias,
    QueryANorm,
    QueryB,
    KvA,
    KvABias,
    KvANorm,
    KvB,
    Router,
    RouterBias,
    CorrectionBias,
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
    SharedGate,
    SharedUp,
    SharedDown,
    SharedLogit,
    FusedGateUp,
    FusedGateUpBias,
    FusedDown,
    FusedDownBias,
    StackedGate,
    StackedUp,
    StackedDown,
}

/// What a tensor is for, for sums by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Embedding,
    Attention,
    Gate,
    Experts,
    SharedExperts,
    DenseLayers,
    Norms,
    Head,
}

/// What is done with a tensor, which decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A vector that becomes f32.
    Vector,
    /// A matrix `[rows, cols]` that is never quantised (embedding, head, gate).
    PlainMatrix,
    /// A matrix `[rows, cols]` of a linear layer.
    Matrix,
    /// All experts' matrices in one tensor, inputs first: `[E, in, out]`; as MXFP4 outputs first, blocks and scales.
    Stack,
    /// All experts' matrices in one tensor, outputs first: `[E, out, in]`.
    OutputStack,
}

/// One row of the table. The shape is that of the unquantised tensor.
#[derive(Clone, Debug)]
pub struct Expected {
    pub slot: Slot,
    pub name: String,
    pub shape: Vec<usize>,
    pub form: Form,
    pub role: Role,
}

/// How the configuration says that a tensor of this form is stored.
pub fn stored_form(quantization: Quantization, form: Form) -> Quantization {
    match (quantization, form) {
        (Quantization::Fp8Blocks, Form::Matrix) => Quantization::Fp8Blocks,
        (Quantization::Mxfp4Experts, Form::Stack) => Quantization::Mxfp4Experts,
        (Quantization::Int4(int4), Form::Matrix) => Quantization::Int4(int4),
        _ => Quantization::None,
    }
}

/// The whole table, in the order of the forward pass.
pub fn expected_tensors(spec: &ModelSpec) -> Vec<Expected> {
    let mut table = Table { rows: Vec::new(), names: spec.names.tensors };
    let model = spec.names.model;
    let width = [spec.vocab, spec.hidden];
    table.put(
        Slot::Embedding,
        format!("{model}embed_tokens.weight"),
        &width,
        Form::PlainMatrix,
        Role::Embedding,
    );
    for (layer, at) in spec.layers.iter().enumerate() {
        let path = format!("{model}layers.{layer}");
        let mut rows = LayerTable { table: &mut table, layer, path: &path, hidden: spec.hidden };
        rows.norm(Part::InputNorm, "input_layernorm.weight", spec.hidden);
        match &at.attention {
            AttentionSpec::Grouped(attention) => rows.grouped(attention),
            AttentionSpec::Latent(attention) => rows.latent(attention),
        }
        rows.norm(Part::PostNorm, "post_attention_layernorm.weight", spec.hidden);
        match &at.mlp {
            MlpSpec::Dense { width, bias } => rows.dense(spec.names.mlp, *width, *bias),
            MlpSpec::Sparse(sparse) => rows.sparse(&spec.names, sparse),
        }
    }
    table.put(Slot::FinalNorm, format!("{model}norm.weight"), &[spec.hidden], Form::Vector, Role::Norms);
    if !spec.tied_embeddings {
        table.put(Slot::Head, spec.names.head.to_string(), &width, Form::PlainMatrix, Role::Head);
    }
    table.rows
}

struct Table {
    rows: Vec<Expected>,
    names: TensorNames,
}

impl Table {
    /// `name` is Hugging Face's.
    fn put(&mut self, slot: Slot, name: String, shape: &[usize], form: Form, role: Role) {
        let name = match self.names {
            TensorNames::HuggingFace => name,
            TensorNames::Gguf => crate::gguf::tensor_name(slot),
        };
        self.rows.push(Expected { slot, name, shape: shape.to_vec(), form, role });
    }
}

struct LayerTable<'a> {
    table: &'a mut Table,
    layer: usize,
    path: &'a str,
    hidden: usize,
}

impl LayerTable<'_> {
    fn put(&mut self, part: Part, name: &str, shape: &[usize], form: Form, role: Role) {
        let name = format!("{}.{name}", self.path);
        self.table.put(Slot::Layer(self.layer, part), name, shape, form, role);
    }

    fn norm(&mut self, part: Part, name: &str, width: usize) {
        self.put(part, name, &[width], Form::Vector, Role::Norms);
    }

    /// A projection and, if asked, its bias: `name.weight` `[out, in]`, `name.bias` `[out]`.
    fn linear(&mut self, parts: (Part, Option<Part>), name: &str, shape: [usize; 2], role: Role) {
        self.put(parts.0, &format!("{name}.weight"), &shape, Form::Matrix, role);
        if let Some(bias) = parts.1 {
            self.put(bias, &format!("{name}.bias"), &shape[..1], Form::Vector, role);
        }
    }

    fn grouped(&mut self, a: &GroupedSpec) {
        let (q, kv, h) = (a.heads * a.head_dim, a.kv_heads * a.head_dim, self.hidden);
        let bias = |part| a.qkv_bias.then_some(part);
        let role = Role::Attention;
        self.linear((Part::Query, bias(Part::QueryBias)), "self_attn.q_proj", [q, h], role);
        self.linear((Part::Key, bias(Part::KeyBias)), "self_attn.k_proj", [kv, h], role);
        self.linear((Part::Value, bias(Part::ValueBias)), "self_attn.v_proj", [kv, h], role);
        self.linear((Part::Output, a.out_bias.then_some(Part::OutputBias)), "self_attn.o_proj", [h, q], role);
        let norms = match a.qk_norm {
            QkNorm::PerHead => Some((a.head_dim, a.head_dim)),
            QkNorm::AllHeads => Some((q, kv)),
            QkNorm::None | QkNorm::AfterRope => None,
        };
        if let Some((q, k)) = norms {
            self.norm(Part::QueryNorm, "self_attn.q_norm.weight", q);
            self.norm(Part::KeyNorm, "self_attn.k_norm.weight", k);
        }
        if a.sinks {
            self.put(Part::Sinks, "self_attn.sinks", &[a.heads], Form::Vector, role);
        }
    }

    fn latent(&mut self, a: &LatentSpec) {
        let h = self.hidden;
        let role = Role::Attention;
        let bias = |part| a.bias.then_some(part);
        let q = a.heads * a.query_dim();
        match a.q_rank {
            Some(rank) => {
                self.linear((Part::QueryA, bias(Part::QueryABias)), "self_attn.q_a_proj", [rank, h], role);
                self.norm(Part::QueryANorm, "self_attn.q_a_layernorm.weight", rank);
                self.linear((Part::QueryB, None), "self_attn.q_b_proj", [q, rank], role);
            }
            None => self.linear((Part::Query, None), "self_attn.q_proj", [q, h], role),
        }
        let kv_a = (Part::KvA, bias(Part::KvABias));
        self.linear(kv_a, "self_attn.kv_a_proj_with_mqa", [a.stored_dim(), h], role);
        self.norm(Part::KvANorm, "self_attn.kv_a_layernorm.weight", a.kv_rank);
        let kv_b = [a.heads * (a.nope_dim + a.value_dim), a.kv_rank];
        self.linear((Part::KvB, None), "self_attn.kv_b_proj", kv_b, role);
        let out = (Part::Output, bias(Part::OutputBias));
        self.linear(out, "self_attn.o_proj", [h, a.heads * a.value_dim], role);
    }

    fn dense(&mut self, mlp: &str, width: usize, bias: bool) {
        let (h, role) = (self.hidden, Role::DenseLayers);
        let bias = |part| bias.then_some(part);
        self.linear((Part::Gate, bias(Part::GateBias)), &format!("{mlp}.gate_proj"), [width, h], role);
        self.linear((Part::Up, bias(Part::UpBias)), &format!("{mlp}.up_proj"), [width, h], role);
        self.linear((Part::Down, bias(Part::DownBias)), &format!("{mlp}.down_proj"), [h, width], role);
    }

    fn sparse(&mut self, names: &crate::arch::Names, s: &SparseSpec) {
        let (h, mlp) = (self.hidden, names.mlp);
        let router = format!("{mlp}.{}", names.router);
        self.put(Part::Router, &format!("{router}.weight"), &[s.experts, h], Form::PlainMatrix, Role::Gate);
        if s.router_bias {
            self.put(Part::RouterBias, &format!("{router}.bias"), &[s.experts], Form::Vector, Role::Gate);
        }
        if s.correction_bias {
            let name = format!("{router}.e_score_correction_bias");
            self.put(Part::CorrectionBias, &name, &[s.experts], Form::Vector, Role::Gate);
        }
        match names.experts {
            ExpertNames::Each { gate, up, down } => self.each_expert(mlp, s, [gate, up, down]),
            ExpertNames::Fused { .. } => self.fused_experts(mlp, s),
            ExpertNames::Stacked => self.stacked_experts(mlp, s),
        }
        if let Some(shared) = s.shared {
            let (path, role) = (format!("{mlp}.{}", names.shared), Role::SharedExperts);
            self.linear((Part::SharedGate, None), &format!("{path}.gate_proj"), [shared.width, h], role);
            self.linear((Part::SharedUp, None), &format!("{path}.up_proj"), [shared.width, h], role);
            self.linear((Part::SharedDown, None), &format!("{path}.down_proj"), [h, shared.width], role);
            if shared.gated {
                let name = format!("{path}_gate.weight");
                self.put(Part::SharedLogit, &name, &[1, h], Form::PlainMatrix, role);
            }
        }
    }

    fn each_expert(&mut self, mlp: &str, s: &SparseSpec, names: [&str; 3]) {
        let parts = [Part::Gate, Part::Up, Part::Down];
        for expert in 0..s.experts {
            for (part, name) in parts.into_iter().zip(names) {
                let shape = if part == Part::Down { [self.hidden, s.width] } else { [s.width, self.hidden] };
                let name = format!("{}.{mlp}.experts.{expert}.{name}.weight", self.path);
                self.table.put(
                    Slot::Expert(self.layer, expert, part),
                    name,
                    &shape,
                    Form::Matrix,
                    Role::Experts,
                );
            }
        }
    }

    fn stacked_experts(&mut self, mlp: &str, s: &SparseSpec) {
        let (e, h, f) = (s.experts, self.hidden, s.width);
        for (part, name, shape) in [
            (Part::StackedGate, "gate_proj", [e, f, h]),
            (Part::StackedUp, "up_proj", [e, f, h]),
            (Part::StackedDown, "down_proj", [e, h, f]),
        ] {
            self.put(part, &format!("{mlp}.experts.{name}"), &shape, Form::OutputStack, Role::Experts);
        }
    }

    fn fused_experts(&mut self, mlp: &str, s: &SparseSpec) {
        let (e, h, f, role) = (s.experts, self.hidden, s.width, Role::Experts);
        let path = format!("{mlp}.experts");
        self.put(Part::FusedGateUp, &format!("{path}.gate_up_proj"), &[e, h, 2 * f], Form::Stack, role);
        self.put(Part::FusedDown, &format!("{path}.down_proj"), &[e, f, h], Form::Stack, role);
        if s.expert_bias {
            let (gate_up, down) = (format!("{path}.gate_up_proj_bias"), format!("{path}.down_proj_bias"));
            self.put(Part::FusedGateUpBias, &gate_up, &[e, 2 * f], Form::Vector, role);
            self.put(Part::FusedDownBias, &down, &[e, h], Form::Vector, role);
        }
    }
}
