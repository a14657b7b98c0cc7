//! `--weights` and `--kv-cache-dtype`: in which precision a model runs, and what `auto` makes of it.

use std::fmt;

use clap::ValueEnum;
use gaterail_kernels::ops::KvForm;
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::spec::ModelSpec;
use gaterail_model::weights::{Precision, resident_bytes};

use crate::machine;
use crate::progress::bytes_text;
use crate::terminal;

/// The precision of experts, projections and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightsArg {
    /// What is stored, if it fits in memory; else int4
    Auto,
    /// What is stored, whether it fits or not
    Stored,
    /// The stored values with f32 activations, exactly
    F32,
    /// bf16 with f32 activations
    Bf16,
    /// 8-bit integers in groups of 64, with 8-bit activations
    Int8,
    /// 4-bit integers in groups of 64, with 8-bit activations; the head has 8 bits
    Int4,
}

impl WeightsArg {
    /// What was asked for; `None` for `auto`.
    pub fn asked(self) -> Option<Precision> {
        match self {
            WeightsArg::Auto => None,
            WeightsArg::Stored => Some(Precision::AsStored),
            WeightsArg::F32 => Some(Precision::F32),
            WeightsArg::Bf16 => Some(Precision::Bf16),
            WeightsArg::Int8 => Some(Precision::Int8),
            WeightsArg::Int4 => Some(Precision::Int4),
        }
    }

    /// The precision to run in; `beside` is what else must fit in memory.
    pub fn precision(self, spec: &ModelSpec, checkpoint: &Checkpoint, beside: u64) -> Precision {
        if let Some(asked) = self.asked() {
            return asked;
        }
        let stored = resident_bytes(spec, checkpoint, Precision::AsStored);
        let Some(available) = machine::available_memory_bytes() else { return Precision::AsStored };
        if stored + beside <= available || resident_bytes(spec, checkpoint, Precision::Int4) >= stored {
            return Precision::AsStored;
        }
        terminal::note(&format!(
            "gaterail: weights in int4: as stored they take {}, and {} are available (--weights says otherwise)",
            bytes_text(stored),
            bytes_text(available)
        ));
        Precision::Int4
    }
}

/// As on the command line.
impl fmt::Display for WeightsArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// What the KV cache stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvArg {
    /// f32 with --weights f32, else f16
    Auto,
    F32,
    /// Half the memory, and twice the speed of long contexts
    #[value(alias = "float16", alias = "fp16")]
    F16,
}

impl KvArg {
    /// What KV stores where `precision` is asked for. Weights that `auto` has yet to choose are not exact ones.
    pub fn form(self, weights: WeightsArg) -> KvForm {
        match (self, weights) {
            (KvArg::F32, _) | (KvArg::Auto, WeightsArg::F32) => KvForm::F32,
            (KvArg::F16, _) | (KvArg::Auto, _) => KvForm::F16,
        }
    }
}
