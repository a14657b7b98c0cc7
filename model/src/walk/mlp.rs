//! The second half of a layer on the lane: norm, gate, shared expert, dense layers.

use gaterail_kernels::ops::{self, Activation, GateOutput, QuantRows};
use gaterail_kernels::{Buffer, Stream, View, ViewMut};

use super::attention::projection;
use super::cursor::Cursor;
use super::lane::Lane;
use crate::weights::{Mlp, MlpWeights, SparseWeights};

impl Cursor {
    pub(super) fn post_norm(&mut self, lane: &Lane, layer: usize) {
        let (spec, work) = (&lane.spec, &mut self.work);
        let hidden = View::rows(&work.hidden, self.rows, spec.hidden);
        let normed = ViewMut::rows(&mut work.normed, self.rows, spec.hidden);
        let weight = &lane.weights.layers[layer].post_norm;
        ops::rms_norm(lane.stream(), hidden, Some(weight), spec.norm_eps, normed);
    }

    /// Logits, then the K experts of every row.
    pub(super) fn gate(&mut self, lane: &Lane, layer: usize) {
        let (spec, stream, work) = (&lane.spec, lane.stream(), &mut self.work);
        let (Some(sparse), MlpWeights::Sparse(weights)) =
            (spec.layers[layer].mlp.sparse(), &lane.weights.layers[layer].mlp)
        else {
            panic!("layer {layer} is not sparse");
        };
        let x = View::rows(&work.normed, self.rows, spec.hidden);
        let logits = projection(&weights.router, self.rows, &mut work.router);
        ops::project(stream, x, &mut work.quantized, &mut [logits]);
        let logits = View::rows(&work.router, self.rows, sparse.experts);
        let out = GateOutput { ids: &mut work.ids, weights: &mut work.weights, top_k: sparse.top_k };
        ops::select(stream, &sparse.gate, logits, weights.correction.as_ref(), out);
    }

    pub(super) fn shared_expert(&mut self, lane: &Lane, weights: &SparseWeights) {
        let (hidden, stream, rows) = (lane.spec.hidden, lane.stream(), self.rows);
        let Some(shared) = &weights.shared else { return };
        let work = &mut self.work;
        let buffers = MlpBuffers {
            x: &work.normed,
            gate: &mut work.gate,
            up: &mut work.up,
            quantized: &mut work.quantized,
            out: &mut work.shared,
        };
        mlp(stream, shared, rows, buffers);
        if let Some(logit) = &weights.shared_logit {
            let x = View::rows(&self.work.normed, rows, hidden);
            ops::linear(stream, x, logit, None, ViewMut::rows(&mut self.work.shared_logit, rows, 1));
        }
    }

    /// hidden <- hidden + (routed + shared)
    pub(super) fn add_combined(&mut self, lane: &Lane, weights: &SparseWeights) {
        let (hidden, stream, rows) = (lane.spec.hidden, lane.stream(), self.rows);
        let work = &mut self.work;
        if weights.shared.is_some() {
            let shared = View::rows(&work.shared, rows, hidden);
            let combined = ViewMut::rows(&mut work.combined, rows, hidden);
            match &weights.shared_logit {
                Some(_) => ops::add_gated(stream, combined, shared, &work.shared_logit),
                None => ops::add(stream, combined, shared),
            }
        }
        let combined = View::rows(&work.combined, rows, hidden);
        ops::add(stream, ViewMut::rows(&mut work.hidden, rows, hidden), combined);
    }

    pub(super) fn dense(&mut self, lane: &Lane, layer: usize) {
        let (hidden, stream, rows) = (lane.spec.hidden, lane.stream(), self.rows);
        let MlpWeights::Dense(weights) = &lane.weights.layers[layer].mlp else {
            panic!("layer {layer} is not dense");
        };
        let work = &mut self.work;
        let buffers = MlpBuffers {
            x: &work.normed,
            gate: &mut work.gate,
            up: &mut work.up,
            quantized: &mut work.quantized,
            out: &mut work.projected,
        };
        mlp(stream, weights, rows, buffers);
        let projected = View::rows(&self.work.projected, rows, hidden);
        ops::add(stream, ViewMut::rows(&mut self.work.hidden, rows, hidden), projected);
    }
}

/// The buffers of one MLP.
struct MlpBuffers<'a> {
    x: &'a Buffer<f32>,
    gate: &'a mut Buffer<f32>,
    up: &'a mut Buffer<f32>,
    quantized: &'a mut QuantRows,
    out: &'a mut Buffer<f32>,
}

/// `out <- down(silu(gate(x)) * up(x))`, all `[rows, …]`.
fn mlp(stream: &Stream, weights: &Mlp, rows: usize, b: MlpBuffers<'_>) {
    let (width, hidden) = (weights.gate.weight.rows(), weights.gate.weight.cols());
    let x = View::rows(b.x, rows, hidden);
    let both = &mut [projection(&weights.gate, rows, b.gate), projection(&weights.up, rows, b.up)];
    ops::project(stream, x, b.quantized, both);
    let gate = ViewMut::rows(b.gate, rows, width);
    ops::activation(stream, Activation::SwiGlu, gate, View::rows(b.up, rows, width));
    let gate = View::rows(b.gate, rows, width);
    ops::project(stream, gate, b.quantized, &mut [projection(&weights.down, rows, b.out)]);
}
