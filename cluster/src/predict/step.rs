//! The time of one step, by term.

use gaterail_proto::{Placement, WorkerId};
use serde::Serialize;

use super::rates::{Compute, Rates, Walked, WorkerRate, shared_finish};
use super::routing::{Drawn, LayerDraw, Routing};
use super::shape::{LayerShape, Shape, Step};
use crate::exchange::{ExchangeKind, HEADER_BYTES, Road, RowForm, Traffic, call_bytes};

/// Where the experts are.
#[derive(Clone, Copy, Debug)]
pub enum Where<'a> {
    /// In the router's process.
    Local,
    On(&'a Placement),
}

/// Parts of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// Attention, dense layers.
    Trunk,
    Gate,
    /// Rows on their way to the workers.
    Dispatch,
    /// The experts, on the mean of the workers.
    Experts,
    /// What the slowest worker takes beyond that.
    Wait,
    /// Sums on their way home.
    Combine,
    /// Embedding, head.
    Ends,
    /// Tokens out of logits.
    Sampling,
}

/// Seconds of each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Terms {
    pub trunk: f64,
    pub gate: f64,
    pub dispatch: f64,
    pub experts: f64,
    pub wait: f64,
    pub combine: f64,
    pub ends: f64,
    pub sampling: f64,
}

/// What a step costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub step: Step,
    pub terms: Terms,
    /// Bytes of frames, both ways, a row.
    pub bytes_per_row: f64,
    /// Frames, both ways, a step.
    pub hops: f64,
    /// The slowest worker's time in its experts over the mean: 1 is even.
    pub imbalance: f64,
    /// Bytes of experts that each worker holds.
    pub memory: Vec<(WorkerId, f64)>,
    /// Different experts of a layer that the step's rows meet.
    pub touched: f64,
}

impl Terms {
    pub fn total(&self) -> f64 {
        self.all().iter().map(|(_, seconds)| seconds).sum()
    }

    pub fn all(&self) -> [(Term, f64); 8] {
        [
            (Term::Trunk, self.trunk),
            (Term::Gate, self.gate),
            (Term::Dispatch, self.dispatch),
            (Term::Experts, self.experts),
            (Term::Wait, self.wait),
            (Term::Combine, self.combine),
            (Term::Ends, self.ends),
            (Term::Sampling, self.sampling),
        ]
    }
}

impl Prediction {
    /// Rows a second, if one step follows another.
    pub fn rows_per_second(&self) -> f64 {
        f64::from(self.step.rows) / self.terms.total()
    }
}

/// Routings drawn for each layer: fewer where many rows even out.
const DRAWS_MAX: u32 = 96;
const DRAWS_MIN: u32 = 4;
const ROWS_DRAWN: u32 = 8192;
const SEED: u64 = 0x6761_7465_7261_696c;

/// What a step costs. `placement` is one of this model's and of workers that `rates` has; others panic.
pub fn predict(shape: &Shape, rates: &Rates, at: Where<'_>, step: Step, drawn: Drawn<'_>) -> Prediction {
    let rows = f64::from(step.rows);
    let mut terms = match nearest(&rates.walked, step) {
        Some(walked) => beside(shape, rates, walked, step),
        None => lane(shape, rates, step),
    };
    let (mut travel, mut touched) = (Travel::default(), 0.0);
    let mut memory = Vec::new();
    let mut routing = Routing::new(SEED);
    match at {
        Where::Local => (terms.experts, touched) = local(shape, rates, step, drawn, &mut routing),
        Where::On(placement) => {
            let cluster = Cluster::new(shape, rates, placement);
            for (at, held) in cluster.layers.iter().enumerate() {
                let layer = &shape.layers[at];
                let draw = drawn.layer(at, held.0, layer.experts);
                let sample = cluster.layer(layer, held, shape.rows(at, step), draw, &mut routing);
                touched += sample.touched;
                terms.dispatch += sample.dispatch;
                terms.experts += sample.experts;
                terms.wait += sample.wait;
                terms.combine += sample.combine;
                travel.bytes += sample.travel.bytes;
                travel.frames += sample.travel.frames;
            }
            memory = cluster.memory(shape);
        }
    }
    Prediction {
        step,
        terms,
        bytes_per_row: travel.bytes / rows,
        hops: travel.frames,
        imbalance: if terms.experts > 0.0 { (terms.experts + terms.wait) / terms.experts } else { 1.0 },
        memory,
        touched: touched / shape.layers.len().max(1) as f64,
    }
}

