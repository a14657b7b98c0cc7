//! ARITHMETIC.md, 6. and 8.: rows through experts, and sums in fixed point.

use gaterail_kernels::cuda::CudaError;
use gaterail_kernels::ops::*;
use gaterail_kernels::{KernelError, Matrix, Packed, Stream, View, Weight, reference};

use crate::common::{all_streams, experts_out, finished, put, same};
use crate::packed::packed;
use crate::read::{Case, cases};

/// One expert's matrices, in one of two forms, and its biases: of gate, up and down.
struct Expert {
    matrices: Matrices,
    bias: Option<[Vec<f32>; 3]>,
}

enum Matrices {
    Plain([Vec<f32>; 3]),
    Packed(Box<[Packed; 3]>),
}

/// A row, and the experts that it goes to.
struct Row {
    x: Vec<f32>,
    f: usize,
    weights: Vec<f32>,
    experts: Vec<Expert>,
    activation: Activation,
    weight_on: WeightOn,
    fraction_bits: u32,
}

#[test]
fn whole_experts() {
    let streams = all_streams();
    for case in cases("experts") {
        let activation = match case.floats_or_none("clamped").as_deref() {
            Some(&[alpha, limit]) => Activation::ClampedSwiGlu { alpha, limit },
            _ => Activation::SwiGlu,
        };
        let row = Row {
            x: case.floats("x"),
            f: case.size("f"),
            weights: case.floats("weights"),
            experts: case.list("experts").iter().map(expert).collect(),
            activation,
            weight_on: if case.flag("on_input") { WeightOn::Input } else { WeightOn::Output },
            fraction_bits: case.size("fraction_bits") as u32,
        };
        check(&streams, &case, &row);
    }
}

fn expert(case: &Case) -> Expert {
    let names = ["gate", "up", "down"];
    let matrices = match case.part("gate").has("codes") {
        true => Matrices::Packed(names.map(|name| packed(&case.part(name))).into()),
        false => Matrices::Plain(names.map(|name| case.floats(name))),
    };
    let bias = case.vectors("bias").map(|bias| bias.try_into().expect("three biases"));
    Expert { matrices, bias }
}

/// Experts of width 1, all of whose products are 0, so that their biases alone are what is added.
#[test]
fn fixed_point() {
    let streams = all_streams();
    for case in cases("fixed") {
        let h = case.size("h");
        let expert = |bias: Vec<f32>| Expert {
            matrices: Matrices::Plain([vec![0.0; h], vec![0.0; h], vec![0.0; h]]),
            bias: Some([vec![0.0], vec![0.0], bias]),
        };
        let biases = case.vectors("biases").expect("biases");
        let row = Row {
            x: vec![0.0; h],
            f: 1,
            weights: case.floats("weights"),
            experts: biases.into_iter().map(expert).collect(),
            activation: Activation::SwiGlu,
            weight_on: WeightOn::Output,
            fraction_bits: case.size("fraction_bits") as u32,
        };
        check(&streams, &case, &row);
    }
}

/// The reference's sums and the devices' results are those of the case. The reference takes one expert at a time and
/// cannot see one that is named twice.
fn check(streams: &[Stream], case: &Case, row: &Row) {
    let ids: Vec<u32> = match case.has("ids") {
        true => case.integers("ids").into_iter().map(|id| id as u32).collect(),
        false => {
            check_twin(case, row);
            (0..row.experts.len() as u32).collect()
        }
    };
    for stream in streams {
        // A GPU has kernels for what models come in.
        if let Some(out) = on_device(stream, row, &ids) {
            same(&format!("{}, {}", case.name(), stream.device()), &out, &case.floats("out"));
        }
    }
}

