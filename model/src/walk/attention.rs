//! The first half of a layer: norm, projections, positions, KV, attention, output projection.
//!
//! Keys and values of all rows are stored. Behind the last layer's, rows whose logits nobody wants have nothing left to do: from
//! there on only the others go.

use gaterail_kernels::ops::{self, AttentionArgs, KvBuffer, KvView, KvWrite, Mask, Projection, QuantRows};
use gaterail_kernels::{Buffer, Stream, View, ViewMut};

use super::cursor::Cursor;
use super::lane::Lane;
use super::workspace::{Inputs, RowInputs, Workspace};
use crate::kv::LayerKv;
use crate::spec::{AttentionSpec, GroupedSpec, LatentSpec, QkNorm, RopeUse};
use crate::weights::{AttentionWeights, Latent, Linear};

impl Cursor {
    /// hidden <- hidden + attention(norm(hidden))
    pub(super) fn attention(&mut self, lane: &mut Lane, layer: usize) {
        let spec = lane.spec.clone();
        let weights = lane.weights.clone();
        let stream = lane.stream().clone();
        let kv = lane.kv.layer(layer);
        let (rows, work) = (self.rows, &mut self.work);
        let at = &weights.layers[layer];
        let hidden = View::rows(&work.hidden, rows, spec.hidden);
        let normed = ViewMut::rows(&mut work.normed, rows, spec.hidden);
        ops::rms_norm(&stream, hidden, Some(&at.input_norm), spec.norm_eps, normed);
        let narrows = self.narrows && layer + 1 == spec.layers.len();
        let asked = if narrows { self.wanted } else { rows };
        let call = Call { stream: &stream, rows, asked, narrows, hidden: spec.hidden, eps: spec.norm_eps };
        match (&spec.layers[layer].attention, &at.attention) {
            (AttentionSpec::Grouped(spec), weights) => call.grouped(spec, weights, work, kv),
            (AttentionSpec::Latent(spec), AttentionWeights::Latent(weights)) => {
                call.latent(spec, weights, work, kv)
            }
            (AttentionSpec::Latent(_), _) => panic!("weights of another attention"),
        }
        self.rows = asked;
        if asked > 0 {
            let projected = View::rows(&work.projected, asked, spec.hidden);
            ops::add(&stream, ViewMut::rows(&mut work.hidden, asked, spec.hidden), projected);
        }
    }
}

/// What both kinds of attention share in one layer.
struct Call<'a> {
    stream: &'a Stream,
    /// Rows whose keys and values are stored.
    rows: usize,
    /// Rows that go on from there.
    asked: usize,
    /// Whether those are not all.
    narrows: bool,
    hidden: usize,
    eps: f32,
}