/// The walked step that is most like this one.
fn nearest(walked: &[Walked], step: Step) -> Option<&Walked> {
    let apart = |a: u32, b: u32| (f64::from(a.max(1)) / f64::from(b.max(1))).ln().abs();
    let off = |one: &Walked| {
        let Step { rows, sequences, context } = one.step;
        apart(rows, step.rows) + apart(sequences, step.sequences) + apart(context, step.context)
    };
    walked.iter().min_by(|a, b| off(a).total_cmp(&off(b)))
}

/// All that is not experts, from a step that was walked: as many times as much as the rates say.
fn beside(shape: &Shape, rates: &Rates, walked: &Walked, step: Step) -> Terms {
    let &Walked { step: known, trunk, gate, ends, sampling } = walked;
    let (this, that) = (lane(shape, rates, step), lane(shape, rates, known));
    let times = |this: f64, that: f64| if this == that || that <= 0.0 { 1.0 } else { this / that };
    Terms {
        trunk: trunk * times(this.trunk, that.trunk),
        gate: gate * times(this.gate, that.gate),
        ends: ends * times(this.ends, that.ends),
        sampling: sampling * times(step.sequences.into(), known.sequences.into()),
        ..Terms::default()
    }
}

/// All that is not experts, from the rates of products and attention.
fn lane(shape: &Shape, rates: &Rates, step: Step) -> Terms {
    let Rates { router, attention, .. } = rates;
    let (rows, last) = (f64::from(step.rows), f64::from(step.sequences));
    let gate = |(at, layer): (usize, &LayerShape)| {
        let rows = f64::from(shape.rows(at, step));
        let operations = 2.0 * f64::from(layer.hidden) * f64::from(layer.experts) * rows;
        product(router, layer.gate_bytes, operations, rows)
    };
    let projections = product(router, shape.trunk_bytes, shape.trunk_operations_per_row * rows, rows);
    let ends = product(router, shape.head_bytes, shape.head_operations_per_row * last, last);
    let (seen, stored) = (rows * f64::from(step.context), last * f64::from(step.context));
    let kv = stored * shape.kv_bytes_per_position / attention.read_bytes_per_second;
    let pairs = seen * shape.attention_operations_per_position / attention.operations_per_second;
    let trunk = projections + kv.max(pairs) + router.call_seconds * shape.layers.len() as f64;
    Terms { trunk, gate: shape.layers.iter().enumerate().map(gate).sum(), ends, ..Terms::default() }
}

/// A product of `rows` rows with weights that are read once.
fn product(at: &Compute, bytes: f64, operations: f64, rows: f64) -> f64 {
    (bytes / at.read_bytes_per_second).max(at.seconds(operations, rows))
}

fn draws(rows: u32) -> u32 {
    (ROWS_DRAWN / rows.max(1)).clamp(DRAWS_MIN, DRAWS_MAX)
}

/// Seconds of all experts, and how many different ones they are.
fn local(shape: &Shape, rates: &Rates, step: Step, drawn: Drawn<'_>, routing: &mut Routing) -> (f64, f64) {
    let (mut seconds, mut touched, mut first) = (0.0, 0.0, 0);
    for (at, layer) in shape.layers.iter().enumerate() {
        let draw = drawn.layer(at, first, layer.experts);
        first += layer.experts as usize;
        let (rows, own) = (shape.rows(at, step), &rates.own);
        let count = draws(rows);
        let (mut distinct, mut computed) = (0, 0.0);
        for _ in 0..count {
            let hit = Hit::draw(layer, rows, &draw, routing);
            for &rows in hit.rows.iter().filter(|&&rows| rows > 0) {
                let rows = f64::from(rows);
                distinct += 1;
                computed += own.seconds(layer.expert_operations() * rows, rows);
            }
        }
        let distinct = f64::from(distinct) / f64::from(count);
        touched += distinct;
        let bytes = distinct * layer.expert_bytes;
        let busy = (bytes / own.read_bytes_per_second).max(computed / f64::from(count));
        seconds += busy + own.call_seconds;
    }
    (seconds, touched)
}

/// One drawn step of a layer.
struct Hit {
    /// By row: its experts.
    chosen: Vec<Vec<u32>>,
    /// By expert: how many rows it has.
    rows: Vec<u32>,
}

impl Hit {
    fn draw(layer: &LayerShape, rows: u32, draw: &LayerDraw<'_>, routing: &mut Routing) -> Hit {
        let chosen = routing.rows(layer.experts, layer.top_k, draw, rows);
        let mut rows = vec![0; layer.experts as usize];
        chosen.iter().flatten().for_each(|&expert| rows[expert as usize] += 1);
        Hit { chosen, rows }
    }
}

/// Copies of an expert: worker, and its part from 0 to 1.
type Copies = Vec<Vec<(usize, f64)>>;

