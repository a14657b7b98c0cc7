//! Partial sums of shards: added, and out of fixed point. Experts make them, as everywhere.

use gaterail_kernels::ops::{
    self, Activation, ExpertPiece, ExpertPieces, ExpertsArgs, ExpertsScratch, PartialSums, UNIT_MIN,
    WeightOn, partial_sums,
};
use gaterail_kernels::reference::{ExpertRow, RowWeight, add_expert_row};
use gaterail_kernels::{Device, PackedFormat, Stream, View, ViewMut};

use super::{Random, fetch, packed, put, same};

/// `cases` layers of two shards, whose sums are added and finished. A row that names an expert twice is NaN, whether that
/// expert is here or elsewhere; so is one whose terms do not fit.
pub fn sums_cases(device: &Device, cases: usize) {
    let mut random = Random(14);
    let stream = Stream::new(device);
    for case in 0..cases {
        sums_case(&mut random, &stream, &format!("{device}, case {case}"));
    }
}

fn sums_case(random: &mut Random, stream: &Stream, what: &str) {
    const EXPERTS: usize = 4;
    let (rows, h, f) = (2 + random.below(7), 1 + random.below(300), 1 + random.below(140));
    let fraction_bits = [24, 20][random.below(2)];
    let experts: Vec<ExpertPiece> =
        (0..EXPERTS as u32).map(|expert| whole_expert(random, expert, h, f)).collect();
    let x = random.values(rows * h);
    let mut ids: Vec<u32> = (0..rows as u32).flat_map(|row| [row % 4, (row + 1) % 4]).collect();
    let mut weights = random.values(rows * 2);
    // Row 0 names an expert twice, which the second shard or none has.
    ids[..2].fill(if random.chance(2) { 2 } else { 77 });
    weights[2] = if random.chance(2) { 1e15 } else { 1.0 };

    let mut expected = Vec::new();
    for (row, x) in x.chunks_exact(h).enumerate() {
        let (mut sums, mut poisoned) = (vec![0i64; h], row == 0);
        for choice in (2 * row..2 * row + 2).filter(|&choice| (ids[choice] as usize) < EXPERTS) {
            let piece = &experts[ids[choice] as usize];
            let e = expert_row(x, f, weights[choice], piece, fraction_bits);
            poisoned |= add_expert_row(&e, &mut sums);
        }
        let value = |&sum: &i64| (sum as f64 * 2f64.powi(-fraction_bits)) as f32;
        expected.extend(sums.iter().map(|sum| if poisoned { f32::NAN } else { value(sum) }));
    }

    let (x, ids, weights) = (put(stream, &x), put(stream, &ids), put(stream, &weights));
    let mut scratch = ExpertsScratch::new(stream.device()).expect("memory");
    let sums = || PartialSums::new(stream.device(), rows + 3, h).expect("memory");
    let (mut total, mut partial) = (sums(), sums());
    total.reset(stream, rows);
    for held in [&experts[..2], &experts[2..]] {
        let pieces = ExpertPieces::on(stream.device(), held.to_vec()).expect("memory");
        let args = ExpertsArgs {
            x: View::rows(&x, rows, h).into(),
            ids: &ids,
            weights: &weights,
            top_k: 2,
            pieces: &pieces,
            activation: Activation::SwiGlu,
            weight_on: WeightOn::Output,
            unit: UNIT_MIN,
            fraction_bits: fraction_bits as u32,
        };
        partial.reset(stream, rows);
        ops::experts(stream, &args, &mut scratch, &mut partial).expect("memory");
        partial_sums::add(stream, &partial, &mut total);
    }
    let mut out = put(stream, &vec![0.0; rows * h]);
    partial_sums::finish(stream, &total, fraction_bits as u32, ViewMut::rows(&mut out, rows, h));
    same(&format!("{what}: {rows} rows of {h}, F {f}"), &fetch(stream, &out), &expected);
}

fn whole_expert(random: &mut Random, expert: u32, h: usize, f: usize) -> ExpertPiece {
    ExpertPiece {
        expert,
        gate: packed(random, PackedFormat::INT4, f, h).into(),
        up: packed(random, PackedFormat::INT4, f, h).into(),
        down: packed(random, PackedFormat::INT8, h, f).into(),
        gate_bias: None,
        up_bias: None,
        down_bias: None,
    }
}

fn expert_row<'a>(
    x: &'a [f32],
    f: usize,
    weight: f32,
    piece: &'a ExpertPiece,
    fraction_bits: i32,
) -> ExpertRow<'a> {
    let of =
        |weight: &'a gaterail_kernels::Weight| RowWeight::Packed(weight.packed().expect("packed experts"));
    ExpertRow {
        x,
        f,
        weight,
        gate: of(&piece.gate),
        up: of(&piece.up),
        down: of(&piece.down),
        gate_bias: None,
        up_bias: None,
        down_bias: None,
        activation: Activation::SwiGlu,
        weight_on: WeightOn::Output,
        unit: UNIT_MIN,
        fraction_bits: fraction_bits as u32,
    }
}