fn check_twin(case: &Case, row: &Row) {
    let mut sums = vec![0i64; row.x.len()];
    let poisoned = (0..row.experts.len())
        .fold(false, |poisoned, at| reference::add_expert_row(&twin(row, at), &mut sums) | poisoned);
    assert_eq!(poisoned, case.flag("poisoned"), "{}", case.name());
    if !poisoned {
        assert_eq!(sums, case.integers("sums"), "{}", case.name());
    }
    same(case.name(), &finished(&sums, row.fraction_bits, poisoned), &case.floats("out"));
}

fn twin(row: &Row, at: usize) -> reference::ExpertRow<'_> {
    let Expert { matrices, bias } = &row.experts[at];
    let of = |index: usize| match matrices {
        Matrices::Plain(values) => reference::RowWeight::Plain(&values[index]),
        Matrices::Packed(packed) => reference::RowWeight::Packed(&packed[index]),
    };
    let bias = |index: usize| bias.as_ref().map(|bias| &bias[index][..]);
    reference::ExpertRow {
        x: &row.x,
        f: row.f,
        weight: row.weights[at],
        gate: of(0),
        up: of(1),
        down: of(2),
        gate_bias: bias(0),
        up_bias: bias(1),
        down_bias: bias(2),
        activation: row.activation,
        weight_on: row.weight_on,
        unit: unit(row),
        fraction_bits: row.fraction_bits,
    }
}

fn unit(row: &Row) -> usize {
    let group = |expert: &Expert| match &expert.matrices {
        Matrices::Plain(_) => 1,
        Matrices::Packed(packed) => packed[2].format().group,
    };
    unit_length(row.experts.iter().map(group).max().expect("an expert"))
}

fn on_device(stream: &Stream, row: &Row, ids: &[u32]) -> Option<Vec<f32>> {
    let pieces = row.experts.iter().enumerate().flat_map(|(id, expert)| pieces(row, id as u32, expert));
    let pieces = match ExpertPieces::on(stream.device(), pieces.collect()) {
        Ok(pieces) => pieces,
        Err(KernelError::Cuda(CudaError::NoForm(_))) => return None,
        Err(error) => panic!("{error}"),
    };
    let (x, ids, weights) = (put(stream, &row.x), put(stream, ids), put(stream, &row.weights));
    let args = ExpertsArgs {
        x: View::rows(&x, 1, row.x.len()).into(),
        ids: &ids,
        weights: &weights,
        top_k: row.weights.len(),
        pieces: &pieces,
        activation: row.activation,
        weight_on: row.weight_on,
        unit: unit(row),
        fraction_bits: row.fraction_bits,
    };
    Some(experts_out(stream, &args))
}

/// The first unit, and the others.
fn pieces(row: &Row, id: u32, expert: &Expert) -> Vec<ExpertPiece> {
    let (h, f) = (row.x.len(), row.f);
    let cut = f.min(unit(row));
    let run = |start: usize, end: usize| {
        let rows = |index: usize| -> Weight {
            match &expert.matrices {
                Matrices::Plain(values) => {
                    Matrix::from_f32(&values[index], f, h).row_slice(start, 1, end - start).into()
                }
                Matrices::Packed(packed) => packed[index].row_slice(start, end - start).into(),
            }
        };
        let down: Weight = match &expert.matrices {
            Matrices::Plain(values) => {
                Matrix::from_f32(&values[2], h, f).col_slice(start, end - start).into()
            }
            Matrices::Packed(packed) => packed[2].col_slice(start, end - start).into(),
        };
        let bias = |index: usize| expert.bias.as_ref().map(|bias| bias[index][start..end].to_vec());
        ExpertPiece {
            expert: id,
            gate: rows(0),
            up: rows(1),
            down,
            gate_bias: bias(0),
            up_bias: bias(1),
            down_bias: expert.bias.as_ref().filter(|_| start == 0).map(|bias| bias[2].clone()),
        }
    };
    [(0, cut), (cut, f)]
        .into_iter()
        .filter(|(start, end)| start < end)
        .map(|(start, end)| run(start, end))
        .collect()
}
