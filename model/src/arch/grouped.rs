//! What the architectures share: the trunk's sizes, grouped-query attention, a plain gate, and the last check.

use gaterail_kernels::ops::{
    FRACTION_BITS, Gate, GroupScore, Groups, MAX_GROUPS, Mask, RopeStyle, Score, UNIT_MIN,
};
use gaterail_kernels::{ElementType, MXFP4_GROUP};

use crate::arch::{ExpertNames, Names};
use crate::config::{ConfigError, Fields, Quantization, Rope};
use crate::spec::{AttentionSpec, GroupedSpec, LayerSpec, MlpSpec, ModelSpec, QkNorm, RopeUse, SparseSpec};

/// More layers than any model has.
const LAYERS_MAX: usize = 4096;
/// More experts than any layer, and any model, has.
const EXPERTS_MAX: usize = 4096;
const ALL_EXPERTS_MAX: usize = 1 << 17;
/// No matrix of a published model has a longer side.
const SIDE_MAX: usize = 1 << 20;
/// Terms that 64-bit fixed point adds without overflow (ARITHMETIC.md, 6).
const TERMS_MAX: usize = 4095;

/// What an architecture assumes where its configuration is silent.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub theta: f64,
    pub norm_eps: f64,
    pub context: usize,
    /// `None`: as many as query heads.
    pub kv_heads: Option<usize>,
    /// `None`: hidden / heads.
    pub head_dim: Option<usize>,
}

/// The sizes that every architecture reads alike.
pub(super) struct Trunk {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub context: usize,
    defaults: Defaults,
}

impl Trunk {
    pub fn read(config: &Fields, defaults: Defaults) -> Result<Trunk, ConfigError> {
        let layers = config.need("num_hidden_layers")?;
        if layers > LAYERS_MAX {
            return Err(config.invalid("num_hidden_layers", format!("{layers} is more than {LAYERS_MAX}")));
        }
        if let Some(other) = config.text("hidden_act")?.filter(|act| *act != "silu") {
            return Err(
                config.invalid("hidden_act", format!("{other:?} is not supported; this version has silu"))
            );
        }
        Ok(Trunk {
            hidden: config.need("hidden_size")?,
            layers,
            heads: config.need("num_attention_heads")?,
            context: config.count_or("max_position_embeddings", defaults.context)?,
            defaults,
        })
    }

    /// Grouped-query attention with RoPE over the whole head, and the rotation it uses.
    pub fn attention(&self, config: &Fields) -> Result<(GroupedSpec, Rope), ConfigError> {
        let head_dim = self.head_dim(config)?;
        let rope = Rope::read(config, head_dim, self.context, self.defaults.theta)?;
        Ok((self.attention_with(config, head_dim)?, rope))
    }

    pub fn head_dim(&self, config: &Fields) -> Result<usize, ConfigError> {
        // An explicit null means hidden / heads, whatever the default.
        let default = self.defaults.head_dim.filter(|_| !config.is_null("head_dim"));
        let head_dim = match config.count("head_dim")?.or(default) {
            Some(head_dim) => head_dim,
            None if self.hidden.is_multiple_of(self.heads) => self.hidden / self.heads,
            None => {
                let detail = format!("hidden_size {} is no multiple of {} heads", self.hidden, self.heads);
                return Err(config.invalid("head_dim", detail));
            }
        };
        if head_dim.is_multiple_of(2) { Ok(head_dim) } else { Err(config.invalid("head_dim", "is odd")) }
    }

