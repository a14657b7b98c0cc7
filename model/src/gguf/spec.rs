//! Metadata to a `ModelSpec`: what each architecture's llama.cpp graph computes, said with our words.

use gaterail_kernels::ops::{Mask, RopeStyle};

use super::fields::fields;
use super::file::GgufFile;
use super::names::{HEAD, ROPE_FACTORS, tensor_name};
use crate::arch::{ExpertNames, Names, TensorNames, parse_spec};
use crate::config::{ConfigError, Fields};
use crate::spec::{AttentionSpec, GroupedSpec, MlpSpec, ModelSpec, SparseSpec};
use crate::weights::{Part, Slot};

/// An architecture as llama.cpp has it.
struct Architecture {
    name: &'static str,
    /// What `config.json` calls it: without experts, and with.
    classes: (Option<&'static str>, Option<&'static str>),
    /// Which columns of q and k turn together. The converter reorders the rows of arch `llama` so that neighbours do.
    rope: RopeStyle,
    /// Whether the weights of the chosen experts add up to 1 where the file does not say.
    normalise: bool,
}

const ARCHITECTURES: [Architecture; 3] = [
    Architecture {
        name: "olmoe",
        classes: (None, Some("OlmoeForCausalLM")),
        rope: RopeStyle::Halves,
        normalise: false,
    },
    Architecture {
        name: "qwen3moe",
        classes: (None, Some("Qwen3MoeForCausalLM")),
        rope: RopeStyle::Halves,
        normalise: true,
    },
    Architecture {
        name: "llama",
        classes: (Some("LlamaForCausalLM"), Some("MixtralForCausalLM")),
        rope: RopeStyle::Pairs,
        normalise: true,
    },
];

/// Keys that change what is computed, in ways that these architectures do not have here. 0 means no change.
const NOT_RUN: [&str; 12] = [
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_shared_count",
    "final_logit_softcapping",
    "leading_dense_block_count",
    "logit_scale",
    "residual_scale",
    "rope.scaling.yarn_log_multiplier",
    "router_logit_softcapping",
];

