//! `select`: logits `[T, E]` -> the K experts of every row and their weights, `[T, K]` each, in order of selection.

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::gate::{MAX_GROUPS, Scratch, select_row};
use crate::cuda;
use crate::stream::Stream;
use crate::view::{SharedSlice, View};

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts: Mixtral, Qwen, OLMoE, DeepSeek-V2.
    Softmax,
    /// Sigmoid of each: DeepSeek-V3.
    Sigmoid,
    /// The logits select; softmax over the selected: gpt-oss.
    SoftmaxOfSelected,
    /// The logits select; sigmoid of the selected: Llama 4.
    SigmoidOfSelected,
}

/// What a group of experts counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    Largest,
    TwoLargest,
}

/// Selection limited to the best groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub taken: usize,
    pub score: GroupScore,
}

/// A gating rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    pub score: Score,
    pub groups: Option<Groups>,
    /// Divide by the sum of the selected plus this.
    pub normalise: Option<f32>,
    /// Multiply at the end.
    pub scale: f32,
}

/// Where the selection goes.
pub struct GateOutput<'a> {
    /// `[T, K]`
    pub ids: &'a mut Buffer<u32>,
    /// `[T, K]`
    pub weights: &'a mut Buffer<f32>,
    pub top_k: usize,
}

pub fn select(
    stream: &Stream,
    gate: &Gate,
    logits: View<'_>,
    correction: Option<&Buffer<f32>>,
    out: GateOutput<'_>,
) {
    let at = logits.layout();
    let (experts, top_k) = (at.width, out.top_k);
    assert!(top_k >= 1 && top_k <= experts, "select: {top_k} of {experts}");
    assert!(at.rows * top_k <= out.ids.len() && at.rows * top_k <= out.weights.len(), "select: out");
    if let Some(groups) = gate.groups {
        assert!(groups.count <= MAX_GROUPS && experts.is_multiple_of(groups.count), "select: groups");
        assert!(
            groups.taken >= 1 && groups.taken * (experts / groups.count) >= top_k,
            "select: taken groups"
        );
    }
    if let Some(queue) = stream.cuda() {
        let out = cuda::Selection { ids: out.ids.cuda(), weights: out.weights.cuda(), top_k };
        return cuda::select(queue, gate, logits.strided(), correction.map(Buffer::cuda), out);
    }
    let correction = correction.map(|bias| bias.host());
    assert!(correction.is_none_or(|bias| bias.len() == experts), "select: correction bias");
    let cpu = stream.cpu();
    let parts = cpu.parts_for(at.rows, at.rows * experts * 8);
    let ids = SharedSlice::new(out.ids.host_mut());
    let weights = SharedSlice::new(out.weights.host_mut());
    cpu.pool.run(parts, &|part| {
        let mut scratch = Scratch::new();
        for row in run_of(at.rows, parts, part) {
            // SAFETY: every row belongs to one part.
            let (ids, weights) =
                unsafe { (ids.range(row * top_k, top_k), weights.range(row * top_k, top_k)) };
            select_row(cpu.isa, gate, logits.slice(row, 0), correction, &mut scratch, ids, weights);
        }
    });
}
