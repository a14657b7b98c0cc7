//! One sparse layer from embedding to residual, with packed weights: the same calls on the CPU and on the shim's GPU, step
//! by step the same bits. Nothing is read on the host in between.

use gaterail_kernels::ops::{self, *};
use gaterail_kernels::{Buffer, Device, Matrix, Stream, View, ViewMut, Weight};
use gaterail_shim::Shim;

mod common;
use common::{Random, get, put, same, streams};

const H: usize = 96;
const F: usize = 160;
const EXPERTS: usize = 6;
const TOP_K: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D: usize = 24;
const VOCABULARY: usize = 40;
const PAGES: usize = 12;

/// A layer's weights on the CPU.
struct Layer {
    embedding: Weight,
    norm: Vec<f32>,
    query: Weight,
    key: Weight,
    value: Weight,
    output: Weight,
    gate: Weight,
    /// Two shards.
    shards: [Vec<ExpertPiece>; 2],
}

impl Layer {
    fn new(random: &mut Random, cpu: &Device) -> Layer {
        let mut matrix = |rows, cols| {
            let values: Vec<f32> = random.values(rows * cols).iter().map(|value| value * 0.3).collect();
            Matrix::from_f32(&values, rows, cols)
        };
        let packed = |matrix: &Matrix, packing| ops::pack(cpu, matrix, packing, &mut Default::default());
        let mut expert = |expert: usize| ExpertPiece {
            expert: expert as u32,
            gate: packed(&matrix(F, H), Packing::Int4).into(),
            up: packed(&matrix(F, H), Packing::Int4).into(),
            down: packed(&matrix(H, F), Packing::Int4).into(),
            gate_bias: None,
            up_bias: None,
            down_bias: None,
        };
        let shards = [(0..2).map(&mut expert).collect(), (2..EXPERTS).map(&mut expert).collect()];
        Layer {
            embedding: matrix(VOCABULARY, H).to_bf16().into(),
            query: packed(&matrix(HEADS * D, H), Packing::Int4).into(),
            key: packed(&matrix(KV_HEADS * D, H), Packing::Int4).into(),
            value: packed(&matrix(KV_HEADS * D, H), Packing::Int8).into(),
            output: packed(&matrix(H, HEADS * D), Packing::Int8).into(),
            gate: matrix(EXPERTS, H).into(),
            shards,
            norm: random.values(H),
        }
    }
}

/// A layer at home on a device, and its cache.
struct Run<'a> {
    stream: &'a Stream,
    rows: usize,
    quantized: QuantRows,
}