    pub fn attention_with(&self, config: &Fields, head_dim: usize) -> Result<GroupedSpec, ConfigError> {
        // An explicit null means as many as query heads, whatever the default.
        let default = self.defaults.kv_heads.filter(|_| !config.is_null("num_key_value_heads"));
        let kv_heads = config.count_or("num_key_value_heads", default.unwrap_or(self.heads))?;
        if !self.heads.is_multiple_of(kv_heads) {
            let detail = format!("{} heads are no multiple of {kv_heads}", self.heads);
            return Err(config.invalid("num_key_value_heads", detail));
        }
        Ok(GroupedSpec {
            heads: self.heads,
            kv_heads,
            head_dim,
            qkv_bias: false,
            out_bias: false,
            qk_norm: QkNorm::None,
            clip: None,
            rope: Some(RopeUse { index: 0, style: RopeStyle::Halves }),
            mask: Mask::Full,
            sinks: false,
            scale: (head_dim as f64).powf(-0.5) as f32,
            temperature: None,
        })
    }

    /// The whole specification around its layers. `top` is the file's top level, where it differs from `config`.
    pub fn spec(
        &self,
        top: &Fields,
        config: &Fields,
        names: Names,
        ropes: Vec<Rope>,
        layers: Vec<LayerSpec>,
    ) -> Result<ModelSpec, ConfigError> {
        let architecture =
            top.texts("architectures")?.and_then(|names| names.first().map(|name| name.to_string()));
        Ok(ModelSpec {
            architecture: architecture.unwrap_or_default(),
            vocab: config.need("vocab_size")?,
            hidden: self.hidden,
            context: self.context,
            norm_eps: config.positive_or("rms_norm_eps", self.defaults.norm_eps)? as f32,
            tied_embeddings: config
                .flag_or("tie_word_embeddings", top.flag_or("tie_word_embeddings", false)?)?,
            ropes,
            layers,
            prediction_layers: config.count_from("num_nextn_predict_layers", 0)?.unwrap_or(0),
            names,
            quantization: Quantization::read(top)?,
            declared: declared_type(top)?.or(declared_type(config)?),
            fraction_bits: FRACTION_BITS,
        })
    }
}

/// `dtype`, or `torch_dtype` in the older spelling.
fn declared_type(config: &Fields) -> Result<Option<ElementType>, ConfigError> {
    let text = match config.text("dtype")? {
        Some(text) => Some(text),
        None => config.text("torch_dtype")?,
    };
    match text {
        None | Some("auto") => Ok(None),
        Some("float32") => Ok(Some(ElementType::F32)),
        Some("float16") => Ok(Some(ElementType::F16)),
        Some("bfloat16") => Ok(Some(ElementType::Bf16)),
        Some(other) => {
            Err(config.invalid("dtype", format!("{other:?} is none of float32, float16, bfloat16")))
        }
    }
}

/// Softmax over all experts, normalised over the selected where asked.
pub(super) fn softmax_gate(normalise: bool) -> Gate {
    Gate { score: Score::Softmax, groups: None, normalise: normalise.then_some(0.0), scale: 1.0 }
}

/// `(experts, top_k)`, checked against each other.
pub(super) fn expert_counts(
    config: &Fields,
    experts: &[&str],
    top_k_default: usize,
) -> Result<(usize, usize), ConfigError> {
    let count = config.need_any(experts)?;
    let top_k = config.count_or("num_experts_per_tok", top_k_default)?;
    if top_k > count {
        return Err(config.invalid("num_experts_per_tok", format!("{top_k} of {count} experts")));
    }
    Ok((count, top_k))
}

/// `layer_types` as masks, if the configuration lists them.
pub(super) fn layer_masks(
    config: &Fields,
    layers: usize,
    special: &str,
    mask: Mask,
) -> Result<Option<Vec<Mask>>, ConfigError> {
    let Some(types) = config.texts("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        let detail = format!("{} entries for {layers} layers", types.len());
        return Err(config.invalid("layer_types", detail));
    }
    let masks = types.into_iter().map(|kind| match kind {
        "full_attention" => Ok(Mask::Full),
        kind if kind == special => Ok(mask),
        other => Err(config.invalid("layer_types", format!("{other:?} is not supported"))),
    });
    masks.collect::<Result<Vec<_>, _>>().map(Some)
}

