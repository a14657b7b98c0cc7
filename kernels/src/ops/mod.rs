//! The operations, as callers see them: each checks its shapes and queues itself on a stream.

mod attention;
mod elementwise;
mod embed;
mod experts;
mod gate;
mod kv;
mod linear;
mod norm;
mod pack;
mod packed;
mod restore;
mod rope;
mod travel;

pub use attention::{ATTENTION_CHUNK, AttentionArgs, KvView, Mask, attention, attention_scratch_bytes};
pub use elementwise::{Activation, activation, add, add_gated, clamp, copy_rows, gather_rows, scale_rows};
pub use embed::embed;
pub use experts::{
    ExpertPiece, ExpertPieces, ExpertRows, ExpertsArgs, ExpertsScratch, FRACTION_BITS, PartialSums, UNIT_MIN,
    WeightOn, experts, partial_sums, unit_length,
};
pub use gate::{Gate, GateOutput, GroupScore, Groups, Score, select};
pub use kv::{KvBuffer, KvForm, KvWrite, PAGE_POSITIONS, PageCopy, kv_copy, kv_write};
pub use linear::{linear, linear_heads};
pub use norm::rms_norm;
pub use pack::{Packing, pack};
pub use packed::{HostRow, PROJECTIONS_MAX, Projection, QuantRows, project, quantize};
pub use restore::{BLOCK_PANELS, restore};
pub use rope::{RopeStyle, rope};
pub(crate) use travel::Seen;
pub use travel::{SumsBytes, TravelError, add_travelled};

pub use crate::cpu::gate::MAX_GROUPS;

/// The `part`-th of `parts` even runs of `items`.
pub(crate) fn run_of(items: usize, parts: usize, part: usize) -> std::ops::Range<usize> {
    items * part / parts..items * (part + 1) / parts
}
