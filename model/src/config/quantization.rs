//! How a checkpoint's weights are stored, as `quantization_config` says.

use super::{ConfigError, Fields, Int4Linear};

/// The stored forms that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// f32, f16 or bf16.
    None,
    /// FP8 E4M3 with a scale per 128 x 128 block (DeepSeek-V3).
    Fp8Blocks,
    /// Experts in MXFP4 (gpt-oss).
    Mxfp4Experts,
    /// Linear layers in 4 bits (GPTQ, AWQ).
    Int4(Int4Linear),
}

const SUPPORTED: &str = "this version reads f32, f16 and bf16 weights, fp8 (E4M3, 128 x 128 blocks), mxfp4 (experts), gptq and awq (4 bits)";

impl Quantization {
    /// Reads `quantization_config` of a configuration's top level.
    pub fn read(config: &Fields) -> Result<Quantization, ConfigError> {
        let Some(quantization) = config.object("quantization_config")? else { return Ok(Quantization::None) };
        match quantization.text("quant_method")? {
            Some("fp8") => {
                let block = quantization.counts("weight_block_size")?;
                match block.as_deref() {
                    Some([128, 128]) => {}
                    Some(other) => {
                        let detail = format!("{other:?} is not supported; {SUPPORTED}");
                        return Err(quantization.invalid("weight_block_size", detail));
                    }
                    None => {
                        return Err(
                            quantization.invalid("weight_block_size", format!("missing; {SUPPORTED}"))
                        );
                    }
                }
                match quantization.text("fmt")? {
                    None | Some("e4m3") => Ok(Quantization::Fp8Blocks),
                    Some(other) => Err(quantization.invalid("fmt", format!("{other:?}; {SUPPORTED}"))),
                }
            }
            Some("gptq") => Int4Linear::gptq(&quantization).map(Quantization::Int4),
            Some("awq") => Int4Linear::awq(&quantization).map(Quantization::Int4),
            Some("mxfp4") => Ok(Quantization::Mxfp4Experts),
            Some(other) => Err(quantization.invalid("quant_method", format!("found {other:?}; {SUPPORTED}"))),
            None => Err(quantization.invalid("quant_method", format!("missing; {SUPPORTED}"))),
        }
    }
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Quantization::None => "none",
            Quantization::Fp8Blocks => "FP8 (E4M3, 128 x 128 blocks)",
            Quantization::Mxfp4Experts => "MXFP4 experts",
            Quantization::Int4(int4) => int4.precision(),
        })
    }
}
