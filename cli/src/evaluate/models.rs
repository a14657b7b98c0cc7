//! Loads what is evaluated, with room for many sequences at a time.

use gaterail_kernels::Device;
use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_model::ModelSource;
use gaterail_model::kv::page_bytes;
use gaterail_model::spec::ModelSpec;
use gaterail_model::walk::{Cursor, LocalExperts, Recorded, Runner, RunnerOptions};
use gaterail_model::weights::resident_bytes;

use super::prompts::Prompt;
use crate::error::CliError;
use crate::machine;
use crate::progress::bytes_text;
use crate::weights::{KvArg, WeightsArg};

/// Rows of one step.
pub const ROWS_MAX: usize = 1024;
/// Sequences that are read at a time.
pub const SEQUENCES_MAX: usize = 64;
/// Positions of KV, where no sequence needs more.
const POSITIONS: usize = 16 << 10;

/// A model whose gates are listened to.
pub type Model = Runner<Recorded<LocalExperts>>;

/// What all models get room for.
pub struct Room {
    /// Tokens of the longest prompt with its answer.
    pub longest: usize,
    /// Positions of KV.
    positions: usize,
}

impl Room {
    pub fn of(spec: &ModelSpec, prompts: &[Prompt]) -> Room {
        let tokens = prompts.iter().map(|prompt| prompt.tokens.len() + prompt.answer_max());
        let longest = tokens.max().unwrap_or(0).min(spec.context);
        Room { longest, positions: longest.max(POSITIONS).next_multiple_of(PAGE_POSITIONS) }
    }
}

/// Checks that there is memory for it, and loads.
pub fn load(
    source: &ModelSource,
    weights: WeightsArg,
    device: &Device,
    room: &Room,
) -> Result<Model, CliError> {
    let (spec, checkpoint) = (source.spec()?, source.checkpoint()?);
    let kv = KvArg::Auto.form(weights);
    let kv_bytes = (room.positions / PAGE_POSITIONS) as u64 * page_bytes(&spec, kv);
    let beside = kv_bytes + Cursor::bytes(&spec, ROWS_MAX, ROWS_MAX);
    let precision = weights.precision(&spec, &checkpoint, beside);
    let needed = resident_bytes(&spec, &checkpoint, precision) + beside;
    if let Some(available) = machine::available_memory_bytes().filter(|available| needed > *available) {
        let (needed, available) = (bytes_text(needed), bytes_text(available));
        return Err(CliError::Refused(format!(
            "this does not fit in memory: weights and KV take {needed}, {available} are available"
        )));
    }
    let options =
        RunnerOptions { rows_max: ROWS_MAX, positions: room.positions, shards: Vec::new(), precision, kv };
    let mut runner = Runner::from_checkpoint(spec, &checkpoint, device, &options, &mut |_| {})?;
    // All rows say which experts they chose, in every layer.
    runner.keep_all();
    Ok(runner.wrap_experts(Recorded::new))
}
