//! Whether it fits: the context, then the memory. Decided before anything is loaded.

use gaterail_kernels::ops::{KvForm, PAGE_POSITIONS};
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::kv::page_bytes;
use gaterail_model::spec::ModelSpec;
use gaterail_model::walk::Cursor;
use gaterail_model::weights::{Precision, resident_bytes};

use crate::error::CliError;
use crate::machine;
use crate::progress::bytes_text;

/// What the process needs beside weights, KV and work buffers.
const RESERVE_BYTES: u64 = 256 << 20;

/// Tokens that may be generated: as asked, or what the context leaves.
pub fn max_tokens(spec: &ModelSpec, prompt: usize, asked: usize) -> Result<usize, CliError> {
    if prompt >= spec.context {
        let context = spec.context;
        let detail = format!(
            "the prompt has {prompt} tokens, which leaves no room in the model's context of {context}"
        );
        return Err(CliError::Refused(detail));
    }
    if asked == 0 {
        return Err(CliError::Usage("--max-tokens is 0: there is nothing to generate".to_string()));
    }
    Ok(asked.min(spec.context - prompt))
}

/// Bytes of KV and work buffers.
pub fn beside_weights(spec: &ModelSpec, kv: KvForm, positions: usize, rows_max: usize) -> u64 {
    let kv = positions.div_ceil(PAGE_POSITIONS) as u64 * page_bytes(spec, kv);
    Cursor::bytes(spec, rows_max, 1) + RESERVE_BYTES + kv
}

/// Refuses what cannot be held in memory, and says what could.
pub fn check_memory(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    (precision, kv): (Precision, KvForm),
    prompt: usize,
    positions: usize,
    rows_max: usize,
) -> Result<(), CliError> {
    let Some(available) = machine::available_memory_bytes() else { return Ok(()) };
    let weights = resident_bytes(spec, checkpoint, precision);
    let work = Cursor::bytes(spec, rows_max, 1) + RESERVE_BYTES;
    let kv_bytes = positions.div_ceil(PAGE_POSITIONS) as u64 * page_bytes(spec, kv);
    if weights + work + kv_bytes <= available {
        return Ok(());
    }
    let need = format!(
        "this does not fit in memory: weights {}, KV for {positions} tokens {}, work {}; {} are available.",
        bytes_text(weights),
        bytes_text(kv_bytes),
        bytes_text(work),
        bytes_text(available)
    );
    let pages = available.saturating_sub(weights + work) / page_bytes(spec, kv).max(1);
    let fitting = (pages as usize).saturating_mul(PAGE_POSITIONS);
    let way = if fitting > prompt {
        format!("--max-tokens {} would fit", fitting - prompt)
    } else if weights + work + page_bytes(spec, kv) <= available {
        format!("a prompt of up to {} tokens would fit", fitting.saturating_sub(1))
    } else {
        "--no-memory-check runs it all the same, reading weights from disk again and again (very slow)"
            .to_string()
    };
    Err(CliError::Refused(format!("{need}\n{way}")))
}
