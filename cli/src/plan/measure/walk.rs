//! What a step takes beside its experts: a model of the same shape, with weights that say nothing and few of its layers where
//! they are large, walked as the server walks it. Its experts answer at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use gaterail_cluster::predict::{Step, Walked};
use gaterail_kernels::ops::{KvForm, PAGE_POSITIONS};
use gaterail_kernels::{Buffer, Device, Stream};
use gaterail_model::kv::{PageTable, page_bytes};
use gaterail_model::sampler::{SamplingParams, Step as Place, TokenCounts, sample};
use gaterail_model::spec::ModelSpec;
use gaterail_model::walk::{
    ActRows, Batch, Cursor, ExpertLayer, Lane, LaneId, LaneTimes, Routing, StepError, walk,
};
use gaterail_proto::LayerId;

use super::blank::{Blank, TOKENS, layer_bytes};
use super::usual;

/// Layers are taken until their weights are so large.
const LAYERS_BYTES: u64 = 96 << 20;
/// A step with more rows, or more KV, is not tried.
const ROWS_MAX: u32 = 2048;
const KV_BYTES_MAX: u64 = 1 << 30;

/// The steps that could be walked, each with its seconds.
pub fn walked(
    device: &Device,
    spec: &ModelSpec,
    blank: &Blank,
    kv: KvForm,
    steps: &[Step],
) -> Result<Vec<Walked>, StepError> {
    let (few, times) = sampled(spec, blank);
    let pages_of = |step: &Step| step.sequences as usize * sequence(step).1.div_ceil(PAGE_POSITIONS);
    let fits =
        |step: &&Step| step.rows <= ROWS_MAX && pages_of(step) as u64 * page_bytes(&few, kv) <= KV_BYTES_MAX;
    let steps: Vec<Step> = steps.iter().filter(fits).copied().collect();
    let (Some(rows), Some(pages)) =
        (steps.iter().map(|step| step.rows).max(), steps.iter().map(pages_of).max())
    else {
        return Ok(Vec::new());
    };
    let few = Arc::new(few);
    let weights = Arc::new(blank.trunk(device, &few)?);
    let mut lane = Lane::new(few.clone(), weights, device, kv, pages)?;
    let mut cursor = Cursor::new(LaneId(0), &lane, rows as usize)?;
    steps.iter().map(|&step| one(&mut lane, &mut cursor, &few, times, step)).collect()
}

/// Of a step: the rows of its largest sequence, and the positions that it has in the end.
fn sequence(step: &Step) -> (usize, usize) {
    let rows = step.rows.div_ceil(step.sequences.max(1)) as usize;
    // Where a sequence has one row, that row's position is its context; else the context is the middle row's.
    let end = step.context as usize + rows.div_ceil(2);
    (rows, end.max(rows))
}

/// The model with layers up to the limit, and how many times as many it has: of all, and of sparse ones.
fn sampled(spec: &ModelSpec, blank: &Blank) -> (ModelSpec, (f64, f64)) {
    let mut few = ModelSpec { layers: Vec::new(), ..spec.clone() };
    let mut bytes = 0;
    // Sparse ones first: there is one at least, and dense ones are few.
    let (sparse, dense): (Vec<_>, Vec<_>) =
        spec.layers.iter().partition(|layer| layer.mlp.sparse().is_some());
    for layer in sparse.iter().chain(&dense) {
        if few.layers.is_empty() || bytes + layer_bytes(blank, spec, layer) <= LAYERS_BYTES {
            bytes += layer_bytes(blank, spec, layer);
            few.layers.push((*layer).clone());
        }
    }
    let all: u64 = spec.layers.iter().map(|layer| layer_bytes(blank, spec, layer)).sum();
    let taken = few.layers.iter().filter(|layer| layer.mlp.sparse().is_some()).count();
    (few, (all as f64 / bytes.max(1) as f64, sparse.len() as f64 / taken.max(1) as f64))
}

fn one(
    lane: &mut Lane,
    cursor: &mut Cursor,
    spec: &ModelSpec,
    (layers, gates): (f64, f64),
    step: Step,
) -> Result<Walked, StepError> {
    let (batch, tables) = batch(lane, spec, step);
    let times = lane.times().clone();
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let counts = TokenCounts::new(&[]);
    let mut staging = Vec::new();
    let mut failed = None;
    let [trunk, gate, ends, sampling] = usual(|| {
        let before = now(&times);
        let walked = cursor.begin(lane, &batch).and_then(|()| {
            walk(std::slice::from_mut(lane), std::slice::from_mut(cursor), &mut Nobody, Instant::now())
        });
        failed = walked.err().or(failed.take());
        let after = now(&times);
        let sampled = Instant::now();
        if let Ok(logits) = cursor.logits_in_place(lane.stream(), spec.vocab, &mut staging) {
            for row in logits.chunks_exact_mut(spec.vocab) {
                let place = Place { counts: &counts, position: 1, generated: 1, stop_ids: &[] };
                // Logits of such weights may be anything; what counts is that they were looked at.
                let _ = std::hint::black_box(sample(row, &params, &place));
            }
        }
        let [trunk, gate, ends] = std::array::from_fn(|at| (after[at] - before[at]) as f64 / 1e9);
        [trunk, gate, ends, sampled.elapsed().as_secs_f64()]
    });
    tables.into_iter().for_each(|table| lane.kv().pool.release(table));
    match failed {
        Some(error) => Err(error),
        None => Ok(Walked { step, trunk: trunk * layers, gate: gate * gates, ends, sampling }),
    }
}

/// Attention and dense layers; gates; embedding and head.
fn now(times: &LaneTimes) -> [u64; 3] {
    let at = |clock: &std::sync::atomic::AtomicU64| clock.load(Ordering::Relaxed);
    [at(&times.attention_ns) + at(&times.dense_ns), at(&times.gate_ns), at(&times.ends_ns)]
}

/// The step's rows, dealt out to its sequences; the last row's logits of each are wanted.
fn batch(lane: &mut Lane, spec: &ModelSpec, step: Step) -> (Batch, Vec<PageTable>) {
    let (most, end) = sequence(&step);
    let (mut batch, mut tables, mut left) = (Batch::default(), Vec::new(), step.rows as usize);
    for sequence in 0..step.sequences as usize {
        let rows = most.min(left);
        left -= rows;
        if rows == 0 {
            break;
        }
        let mut table = PageTable::default();
        // There are pages for the largest sequence in each one's place.
        if lane.kv().pool.grow(&mut table, end).is_err() {
            break;
        }
        let token = |at: usize| (((sequence * 131 + at) * 7919) % TOKENS.min(spec.vocab)) as u32;
        let tokens: Vec<u32> = (0..rows).map(token).collect();
        batch.add(&tokens, end - rows, &table, |row| row + 1 == rows);
        tables.push(table);
    }
    (batch, tables)
}

/// Experts that have nothing to add.
struct Nobody;

impl ExpertLayer for Nobody {
    type Ticket = ();

    fn dispatch(
        &mut self,
        _: LayerId,
        _: &ActRows<'_>,
        _: &Routing<'_>,
        _: &Stream,
    ) -> Result<(), StepError> {
        Ok(())
    }

    fn combine(&mut self, (): (), _: &mut Buffer<f32>, _: &Stream) -> Result<(), StepError> {
        Ok(())
    }

    fn finish(&mut self, _: Instant) -> Result<(), StepError> {
        Ok(())
    }
}
