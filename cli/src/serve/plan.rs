//! What fits, decided before a byte is loaded: weights, KV and work against the memory that is there.

use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::kv::page_bytes;
use gaterail_model::spec::ModelSpec;
use gaterail_model::walk::Cursor;
use gaterail_model::weights::{Precision, Role, resident_by_role, resident_bytes};

use super::config::ServeConfig;
use super::workers::Team;
use super::workers::share::{CardRoom, WORKER_RESERVE};
use crate::error::CliError;
use crate::machine;
use crate::progress::bytes_text;

/// What the process needs beside weights, KV and work buffers.
const RESERVE_BYTES: u64 = 256 << 20;
/// KV takes at most this share of what weights and work leave, unless it is asked for.
const KV_SHARE: (u64, u64) = (9, 10);

/// The memory that will be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// All that this machine holds, the workers' shares included.
    pub weights: u64,
    /// What its workers hold of that, and what they take beside.
    pub workers: Burden,
    pub kv: u64,
    pub work: u64,
    pub available: Option<u64>,
    pub kv_pages: usize,
    /// Prompt and answer of one sequence.
    pub context: usize,
}

/// What the workers of this machine take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burden {
    pub processes: usize,
    /// All copies together, in this machine's memory.
    pub experts: u64,
    /// And in that of its cards.
    pub on_cards: u64,
    /// Their programs and calls, and what this process takes for them.
    pub beside: u64,
}

impl MemoryPlan {
    /// What beside the weights must fit in any case: work, and KV of one sequence.
    pub fn beside_weights(spec: &ModelSpec, config: &ServeConfig) -> u64 {
        work_bytes(spec, config) + pages(context(spec, config)) as u64 * page_bytes(spec, config.kv_form())
    }

    /// The plan where this process holds the whole model.
    pub fn new(
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        precision: Precision,
        config: &ServeConfig,
    ) -> Result<MemoryPlan, CliError> {
        let weights = resident_bytes(spec, checkpoint, precision);
        MemoryPlan::of(spec, (weights, Burden::default()), config)
    }

    /// The plan where workers hold the experts: those of this machine, or none of them.
    pub fn with_workers(
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        precision: Precision,
        config: &ServeConfig,
        (team, cards): (&Team, &[Option<CardRoom>]),
    ) -> Result<MemoryPlan, CliError> {
        let mut roles = resident_by_role(spec, checkpoint, precision);
        let experts = roles.remove(&Role::Experts).unwrap_or(0);
        let trunk = roles.values().fold(0u64, |sum, &bytes| sum.saturating_add(bytes));
        let holders = team.spawn + usize::from(config.workers.local);
        let all = experts.saturating_mul(u64::from(config.workers.copies).min(holders as u64));
        // Cards take what they can, one copy of each expert at most, and the machine's memory what is left of it.
        let room =
            cards.iter().flatten().fold(0u64, |sum, card| sum.saturating_add(card.memory.min(experts)));
        let shares_cores = config.workers.local || cards.contains(&None);
        let burden = Burden {
            processes: team.spawn,
            experts: if shares_cores { all.saturating_sub(room) } else { 0 },
            on_cards: all.min(room),
            beside: team.spawn as u64 * WORKER_RESERVE,
        };
        // Micro-batches that take turns have a cursor more.
        let overlap = config.workers.overlap_from(shares_cores).map_or(0, |_| overlap_bytes(spec, config));
        let burden = Burden { beside: burden.beside.saturating_add(overlap), ..burden };
        MemoryPlan::of(spec, (trunk.saturating_add(burden.experts), burden), config)
    }

    fn of(
        spec: &ModelSpec,
        (weights, workers): (u64, Burden),
        config: &ServeConfig,
    ) -> Result<MemoryPlan, CliError> {
        let work = work_bytes(spec, config) + workers.beside;
        let page = page_bytes(spec, config.kv_form()).max(1);
        let wanted_context = context(spec, config);
        let available = machine::available_memory_bytes();
        let left = available.unwrap_or(u64::MAX).saturating_sub(weights + work);
        let wanted = pages(wanted_context) * config.engine.batch_max;
        let kv_pages = match config.kv_bytes {
            Some(bytes) => (bytes / page) as usize,
            None => wanted.min((left / KV_SHARE.1 * KV_SHARE.0 / page) as usize),
        };
        // One sequence can never have more than all pages.
        let context = wanted_context.min(kv_pages * PAGE_POSITIONS);
        let plan =
            MemoryPlan { weights, workers, kv: kv_pages as u64 * page, work, available, kv_pages, context };
        match plan.objection(spec, config, wanted_context) {
            Some(objection) if config.memory_check || kv_pages == 0 => Err(CliError::Refused(objection)),
            _ => Ok(plan),
        }
    }