impl ModelSpec {
    /// What no kernel could run, and no single field's limit catches.
    pub(super) fn check(&self, config: &Fields) -> Result<(), ConfigError> {
        let side = |name: &str, side: usize| match side {
            0..=SIDE_MAX => Ok(()),
            _ => Err(config.invalid(name, format!("a side of {side} is more than {SIDE_MAX}"))),
        };
        side("vocab_size", self.vocab)?;
        side("hidden_size", self.hidden)?;
        for layer in &self.layers {
            side("num_attention_heads (times head size)", layer.attention.widest())?;
            check_mask(&layer.attention, config)?;
            match &layer.mlp {
                MlpSpec::Dense { width, .. } => side("intermediate_size", *width)?,
                MlpSpec::Sparse(sparse) => {
                    let shared = sparse.shared.map_or(0, |shared| shared.width);
                    side("intermediate_size", sparse.width.max(shared))?;
                    self.check_sparse(sparse, config)?;
                }
            }
        }
        let experts: usize = self.layers.iter().filter_map(|layer| Some(layer.mlp.sparse()?.experts)).sum();
        if experts > ALL_EXPERTS_MAX {
            let detail = format!("{experts} experts in all; at most {ALL_EXPERTS_MAX} are run");
            return Err(config.invalid("num_hidden_layers", detail));
        }
        Ok(())
    }

    fn check_sparse(&self, sparse: &SparseSpec, config: &Fields) -> Result<(), ConfigError> {
        if sparse.experts > EXPERTS_MAX {
            let detail = format!("{} experts; at most {EXPERTS_MAX} are run", sparse.experts);
            return Err(config.invalid("num_experts", detail));
        }
        let terms = sparse.top_k * (sparse.width.div_ceil(UNIT_MIN) + 1);
        if terms > TERMS_MAX {
            let detail =
                format!("{} experts of width {} cannot be added exactly", sparse.top_k, sparse.width);
            return Err(config.invalid("num_experts_per_tok", detail));
        }
        let odd = [self.hidden, sparse.width].into_iter().find(|side| !side.is_multiple_of(MXFP4_GROUP));
        if let (Quantization::Mxfp4Experts, Some(odd)) = (self.quantization, odd) {
            let detail = format!("mxfp4 has groups of {MXFP4_GROUP}, and {odd} is no multiple of that");
            return Err(config.invalid("quantization_config", detail));
        }
        if let (Quantization::Int4(_), ExpertNames::Fused { .. }) = (self.quantization, self.names.experts) {
            let detail = "4-bit experts of this architecture are not supported; gptq and awq are read where every \
                          expert has matrices of its own";
            return Err(config.invalid("quantization_config", detail));
        }
        sparse.gate.groups.map_or(Ok(()), |groups| check_groups(sparse, groups, config))
    }
}

fn check_mask(attention: &AttentionSpec, config: &Fields) -> Result<(), ConfigError> {
    match attention {
        AttentionSpec::Grouped(GroupedSpec { mask: Mask::Sliding { window: 0 }, .. }) => {
            Err(config.invalid("sliding_window", "is 0"))
        }
        AttentionSpec::Grouped(GroupedSpec { mask: Mask::Chunked { size: 0 }, .. }) => {
            Err(config.invalid("attention_chunk_size", "is 0"))
        }
        _ => Ok(()),
    }
}

fn check_groups(sparse: &SparseSpec, groups: Groups, config: &Fields) -> Result<(), ConfigError> {
    let size = sparse.experts / groups.count;
    let least = if groups.score == GroupScore::TwoLargest { 2 } else { 1 };
    if groups.count > MAX_GROUPS || !sparse.experts.is_multiple_of(groups.count) || size < least {
        let detail = format!(
            "{} experts in {} groups (at most {MAX_GROUPS}, each of {least} or more)",
            sparse.experts, groups.count
        );
        return Err(config.invalid("n_group", detail));
    }
    if groups.taken > groups.count || groups.taken * size < sparse.top_k {
        let detail = format!("{} groups do not hold {} experts", groups.taken, sparse.top_k);
        return Err(config.invalid("topk_group", detail));
    }
    Ok(())
}