impl Run<'_> {
    fn zeros(&self, len: usize) -> Buffer<f32> {
        Buffer::zeros(self.stream.device(), len).expect("memory")
    }

    fn here(&self, weight: &Weight) -> Weight {
        weight.on(self.stream.device()).expect("memory")
    }

    fn project(&mut self, x: &Buffer<f32>, width: usize, w: &Weight) -> Buffer<f32> {
        let w = self.here(w);
        let mut out = self.zeros(self.rows * w.rows());
        let to = ViewMut::rows(&mut out, self.rows, w.rows());
        let mut product = [Projection { w: &w, bias: None, out: to }];
        ops::project(self.stream, View::rows(x, self.rows, width), &mut self.quantized, &mut product);
        out
    }

    fn norm(&self, x: &Buffer<f32>, weight: &Buffer<f32>) -> Buffer<f32> {
        let mut out = self.zeros(self.rows * H);
        let from = View::rows(x, self.rows, H);
        ops::rms_norm(self.stream, from, Some(weight), 1e-6, ViewMut::rows(&mut out, self.rows, H));
        out
    }

    /// Keys and values into pages, and attention over them.
    fn attend(&mut self, normed: &Buffer<f32>, layer: &Layer, rows: &Rows) -> Buffer<f32> {
        let (stream, n) = (self.stream, self.rows);
        let [mut q, mut k, v] =
            [&layer.query, &layer.key, &layer.value].map(|weight| self.project(normed, H, weight));
        let (cos, sin) = (put(stream, &rows.cos), put(stream, &rows.sin));
        ops::rope(stream, RopeStyle::Halves, &cos, &sin, ViewMut::heads(&mut q, n, HEADS, D));
        ops::rope(stream, RopeStyle::Halves, &cos, &sin, ViewMut::heads(&mut k, n, KV_HEADS, D));
        let room = PAGES * KV_HEADS * PAGE_POSITIONS * D;
        let cache = || KvBuffer::zeros(stream.device(), KvForm::F16, room).expect("memory");
        let (mut keys, mut values) = (cache(), cache());
        let slots = put(stream, &rows.slots);
        for (from, cache) in [(&k, &mut keys), (&v, &mut values)] {
            let from = View::heads(from, n, KV_HEADS, D);
            ops::kv_write(stream, &KvWrite { from, slots: &slots, width: D, column: 0 }, cache);
        }
        let mut out = self.zeros(n * HEADS * D);
        let args = AttentionArgs {
            q: View::heads(&q, n, HEADS, D),
            kv: KvView {
                keys: &keys,
                values: Some(&values),
                kv_heads: KV_HEADS,
                key_width: D,
                value_width: D,
            },
            tables: &put(stream, &rows.table),
            table_stride: rows.table.len(),
            sequences: &put(stream, &vec![0u32; n]),
            positions: &put(stream, &rows.positions),
            mask: Mask::Full,
            sinks: None,
            scale: 0.2,
        };
        ops::attention(stream, &args, ViewMut::heads(&mut out, n, HEADS, D));
        out
    }

    /// Gate, experts of both shards, sums.
    fn experts(&mut self, normed: &Buffer<f32>, layer: &Layer) -> (Buffer<u32>, Buffer<f32>) {
        let (stream, device, n) = (self.stream, self.stream.device(), self.rows);
        let logits = self.project(normed, H, &layer.gate);
        let mut ids = put(stream, &vec![0u32; n * TOP_K]);
        let mut weights = self.zeros(n * TOP_K);
        let gate = Gate { score: Score::Softmax, groups: None, normalise: Some(0.0), scale: 1.0 };
        let out = GateOutput { ids: &mut ids, weights: &mut weights, top_k: TOP_K };
        ops::select(stream, &gate, View::rows(&logits, n, EXPERTS), None, out);
        let mut scratch = ExpertsScratch::new(device).expect("memory");
        let [mut total, mut partial] = [(); 2].map(|()| PartialSums::new(device, n, H).expect("memory"));
        total.reset(stream, n);
        for shard in &layer.shards {
            let pieces = ExpertPieces::on(device, shard.clone()).expect("packed experts");
            let args = ExpertsArgs {
                x: View::rows(normed, n, H).into(),
                ids: &ids,
                weights: &weights,
                top_k: TOP_K,
                pieces: &pieces,
                activation: Activation::SwiGlu,
                weight_on: WeightOn::Output,
                unit: UNIT_MIN,
                fraction_bits: FRACTION_BITS,
            };
            partial.reset(stream, n);
            ops::experts(stream, &args, &mut scratch, &mut partial).expect("memory");
            partial_sums::add(stream, &partial, &mut total);
        }
        let mut out = self.zeros(n * H);
        partial_sums::finish(stream, &total, FRACTION_BITS, ViewMut::rows(&mut out, n, H));
        (ids, out)
    }

    /// Residual, choices, and the last row alone.
    fn layer(&mut self, layer: &Layer, rows: &Rows) -> (Vec<f32>, Vec<u32>, Vec<f32>) {
        let (stream, n) = (self.stream, self.rows);
        let mut residual = self.zeros(n * H);
        let tokens = put(stream, &rows.tokens);
        ops::embed(stream, &tokens, &self.here(&layer.embedding), ViewMut::rows(&mut residual, n, H));
        let norm = put(stream, &layer.norm);
        let normed = self.norm(&residual, &norm);
        let attended = self.attend(&normed, layer, rows);
        let attended = self.project(&attended, HEADS * D, &layer.output);
        ops::add(stream, ViewMut::rows(&mut residual, n, H), View::rows(&attended, n, H));
        let normed = self.norm(&residual, &norm);
        let (ids, out) = self.experts(&normed, layer);
        ops::add(stream, ViewMut::rows(&mut residual, n, H), View::rows(&out, n, H));
        let mut last = self.zeros(H);
        let index = put(stream, &[n as u32 - 1]);
        ops::gather_rows(stream, View::rows(&residual, n, H), &index, ViewMut::rows(&mut last, 1, H));
        (get(stream, &residual), get(stream, &ids), get(stream, &last))
    }
}

/// A batch: the first rows of one sequence.
struct Rows {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    table: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

fn batch(random: &mut Random, rows: usize) -> Rows {
    let table: Vec<u32> = (0..rows.div_ceil(PAGE_POSITIONS) as u32).map(|page| 7 - page).collect();
    let positions: Vec<u32> = (0..rows as u32).collect();
    Rows {
        tokens: (0..rows).map(|_| random.below(VOCABULARY) as u32).collect(),
        slots: positions.iter().map(|&at| table[at as usize / PAGE_POSITIONS] * 64 + at % 64).collect(),
        positions,
        table,
        cos: random.values(rows * D / 2),
        sin: random.values(rows * D / 2),
    }
}

#[test]
fn a_layer_gives_the_same_bits_on_the_cpu_and_on_a_gpu() {
    let cpu = streams().pop().expect("a CPU");
    let shims = [0, 3].map(|seed| Stream::new(&Device::Cuda(Shim::device(seed))));
    for rows in [1, 5, 40, 130] {
        let random = &mut Random(rows as u64);
        let layer = Layer::new(random, cpu.device());
        let batch = batch(random, rows);
        let run = |stream: &Stream| {
            let quantized = QuantRows::new(stream.device(), rows, H.max(HEADS * D)).expect("memory");
            Run { stream, rows, quantized }.layer(&layer, &batch)
        };
        let (residual, ids, last) = run(&cpu);
        assert!(residual.iter().all(|value| value.is_finite()) && residual.iter().any(|value| *value != 0.0));
        for stream in &shims {
            let what = format!("{rows} rows on {}", stream.device());
            let (got, got_ids, got_last) = run(stream);
            assert_eq!(got_ids, ids, "{what}");
            same(&what, &got, &residual);
            same(&what, &got_last, &last);
            assert_eq!(got_last, got[(rows - 1) * H..], "{what}: the last row");
        }
    }
}