struct Cluster<'a> {
    workers: Vec<&'a WorkerRate>,
    hosts: &'a [f64],
    /// By layer: the number of its first expert, and each one's copies.
    layers: Vec<(usize, Vec<Copies>)>,
}

#[derive(Clone, Copy, Default)]
struct Travel {
    bytes: f64,
    frames: f64,
}

/// A layer's mean over all draws.
#[derive(Clone, Copy, Default)]
struct Sample {
    dispatch: f64,
    experts: f64,
    wait: f64,
    combine: f64,
    travel: Travel,
    touched: f64,
}

impl<'a> Cluster<'a> {
    fn new(shape: &Shape, rates: &'a Rates, placement: &Placement) -> Cluster<'a> {
        let rate = |id: &WorkerId| {
            let found = rates.workers.iter().find(|rate| rate.worker == *id);
            found.unwrap_or_else(|| panic!("no rates of worker {id}"))
        };
        let mut places = placement.experts.iter();
        let mut first = 0;
        let layers = shape.layers.iter().map(|layer| {
            let places = places.by_ref().take(layer.experts as usize);
            let copies = places.map(|place| {
                let copy = |copy: &gaterail_proto::ExpertCopy| {
                    let part = |run: &gaterail_proto::UnitRun| {
                        let units = run.units.end - run.units.start;
                        (run.worker as usize, f64::from(units) / f64::from(layer.units))
                    };
                    copy.runs.iter().map(part).collect()
                };
                place.copies.iter().map(copy).collect()
            });
            let copies: Vec<Copies> = copies.collect();
            assert_eq!(copies.len(), layer.experts as usize, "the placement is of another model");
            first += layer.experts as usize;
            (first - layer.experts as usize, copies)
        });
        let layers = layers.collect();
        Cluster { workers: placement.workers.iter().map(rate).collect(), hosts: &rates.hosts, layers }
    }

    fn memory(&self, shape: &Shape) -> Vec<(WorkerId, f64)> {
        let mut bytes = vec![0.0; self.workers.len()];
        for (layer, (_, experts)) in shape.layers.iter().zip(&self.layers) {
            for (worker, part) in experts.iter().flatten().flatten() {
                bytes[*worker] += part * layer.expert_bytes;
            }
        }
        self.workers.iter().zip(bytes).map(|(rate, bytes)| (rate.worker, bytes)).collect()
    }

    fn layer(
        &self,
        layer: &LayerShape,
        (_, experts): &(usize, Vec<Copies>),
        rows: u32,
        draw: LayerDraw<'_>,
        routing: &mut Routing,
    ) -> Sample {
        let count = draws(rows);
        let mut sum = Sample::default();
        for _ in 0..count {
            let hit = Hit::draw(layer, rows, &draw, routing);
            sum.touched += hit.rows.iter().filter(|&&rows| rows > 0).count() as f64;
            let one = self.drawn(layer, experts, &hit);
            sum.dispatch += one.dispatch;
            sum.experts += one.experts;
            sum.wait += one.wait;
            sum.combine += one.combine;
            sum.travel.bytes += one.travel.bytes;
            sum.travel.frames += one.travel.frames;
        }
        let mean = 1.0 / f64::from(count);
        Sample {
            dispatch: sum.dispatch * mean,
            experts: sum.experts * mean,
            wait: sum.wait * mean,
            combine: sum.combine * mean,
            touched: sum.touched * mean,
            travel: Travel { bytes: sum.travel.bytes * mean, frames: sum.travel.frames * mean },
        }
    }

    fn drawn(&self, layer: &LayerShape, experts: &[Copies], hit: &Hit) -> Sample {
        let workers = self.workers.len();
        let mut work = vec![Work::default(); workers];
        // The copy whose busiest worker has least to do so far.
        let mut of: Vec<usize> = vec![0; experts.len()];
        for (expert, copies) in experts.iter().enumerate().filter(|(expert, _)| hit.rows[*expert] > 0) {
            let busy = |copy: usize| {
                let times = copies[copy].iter().map(|&(worker, part)| {
                    (work[worker].bytes + part * layer.expert_bytes)
                        / self.workers[worker].compute.read_bytes_per_second
                });
                times.fold(0.0, f64::max)
            };
            of[expert] = (0..copies.len()).min_by(|&a, &b| busy(a).total_cmp(&busy(b))).unwrap_or(0);
            for &(worker, part) in &copies[of[expert]] {
                let rows = f64::from(hit.rows[expert]);
                let operations = part * layer.expert_operations() * rows;
                let (rate, work) = (self.workers[worker], &mut work[worker]);
                work.bytes += part * layer.expert_bytes;
                let (alone, beside) = match rate.cut(part) {
                    Some(cut) => (&cut.alone, &cut.beside),
                    None => (&rate.compute, &rate.compute),
                };
                work.alone += alone.seconds(operations, rows);
                work.beside += beside.seconds(operations, rows);
            }
        }
        let mut needed = vec![usize::MAX; workers];
        for (row, chosen) in hit.chosen.iter().enumerate() {
            for &expert in chosen {
                for &(worker, _) in &experts[expert as usize][of[expert as usize]] {
                    if needed[worker] != row {
                        needed[worker] = row;
                        work[worker].rows += 1;
                    }
                }
            }
        }
        self.timed(layer, &work, hit.chosen.len())
    }

    fn timed(&self, layer: &LayerShape, work: &[Work], batch: usize) -> Sample {
        let mut sample = Sample::default();
        let done = self.finish(work);
        let asked: Vec<usize> = (0..work.len()).filter(|&worker| work[worker].rows > 0).collect();
        let (mut slowest, mut sum) = (0.0f64, 0.0);
        let (mut latency_out, mut latency_home) = (0.0f64, 0.0f64);
        for &worker in &asked {
            let WorkerRate { compute, hop, .. } = self.workers[worker];
            let busy = done[worker] + compute.call_seconds;
            slowest = slowest.max(busy);
            sum += busy;
            let (hidden, rows) = (f64::from(layer.hidden), f64::from(work[worker].rows));
            // Sums travel in 4 bytes: those that need 8 are rare.
            let sent = self.sent(layer, work[worker].rows, batch);
            let out = HEADER_BYTES as f64 + sent as f64;
            let home = HEADER_BYTES as f64 + rows * 4.0 * hidden;
            // The router writes one frame after another, and reads them so.
            sample.dispatch += out / hop.bytes_per_second;
            sample.combine += home / hop.home_bytes_per_second;
            latency_out = latency_out.max(hop.seconds);
            latency_home = latency_home.max(hop.seconds);
            sample.travel.bytes += out + home;
            sample.travel.frames += 2.0;
        }
        sample.dispatch += latency_out;
        sample.combine += latency_home;
        // Over all workers: who has nothing to do counts, for its memory is paid for.
        sample.experts = sum / self.workers.len().max(1) as f64;
        sample.wait = slowest - sample.experts;
        sample
    }

    /// Bytes of a call for a worker that needs so many rows of a batch, in shared memory; all but the first call of a layer.
    fn sent(&self, layer: &LayerShape, needed: u32, batch: usize) -> u64 {
        let (width, top_k, needed) = (layer.hidden as usize, layer.top_k as usize, needed as usize);
        let int8 = layer.row_group.and_then(|group| RowForm::int8(group as usize));
        let fewer = int8.filter(|form| form.row_bytes(width) < RowForm::F32.row_bytes(width));
        let form = fewer.unwrap_or_default();
        let traffic = Traffic { kind: ExchangeKind::SharedMemory, form, width, top_k, rows: batch, needed };
        let rows = if traffic.road() == Road::All { batch } else { needed };
        call_bytes(form, rows, width, top_k)
    }

    /// When each worker is done: who is done leaves its part of the host to the others.
    fn finish(&self, work: &[Work]) -> Vec<f64> {
        let mut finish = vec![0.0; work.len()];
        for (host, &together) in self.hosts.iter().enumerate() {
            let here: Vec<usize> = (0..work.len()).filter(|&at| self.workers[at].host == host).collect();
            let of = |value: &dyn Fn(usize) -> f64| here.iter().map(|&at| value(at)).collect::<Vec<f64>>();
            if here.iter().any(|&at| self.workers[at].cuts.is_empty()) {
                let alone = of(&|at| self.workers[at].compute.read_bytes_per_second);
                let reads = shared_finish(&of(&|at| work[at].bytes), &alone, together);
                here.iter().zip(reads).for_each(|(&at, reads)| finish[at] = reads.max(work[at].alone));
                continue;
            }
            // In seconds of a worker alone: all together they get through so many of them in one.
            let (alone, beside) = (of(&|at| work[at].alone), of(&|at| work[at].beside));
            let together =
                here.len() as f64 * alone.iter().sum::<f64>() / beside.iter().sum::<f64>().max(1e-12);
            let done = shared_finish(&alone, &vec![1.0; here.len()], together.max(1e-3));
            here.iter().zip(done).for_each(|(&at, done)| finish[at] = done);
        }
        finish
    }
}

/// What a worker has to do in a layer.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    rows: u32,
    bytes: f64,
    /// Seconds of its experts, while the others rest and while they compute.
    alone: f64,
    beside: f64,
}
