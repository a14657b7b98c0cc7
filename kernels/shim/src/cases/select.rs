//! `select`: a gate's choice.

use gaterail_kernels::ops::{self, Gate, GateOutput, GroupScore, Groups, Score};
use gaterail_kernels::{Device, Stream, View, reference};

use super::{Random, fetch, put, same};

/// `cases` random gates on random logits, with ties, and now and then with what is not a number.
pub fn select_cases(device: &Device, cases: usize) {
    let mut random = Random(13);
    let stream = Stream::new(device);
    let scores = [Score::Softmax, Score::Sigmoid, Score::SoftmaxOfSelected, Score::SigmoidOfSelected];
    for case in 0..cases {
        let (count, size) = (1 + random.below(8), 2 + random.below(40));
        let experts = count * size;
        let groups = random.chance(2).then(|| Groups {
            count,
            taken: 1 + random.below(count),
            score: [GroupScore::Largest, GroupScore::TwoLargest][random.below(2)],
        });
        let most = groups.map_or(experts, |groups| groups.taken * size);
        let top_k = 1 + random.below(most.min(40));
        let gate = Gate {
            score: scores[case % 4],
            groups,
            normalise: [None, Some(0.0), Some(1e-20)][random.below(3)],
            scale: [1.0, 2.5][random.below(2)],
        };
        let rows = 1 + random.below(4);
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0];
        let strange = random.chance(5);
        let logits: Vec<f32> = (0..rows * experts)
            .map(|_| match random.below(3) {
                0 if strange => odd[random.below(odd.len())],
                1 => random.below(12) as f32 * 0.25 - 1.0,
                _ => random.value() * 20.0,
            })
            .collect();
        let correction = random.chance(3).then(|| random.values(experts));
        let (logits_here, correction_here) =
            (put(&stream, &logits), correction.as_ref().map(|bias| put(&stream, bias)));
        let mut ids = put(&stream, &vec![0u32; rows * top_k]);
        let mut weights = put(&stream, &vec![0f32; rows * top_k]);
        let out = GateOutput { ids: &mut ids, weights: &mut weights, top_k };
        ops::select(&stream, &gate, View::rows(&logits_here, rows, experts), correction_here.as_ref(), out);
        let what = format!("{device}, case {case}: {top_k} of {experts}, {gate:?}");
        let (ids, weights) = (fetch(&stream, &ids), fetch(&stream, &weights));
        for (row, logits) in logits.chunks_exact(experts).enumerate() {
            let (expected_ids, expected) = reference::gate_row(&gate, top_k, logits, correction.as_deref());
            let choice = row * top_k..(row + 1) * top_k;
            assert_eq!(ids[choice.clone()], expected_ids, "{what}, row {row}");
            same(&format!("{what}, row {row}"), &weights[choice], &expected);
        }
    }
}
