//! `select_experts` (`select.cu`): as `ops::select`.

use super::arguments::SelectArgs;
use super::compile::Source;
use super::device::{CudaQueue, DeviceBuffer, Strided};
use super::driver::Kernel;
use crate::ops::{Gate, GroupScore, MAX_GROUPS, Score};

/// Where the selection goes: `[T, K]` each.
#[derive(Clone, Copy)]
pub struct Selection<'a> {
    pub ids: &'a DeviceBuffer<u32>,
    pub weights: &'a DeviceBuffer<f32>,
    pub top_k: usize,
}

/// ids, weights <- the gate's choice for every row of logits.
pub fn select(
    queue: &CudaQueue,
    gate: &Gate,
    logits: Strided<'_>,
    correction: Option<&DeviceBuffer<f32>>,
    out: Selection<'_>,
) {
    let (rows, experts, top_k) = (logits.rows, logits.width, out.top_k);
    assert!(logits.heads == 1 && top_k >= 1 && top_k <= experts, "select: {top_k} of {experts}");
    assert!(rows * top_k <= out.ids.len().min(out.weights.len()), "select: out");
    assert!(correction.is_none_or(|bias| bias.len() == experts), "select: correction bias");
    let (groups, taken) = gate.groups.map_or((0, 0), |groups| (groups.count, groups.taken));
    if groups > 0 {
        assert!(groups <= MAX_GROUPS && experts.is_multiple_of(groups), "select: groups");
        assert!((1..=groups).contains(&taken) && taken * (experts / groups) >= top_k, "select: taken groups");
    }
    let args = SelectArgs {
        logits: logits.address(),
        correction: correction.map_or(0, |bias| bias.at(0)),
        ids: out.ids.at(0),
        weights: out.weights.at(0),
        logits_row: logits.row_stride as u64,
        experts: experts as u32,
        top_k: top_k as u32,
        score: match gate.score {
            Score::Softmax => 0,
            Score::Sigmoid => 1,
            Score::SoftmaxOfSelected => 2,
            Score::SigmoidOfSelected => 3,
        },
        groups: groups as u32,
        taken: taken as u32,
        two_largest: u32::from(gate.groups.is_some_and(|groups| groups.score == GroupScore::TwoLargest)),
        normalise: u32::from(gate.normalise.is_some()),
        epsilon: gate.normalise.unwrap_or(0.0),
        scale: gate.scale,
        padding: 0,
    };
    let kernel = Kernel { source: Source::Select, name: "select_experts", form: None };
    let shared = 4 * (3 * experts + top_k + 2 * MAX_GROUPS);
    // SAFETY: the shapes were checked above, the view against its buffer.
    unsafe { queue.launch(kernel, [rows, 1, 1], 32, shared, &args) };
}