impl Call<'_> {
    /// normed -> projected
    fn grouped(
        &self,
        spec: &GroupedSpec,
        weights: &AttentionWeights,
        work: &mut Workspace,
        kv: &mut LayerKv,
    ) {
        let AttentionWeights::Grouped { query, key, value, output, query_norm, key_norm, sinks } = weights
        else {
            panic!("weights of another attention");
        };
        let (rows, asked, stream) = (self.rows, self.asked, self.stream);
        let (heads, kv_heads, dim) = (spec.heads, spec.kv_heads, spec.head_dim);
        let x = View::rows(&work.normed, rows, self.hidden);
        let key_value = [projection(key, rows, &mut work.key), projection(value, rows, &mut work.value)];
        if self.narrows {
            let mut projections = key_value;
            ops::project(stream, x, &mut work.quantized, &mut projections);
        } else {
            let [key, value] = key_value;
            let mut projections = [projection(query, rows, &mut work.query), key, value];
            ops::project(stream, x, &mut work.quantized, &mut projections);
        }
        let keys = Heads { spec, call: self, count: kv_heads, rows };
        keys.turn(&mut work.key, &mut work.key_normed, key_norm.as_ref(), &work.inputs.rows);
        if let Some(limit) = spec.clip {
            ops::clamp(stream, limit, ViewMut::rows(&mut work.value, rows, kv_heads * dim));
        }
        let Some(values) = kv.values.as_mut() else { panic!("a cache of another attention") };
        self.store(View::heads(&work.key, rows, kv_heads, dim), &work.inputs, (dim, 0), &mut kv.keys);
        self.store(View::heads(&work.value, rows, kv_heads, dim), &work.inputs, (dim, 0), values);
        if asked == 0 {
            return;
        }
        if self.narrows {
            self.narrow(work);
            self.linear(&work.normed, self.hidden, query, &mut work.quantized, &mut work.query);
        }
        let of = if self.narrows { &work.inputs.asked } else { &work.inputs.rows };
        let queries = Heads { spec, call: self, count: heads, rows: asked };
        queries.turn(&mut work.query, &mut work.query_normed, query_norm.as_ref(), of);
        if spec.temperature.is_some() {
            let query = ViewMut::heads(&mut work.query, asked, heads, dim);
            ops::scale_rows(stream, &of.temperature, query);
        }
        let args = AttentionArgs {
            q: View::heads(&work.query, asked, heads, dim),
            kv: KvView { keys: &kv.keys, values: Some(values), kv_heads, key_width: dim, value_width: dim },
            tables: &work.inputs.tables,
            table_stride: work.inputs.table_stride,
            sequences: &of.sequences,
            positions: &of.positions,
            mask: spec.mask,
            sinks: sinks.as_ref(),
            scale: spec.scale,
        };
        ops::attention(stream, &args, ViewMut::heads(&mut work.attended, asked, heads, dim));
        self.linear(&work.attended, heads * dim, output, &mut work.quantized, &mut work.projected);
    }

    /// normed -> projected, in the absorbed form: queries meet the stored latents directly.
    fn latent(&self, spec: &LatentSpec, weights: &Latent, work: &mut Workspace, kv: &mut LayerKv) {
        let (rows, asked, stream, heads) = (self.rows, self.asked, self.stream, spec.heads);
        let (rank, nope, rotated, stored) = (spec.kv_rank, spec.nope_dim, spec.rope_dim, spec.stored_dim());
        let x = View::rows(&work.normed, rows, self.hidden);
        let key = projection(&weights.kv_a, rows, &mut work.key);
        ops::project(stream, x, &mut work.quantized, &mut [key]);
        let latent = View::rows(&work.key, rows, stored).columns(0, rank);
        let normed = ViewMut::rows(&mut work.key_normed, rows, rank);
        ops::rms_norm(stream, latent, Some(&weights.kv_norm), spec.norm_eps, normed);
        let turned = ViewMut::heads(&mut work.key, rows, 1, stored).columns(rank, rotated);
        self.rope(spec.rope, &work.inputs.rows, turned);
        self.store(View::rows(&work.key_normed, rows, rank), &work.inputs, (stored, 0), &mut kv.keys);
        let turned = View::rows(&work.key, rows, stored).columns(rank, rotated);
        self.store(turned, &work.inputs, (stored, rank), &mut kv.keys);

        if asked == 0 {
            return;
        }
        if self.narrows {
            self.narrow(work);
        }
        self.latent_query(spec, weights, work);
        let of = if self.narrows { &work.inputs.asked } else { &work.inputs.rows };
        let raw = View::heads(&work.attended, asked, heads, spec.query_dim());
        let absorbed = ViewMut::heads(&mut work.query, asked, heads, stored).columns(0, rank);
        ops::linear_heads(stream, raw.columns(0, nope), &weights.key_up, absorbed);
        let turned = ViewMut::heads(&mut work.query, asked, heads, stored).columns(rank, rotated);
        ops::copy_rows(stream, raw.columns(nope, rotated), turned);
        let turned = ViewMut::heads(&mut work.query, asked, heads, stored).columns(rank, rotated);
        self.rope(spec.rope, of, turned);
        let args = AttentionArgs {
            q: View::heads(&work.query, asked, heads, stored),
            kv: KvView { keys: &kv.keys, values: None, kv_heads: 1, key_width: stored, value_width: rank },
            tables: &work.inputs.tables,
            table_stride: work.inputs.table_stride,
            sequences: &of.sequences,
            positions: &of.positions,
            mask: Mask::Full,
            sinks: None,
            scale: spec.scale,
        };
        ops::attention(stream, &args, ViewMut::heads(&mut work.latent, asked, heads, rank));
        let latent = View::heads(&work.latent, asked, heads, rank);
        let values = ViewMut::heads(&mut work.attended, asked, heads, spec.value_dim);
        ops::linear_heads(stream, latent, &weights.value_up, values);
        self.linear(
            &work.attended,
            heads * spec.value_dim,
            &weights.output,
            &mut work.quantized,
            &mut work.projected,
        );
    }

    /// normed -> attended `[T, heads, nope + rope]`, by way of the query's own low rank where it has one.
    fn latent_query(&self, spec: &LatentSpec, weights: &Latent, work: &mut Workspace) {
        let (rows, stream) = (self.asked, self.stream);
        let raw = spec.heads * spec.query_dim();
        match (&weights.query_a, spec.q_rank) {
            (Some((down, norm)), Some(rank)) => {
                self.linear(&work.normed, self.hidden, down, &mut work.quantized, &mut work.latent);
                let low = View::rows(&work.latent, rows, rank);
                ops::rms_norm(
                    stream,
                    low,
                    Some(norm),
                    spec.norm_eps,
                    ViewMut::rows(&mut work.query_normed, rows, rank),
                );
                let low = View::rows(&work.query_normed, rows, rank);
                ops::linear(stream, low, &weights.query, None, ViewMut::rows(&mut work.attended, rows, raw));
            }
            _ => {
                let x = View::rows(&work.normed, rows, self.hidden);
                ops::linear(stream, x, &weights.query, None, ViewMut::rows(&mut work.attended, rows, raw));
            }
        }
    }

    /// Leaves only the rows that are asked for in `hidden` and `normed`, in the order of `Batch::logits`.
    fn narrow(&self, work: &mut Workspace) {
        for rows in [&mut work.normed, &mut work.hidden] {
            let all = View::rows(rows, self.rows, self.hidden);
            // What comes home from experts goes there, later.
            let asked = ViewMut::rows(&mut work.combined, self.asked, self.hidden);
            ops::gather_rows(self.stream, all, &work.inputs.wanted, asked);
            std::mem::swap(rows, &mut work.combined);
        }
    }

    /// Of the rows that are asked for.
    fn linear(
        &self,
        x: &Buffer<f32>,
        width: usize,
        by: &Linear,
        quantized: &mut QuantRows,
        out: &mut Buffer<f32>,
    ) {
        let x = View::rows(x, self.asked, width);
        ops::project(self.stream, x, quantized, &mut [projection(by, self.asked, out)]);
    }

    fn rope(&self, rope: RopeUse, of: &RowInputs, x: ViewMut<'_>) {
        let (cos, sin) = &of.angles[rope.index];
        ops::rope(self.stream, rope.style, cos, sin, x);
    }

    /// Writes rows into the columns from `place.1` on of cache rows that are `place.0` wide.
    fn store(&self, from: View<'_>, inputs: &Inputs, place: (usize, usize), cache: &mut KvBuffer) {
        let write = KvWrite { from, slots: &inputs.slots, width: place.0, column: place.1 };
        ops::kv_write(self.stream, &write, cache);
    }
}