    pub fn kv_positions(&self) -> usize {
        self.kv_pages * PAGE_POSITIONS
    }

    /// What the experts of this machine's workers may take, all of them together.
    pub fn workers_memory(&self) -> u64 {
        let left = self.available.map(|available| available.saturating_sub(self.total()));
        self.workers.experts.saturating_add(left.unwrap_or(self.workers.experts))
    }

    fn total(&self) -> u64 {
        self.weights + self.kv + self.work
    }

    /// Why it cannot be, and which flag would help.
    fn objection(&self, spec: &ModelSpec, config: &ServeConfig, wanted_context: usize) -> Option<String> {
        let fits = self.available.is_none_or(|available| self.total() <= available);
        // A context that nobody asked for may be shorter than the model's; the table after loading says so.
        let long_enough = config.engine.context_max.is_none() || self.context >= wanted_context;
        if fits && self.kv_pages > 0 && long_enough {
            return None;
        }
        let left = self.available.map(|available| available.saturating_sub(self.weights + self.work));
        let fitting =
            left.map(|left| left / page_bytes(spec, config.kv_form()).max(1) * PAGE_POSITIONS as u64);
        let flag = match (fitting, config.kv_bytes) {
            (Some(0), _) => "a smaller --weights (int4), or --no-memory-check (reads weights from disk again and again, very slow)".to_string(),
            (_, Some(_)) if fits && self.context == 0 => {
                let page = bytes_text(page_bytes(spec, config.kv_form()));
                format!("--kv-memory has to hold a page at least: {PAGE_POSITIONS} tokens, {page}")
            }
            (_, Some(_)) if fits => format!("--max-context {} would fit, or a larger --kv-memory", self.context),
            (Some(tokens), Some(_)) => format!("--kv-memory {} would fit", left_text(left, tokens)),
            (Some(tokens), None) => format!("--max-context {} would fit", tokens * KV_SHARE.0 / KV_SHARE.1),
            (None, _) => "--kv-memory has to hold at least one page".to_string(),
        };
        Some(format!("{}\n{flag}", self.text(wanted_context)))
    }

    /// The table of a refusal.
    fn text(&self, wanted_context: usize) -> String {
        let available = self.available.map_or("unknown".to_string(), bytes_text);
        format!(
            "this does not fit in memory:\n  weights    {}{}\n  KV         {} ({} tokens; one sequence of {wanted_context} wanted)\n  work       {}\n  available  {available}",
            bytes_text(self.weights),
            match self.workers.processes {
                0 => String::new(),
                count => format!(" ({} of it in {count} workers)", bytes_text(self.workers.experts)),
            },
            bytes_text(self.kv),
            self.kv_positions(),
            bytes_text(self.work),
        )
    }
}

fn left_text(left: Option<u64>, tokens: u64) -> String {
    format!("{} ({tokens} tokens)", left.unwrap_or(0))
}

fn work_bytes(spec: &ModelSpec, config: &ServeConfig) -> u64 {
    let rows = config.engine.logits_rows_max.max(config.engine.batch_max);
    Cursor::bytes(spec, config.step_tokens, rows) + RESERVE_BYTES
}

/// The second cursor of a split batch, which has half of its rows, and the place where all its logits are put together.
fn overlap_bytes(spec: &ModelSpec, config: &ServeConfig) -> u64 {
    let rows = config.engine.logits_rows_max.max(config.engine.batch_max);
    let half = config.step_tokens.div_ceil(2);
    Cursor::bytes(spec, half, rows.min(half)) + 4 * (rows * spec.vocab) as u64
}

fn context(spec: &ModelSpec, config: &ServeConfig) -> usize {
    config.engine.context_max.map_or(spec.context, |asked| asked.min(spec.context))
}

fn pages(positions: usize) -> usize {
    positions.div_ceil(PAGE_POSITIONS)
}
