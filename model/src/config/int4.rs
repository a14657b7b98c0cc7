//! 4-bit linear layers as GPTQ and AWQ store them: what `quantization_config` says of them, and what of it is read.

use serde_json::Value;

use super::{ConfigError, Fields};

/// Longer groups are refused, but for one over all inputs.
const GROUP_MAX: f64 = 65_536.0;
/// Groups begin where packed groups begin.
const GROUP_STEP: usize = 32;

/// How the linear layers of a checkpoint are stored in 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int4Linear {
    pub packing: Int4Packing,
    /// Inputs that share a scale; `None`: all of them (`group_size` -1).
    pub group: Option<usize>,
    /// Whether every zero point is 8, as far as the configuration knows.
    pub symmetric: bool,
    /// Whether inputs may have been quantised out of their order; `g_idx` then tells.
    pub desc_act: bool,
}

/// How codes and zero points lie in 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int4Packing {
    /// Eight inputs in a word; stored zero points are one less than meant.
    Gptq,
    /// Eight inputs in a word.
    GptqV2,
    /// Eight outputs in a word, interleaved.
    Awq,
}

impl Int4Linear {
    /// Of `quant_method` gptq.
    pub(super) fn gptq(fields: &Fields) -> Result<Int4Linear, ConfigError> {
        four_bits(fields)?;
        let packing = match format(fields)?.as_deref() {
            None | Some("gptq") => Int4Packing::Gptq,
            Some("gptq_v2") => Int4Packing::GptqV2,
            Some(other) => {
                let detail = format!("{other:?} is not supported; this version reads gptq and gptq_v2");
                return Err(fields.invalid("checkpoint_format", detail));
            }
        };
        for field in ["lm_head", "is_marlin_format"] {
            if fields.flag_or(field, false)? {
                return Err(fields.invalid(field, "true is not supported; re-quantise with false"));
            }
        }
        for field in ["rotation", "adapter"] {
            if let Some(value) = fields.value(field) {
                return Err(fields.invalid(field, format!("{value} is not supported; re-quantise without")));
            }
        }
        match fields.text("pack_dtype")? {
            None | Some("int32") => {}
            Some(other) => {
                let detail = format!("{other:?} is not supported; this version reads int32");
                return Err(fields.invalid("pack_dtype", detail));
            }
        }
        same_everywhere(fields)?;
        Ok(Int4Linear {
            packing,
            group: group(fields)?,
            symmetric: fields.flag_or("sym", true)?,
            desc_act: fields.flag_or("desc_act", false)?,
        })
    }

    /// Of `quant_method` awq.
    pub(super) fn awq(fields: &Fields) -> Result<Int4Linear, ConfigError> {
        four_bits(fields)?;
        let version = fields.text("version")?.map(str::to_lowercase);
        for (field, value) in [("version", version), ("checkpoint_format", format(fields)?)] {
            if let Some(other) = value.filter(|value| value != "gemm") {
                let detail = format!("{other:?} is not supported; this version reads gemm");
                return Err(fields.invalid(field, detail));
            }
        }
        if let Some(other) = fields.text("backend")?.filter(|backend| *backend != "autoawq") {
            let detail = format!("{other:?} is not supported; this version reads the layout of autoawq");
            return Err(fields.invalid("backend", detail));
        }
        if !fields.flag_or("zero_point", true)? {
            return Err(
                fields.invalid("zero_point", "false is not supported; this version reads zero points")
            );
        }
        same_everywhere(fields)?;
        Ok(Int4Linear { packing: Int4Packing::Awq, group: group(fields)?, symmetric: false, desc_act: false })
    }

    /// For tables of bytes by precision.
    pub fn precision(self) -> &'static str {
        match (self.packing, self.group) {
            (Int4Packing::Awq, Some(32)) => "int4 awq g32",
            (Int4Packing::Awq, Some(64)) => "int4 awq g64",
            (Int4Packing::Awq, Some(128)) => "int4 awq g128",
            (Int4Packing::Awq, None) => "int4 awq per row",
            (Int4Packing::Awq, Some(_)) => "int4 awq",
            (_, Some(32)) => "int4 gptq g32",
            (_, Some(64)) => "int4 gptq g64",
            (_, Some(128)) => "int4 gptq g128",
            (_, None) => "int4 gptq per row",
            (_, Some(_)) => "int4 gptq",
        }
    }

    /// Inputs that share a scale in a layer of `inputs`.
    pub fn stored_group(self, inputs: usize) -> usize {
        self.group.unwrap_or(inputs)
    }
}

fn four_bits(fields: &Fields) -> Result<(), ConfigError> {
    match fields.need("bits")? {
        4 => Ok(()),
        other => Err(fields.invalid("bits", format!("{other} is not supported; this version reads 4"))),
    }
}

/// The storage format under either of its names.
fn format(fields: &Fields) -> Result<Option<String>, ConfigError> {
    let text = match fields.text("checkpoint_format")? {
        Some(text) => Some(text),
        None => fields.text("format")?,
    };
    Ok(text.map(str::to_lowercase))
}

fn group(fields: &Fields) -> Result<Option<usize>, ConfigError> {
    match fields.number("group_size")? {
        Some(-1.0) => Ok(None),
        Some(size)
            if (1.0..=GROUP_MAX).contains(&size)
                && size.fract() == 0.0
                && (size as usize).is_multiple_of(GROUP_STEP) =>
        {
            Ok(Some(size as usize))
        }
        Some(other) => {
            let detail = format!(
                "{other} is not supported; this version reads 32, 64, 128, greater multiples of {GROUP_STEP}, and -1"
            );
            Err(fields.invalid("group_size", detail))
        }
        None => Err(fields.invalid("group_size", "missing")),
    }
}

/// `dynamic` maps patterns of module names to settings of their own. Modules that it leaves out (`-:`) are known by their
/// tensors; settings that differ from everybody's are refused.
fn same_everywhere(fields: &Fields) -> Result<(), ConfigError> {
    let Some(dynamic) = fields.value("dynamic") else { return Ok(()) };
    let Value::Object(rules) = dynamic else { return Err(fields.invalid("dynamic", "not an object")) };
    for (rule, settings) in rules.iter().filter(|(rule, _)| !rule.starts_with("-:")) {
        let Value::Object(settings) = settings else {
            return Err(fields.invalid("dynamic", format!("{rule:?} is not an object")));
        };
        if let Some((field, value)) =
            settings.iter().find(|(field, value)| fields.value(field) != Some(value))
        {
            let detail = format!(
                "{rule:?} sets {field} to {value}; this version reads one setting for all quantised layers"
            );
            return Err(fields.invalid("dynamic", detail));
        }
    }
    Ok(())
}