/// Queries or keys of grouped attention.
struct Heads<'a> {
    spec: &'a GroupedSpec,
    call: &'a Call<'a>,
    /// Heads of a row.
    count: usize,
    rows: usize,
}

impl Heads<'_> {
    /// Norm, clip and position, in the model's order.
    fn turn(
        &self,
        x: &mut Buffer<f32>,
        scratch: &mut Buffer<f32>,
        weight: Option<&Buffer<f32>>,
        of: &RowInputs,
    ) {
        let (spec, dim, stream) = (self.spec, self.spec.head_dim, self.call.stream);
        match spec.qk_norm {
            QkNorm::PerHead => self.norm(x, scratch, weight, (self.count, dim)),
            QkNorm::AllHeads => self.norm(x, scratch, weight, (1, self.count * dim)),
            _ => {}
        }
        if let Some(limit) = spec.clip {
            ops::clamp(stream, limit, ViewMut::rows(x, self.rows, self.count * dim));
        }
        if let Some(rope) = spec.rope {
            self.call.rope(rope, of, ViewMut::heads(x, self.rows, self.count, dim));
        }
        if spec.qk_norm == QkNorm::AfterRope {
            self.norm(x, scratch, None, (self.count, dim));
        }
    }

    /// Norms `x` by way of `scratch`, which takes its place.
    fn norm(
        &self,
        x: &mut Buffer<f32>,
        scratch: &mut Buffer<f32>,
        weight: Option<&Buffer<f32>>,
        (heads, width): (usize, usize),
    ) {
        let from = View::heads(x, self.rows, heads, width);
        let to = ViewMut::heads(scratch, self.rows, heads, width);
        ops::rms_norm(self.call.stream, from, weight, self.call.eps, to);
        std::mem::swap(x, scratch);
    }
}

/// A projection of `rows` rows to the front of a buffer.
pub(super) fn projection<'a>(by: &'a Linear, rows: usize, out: &'a mut Buffer<f32>) -> Projection<'a> {
    let out = ViewMut::rows(out, rows, by.weight.rows());
    Projection { w: &by.weight, bias: by.bias.as_ref(), out }
}