impl GgufFile {
    /// The specification that the metadata describes.
    pub fn spec(&self) -> Result<ModelSpec, ConfigError> {
        let architecture = self.architecture()?;
        let name = architecture.name;
        self.refuse_what_is_not_run(name)?;
        let experts = self.number(&format!("{name}.expert_count"))?.unwrap_or(0.0) > 0.0;
        let class = if experts { architecture.classes.1 } else { architecture.classes.0 };
        let Some(class) = class else {
            return Err(self.invalid(&format!("{name}.expert_count: missing, or 0")));
        };
        let fields = fields(self, name, class)?;
        let mut spec = parse_spec(&fields)?;
        spec.names = self.names();
        spec.tied_embeddings = self.tensor(HEAD).is_none();
        let window = window(self, name)?;
        let normalise = self.metadata().flag(&format!("{name}.expert_weights_norm"));
        let normalise = normalise.map_err(|detail| self.invalid(&detail))?.unwrap_or(architecture.normalise);
        let scale = self.number(&format!("{name}.expert_weights_scale"))?.filter(|&scale| scale != 0.0);
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            if let AttentionSpec::Grouped(attention) = &mut layer.attention {
                self.adjust_attention(attention, index, architecture, window);
                self.check_heads(attention, name)?;
            }
            match &mut layer.mlp {
                MlpSpec::Sparse(sparse) => adjust_gate(sparse, normalise, scale),
                MlpSpec::Dense { bias, .. } => *bias = self.has(index, Part::GateBias),
            }
        }
        self.divide_frequencies(&mut spec, &fields)?;
        Ok(spec)
    }

    fn architecture(&self) -> Result<&'static Architecture, ConfigError> {
        const KEY: &str = "general.architecture";
        let name = self.metadata().text(KEY).map_err(|detail| self.invalid(&detail))?;
        let known = ARCHITECTURES.map(|architecture| architecture.name).join(", ");
        let Some(name) = name else {
            return Err(self.invalid(&format!("{KEY}: missing; this version reads GGUF files of {known}")));
        };
        ARCHITECTURES.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
            self.invalid(&format!(
                "{KEY}: {name:?} is not supported; this version reads GGUF files of {known}"
            ))
        })
    }

    fn refuse_what_is_not_run(&self, name: &str) -> Result<(), ConfigError> {
        for key in NOT_RUN.map(|key| format!("{name}.{key}")) {
            if self.metadata().value(&key).is_some_and(|value| value.number() != Some(0.0)) {
                return Err(self.invalid(&format!("{key}: this version does not compute what it asks for")));
            }
        }
        // 1 is softmax; 0 is written by converters that mean the architecture's own, which is the same.
        let key = format!("{name}.expert_gating_func");
        match self.number(&key)? {
            None | Some(0.0 | 1.0) => {}
            Some(other) => {
                return Err(self.invalid(&format!("{key}: {other} is not supported; 1 (softmax) is")));
            }
        }
        let key = format!("{name}.expert_group_count");
        match self.number(&key)? {
            None | Some(0.0 | 1.0) => Ok(()),
            Some(other) => Err(self.invalid(&format!("{key}: {other} is not supported; 1 is"))),
        }
    }

    /// How this file calls its tensors, and whether it has a tensor per expert, as the oldest Mixtral files do.
    fn names(&self) -> Names {
        let each = self.tensor(&tensor_name(Slot::Expert(0, 0, Part::Gate))).is_some();
        let experts = if each { Names::COMMON.experts } else { ExpertNames::Stacked };
        Names { tensors: TensorNames::Gguf, head: HEAD, experts, ignored: &[ROPE_FACTORS], ..Names::COMMON }
    }

    fn adjust_attention(
        &self,
        attention: &mut GroupedSpec,
        layer: usize,
        architecture: &Architecture,
        window: Option<Mask>,
    ) {
        attention.qkv_bias = self.has(layer, Part::QueryBias);
        attention.out_bias = self.has(layer, Part::OutputBias);
        attention.mask = window.unwrap_or(attention.mask);
        if let Some(rope) = &mut attention.rope {
            rope.style = architecture.rope;
        }
    }

    fn has(&self, layer: usize, part: Part) -> bool {
        self.tensor(&tensor_name(Slot::Layer(layer, part))).is_some()
    }

    /// Keys, values and rotations of one width.
    fn check_heads(&self, attention: &GroupedSpec, name: &str) -> Result<(), ConfigError> {
        for key in ["attention.value_length", "rope.dimension_count"].map(|key| format!("{name}.{key}")) {
            if let Some(width) = self.number(&key)?.filter(|&width| width != attention.head_dim as f64) {
                let detail = format!(
                    "{key}: {width}, but a head has {}; this version needs them equal",
                    attention.head_dim
                );
                return Err(self.invalid(&detail));
            }
        }
        Ok(())
    }

    /// Divides RoPE's frequencies by the factors that the file has for them.
    fn divide_frequencies(&self, spec: &mut ModelSpec, fields: &Fields) -> Result<(), ConfigError> {
        let Some(tensor) = self.tensor(ROPE_FACTORS) else { return Ok(()) };
        let fail = |detail: &str| Err(self.invalid(&format!("tensor {ROPE_FACTORS}: {detail}")));
        let Some(factors) = self.f32_values(tensor) else {
            return fail(&format!("stored as {}, f32 expected", tensor.stored));
        };
        if factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return fail("a factor is no number above 0");
        }
        if fields.has("rope_scaling") {
            return fail(
                "the file has both factors and another scaling, which this version does not combine",
            );
        }
        for rope in &mut spec.ropes {
            if rope.inv_freq.len() != factors.len() {
                return fail(&format!("{} factors for {} frequencies", factors.len(), rope.inv_freq.len()));
            }
            rope.divide(&factors);
        }
        Ok(())
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.metadata().number(key).map_err(|detail| self.invalid(&detail))
    }

    fn invalid(&self, detail: &str) -> ConfigError {
        ConfigError::Invalid { path: self.path().to_path_buf(), detail: detail.to_string() }
    }
}

/// The window of all layers, if the file has one.
fn window(file: &GgufFile, name: &str) -> Result<Option<Mask>, ConfigError> {
    let key = format!("{name}.attention.sliding_window");
    match file.number(&key)? {
        None | Some(0.0) => Ok(None),
        Some(window) if (1.0..=f64::from(u32::MAX)).contains(&window) && window.fract() == 0.0 => {
            Ok(Some(Mask::Sliding { window: window as usize }))
        }
        Some(other) => Err(file.invalid(&format!("{key}: {other} is no number of positions"))),
    }
}

fn adjust_gate(sparse: &mut SparseSpec, normalise: bool, scale: Option<f64>) {
    sparse.gate.normalise = normalise.then_some(0.0);
    sparse.gate.scale = scale.unwrap_or(1.0) as f32;
}
