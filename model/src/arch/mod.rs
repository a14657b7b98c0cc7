//! The architectures: one small file each turns `config.json` into a `ModelSpec`.

mod deepseek;
mod gpt_oss;
mod grouped;
mod llama;
mod llama4;
mod mixtral;
mod names;
mod olmoe;
mod qwen;

use std::path::Path;

pub use names::{ExpertNames, Names, TensorNames};

use crate::config::{ConfigError, Fields};
use crate::spec::ModelSpec;

type Reader = fn(&Fields) -> Result<ModelSpec, ConfigError>;

/// What `architectures[0]` may say, and who reads it.
const ARCHITECTURES: [(&str, Reader); 11] = [
    ("MixtralForCausalLM", mixtral::read),
    ("Qwen2MoeForCausalLM", qwen::read_qwen2_moe),
    ("Qwen3MoeForCausalLM", qwen::read_qwen3_moe),
    ("OlmoeForCausalLM", olmoe::read),
    ("DeepseekV2ForCausalLM", deepseek::read_v2),
    ("DeepseekV3ForCausalLM", deepseek::read_v3),
    ("Llama4ForCausalLM", llama4::read_text),
    ("Llama4ForConditionalGeneration", llama4::read_multimodal),
    ("GptOssForCausalLM", gpt_oss::read),
    ("LlamaForCausalLM", llama::read),
    ("Qwen3ForCausalLM", qwen::read_qwen3),
];

/// The names of all supported architectures.
pub fn supported() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name)
}

/// Reads the configuration of a model folder.
pub fn read_spec(config: &Path) -> Result<ModelSpec, ConfigError> {
    let fields = Fields::read(config)?;
    parse_spec(&fields)
}

/// The specification that a configuration describes.
pub fn parse_spec(fields: &Fields) -> Result<ModelSpec, ConfigError> {
    let list = || supported().collect::<Vec<_>>().join(", ");
    let names = fields.texts("architectures")?.unwrap_or_default();
    let Some(name) = names.first() else {
        let model =
            fields.text("model_type")?.map_or(String::new(), |model| format!(" (model_type is {model:?})"));
        return Err(fields.invalid("architectures", format!("missing{model}; this version runs {}", list())));
    };
    let Some((_, reader)) = ARCHITECTURES.iter().find(|(known, _)| known == name) else {
        let detail = format!("{name:?} is not supported; this version runs {}", list());
        return Err(fields.invalid("architectures", detail));
    };
    let spec = reader(fields)?;
    spec.check(fields)?;
    Ok(spec)
}
