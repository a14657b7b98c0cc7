//! What a step takes beside its experts: a model of the same shape, with weights that say nothing and few of its layers where
//! they are large, walked as the server walks it. Its experts answer at once. Layers of each kind are walked by themselves: those
//! that attend to all of a context take longer than those that see a window of it, though their weights are as large.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gaterail_cluster::predict::{Step, Walked};
use gaterail_kernels::ops::{KvForm, PAGE_POSITIONS};
use gaterail_kernels::{Buffer, Device, Stream};
use gaterail_model::kv::{PageTable, page_bytes};
use gaterail_model::sampler::{SamplingParams, Step as Place, TokenCounts, sample};
use gaterail_model::spec::{LayerSpec, ModelSpec};
use gaterail_model::walk::{
    ActRows, Batch, Cursor, ExpertLayer, Lane, LaneId, LaneTimes, Routing, StepError, walk,
};
use gaterail_proto::LayerId;

use super::blank::{Blank, TOKENS, layer_bytes};
use super::{COLD_BYTES, TURNS, middle, usual};

/// A longer head is measured with a part of its rows.
const HEAD_BYTES_MAX: usize = 320 << 20;
/// Kinds of layers that are told from each other.
const KINDS_MAX: usize = 4;
/// So many steps are walked at most, and none is begun after so long; what others take is known from the nearest one.
const STEPS_MAX: usize = 24;
const WALKING: Duration = Duration::from_secs(6);
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
    let kinds = kinds(spec, blank);
    let page = kinds.iter().map(|kind| page_bytes(&kind.spec, kv)).max().unwrap_or(0);
    let fits = |step: &&Step| step.rows <= ROWS_MAX && pages_of(step) as u64 * page <= KV_BYTES_MAX;
    let mut steps: Vec<Step> = steps.iter().filter(fits).take(STEPS_MAX).copied().collect();
    let mut found: Vec<Walked> = Vec::new();
    for (at, kind) in kinds.iter().enumerate() {
        // What there is time for with the first kind is what is walked with the others.
        let time = WALKING / kinds.len() as u32;
        let part = kind.walked(device, blank, kv, &steps, (at == 0, time))?;
        steps.truncate(part.len());
        match at {
            0 => found = part,
            _ => found.iter_mut().zip(part).for_each(|(all, part)| {
                all.trunk += part.trunk;
                all.gate += part.gate;
            }),
        }
    }
    Ok(found)
}

fn pages_of(step: &Step) -> usize {
    step.sequences as usize * sequence(step).1.div_ceil(PAGE_POSITIONS)
}

/// Of a step: the rows of its largest sequence, and the positions that it has in the end.
fn sequence(step: &Step) -> (usize, usize) {
    let rows = step.rows.div_ceil(step.sequences.max(1)) as usize;
    // Where a sequence has one row, that row's position is its context; else the context is the middle row's.
    let end = step.context as usize + rows.div_ceil(2);
    (rows, end.max(rows))
}

/// Layers that are alike.
struct Kind {
    /// A model that has no others, so many of them that they come from memory if the model's do.
    spec: ModelSpec,
    /// How many times as many the model has, and how many times as many tokens.
    layers: f64,
    tokens: f64,
}

fn kinds(spec: &ModelSpec, blank: &Blank) -> Vec<Kind> {
    let mut alike: Vec<Vec<&LayerSpec>> = Vec::new();
    for layer in &spec.layers {
        let same = |other: &LayerSpec| {
            other.attention == layer.attention && other.mlp.sparse().is_some() == layer.mlp.sparse().is_some()
        };
        match alike.iter().position(|known| same(known[0])) {
            Some(at) => alike[at].push(layer),
            None if alike.len() < KINDS_MAX => alike.push(vec![layer]),
            None => alike[KINDS_MAX - 1].push(layer),
        }
    }
    let vocab = spec.vocab.min(HEAD_BYTES_MAX / blank.head.bytes(1, spec.hidden).max(1)).max(1);
    let bytes = |layer: &LayerSpec| layer_bytes(blank, spec, layer).max(1);
    let all: u64 = spec.layers.iter().map(bytes).sum();
    let kind = |alike: Vec<&LayerSpec>| {
        let count =
            (all.min(COLD_BYTES as u64) / bytes(alike[0])).clamp(1, spec.layers.len() as u64) as usize;
        let layers: Vec<LayerSpec> = alike.iter().cycle().take(count).map(|layer| (*layer).clone()).collect();
        Kind {
            spec: ModelSpec { layers, vocab, ..spec.clone() },
            layers: alike.len() as f64 / count as f64,
            tokens: spec.vocab as f64 / vocab as f64,
        }
    };
    alike.into_iter().map(kind).collect()
}

impl Kind {
    /// After that time no turn goes on but the first, and that one only if it is to know all steps: it has two of them anyway.
    fn walked(
        &self,
        device: &Device,
        blank: &Blank,
        kv: KvForm,
        steps: &[Step],
        (may_leave_out, time): (bool, Duration),
    ) -> Result<Vec<Walked>, StepError> {
        let rows = steps.iter().map(|step| step.rows).max();
        let (Some(rows), Some(pages)) = (rows, steps.iter().map(pages_of).max()) else {
            return Ok(Vec::new());
        };
        let spec = Arc::new(self.spec.clone());
        let weights = Arc::new(blank.trunk(device, &spec)?);
        let mut lane = Lane::new(spec, weights, device, kv, pages)?;
        // None of these layers stands for the last one alone.
        lane.keep_all();
        let mut cursor = Cursor::new(LaneId(0), &lane, rows as usize)?;
        let (until, mut found) = (Instant::now() + time, Vec::<Vec<Walked>>::new());
        for turn in 0..TURNS {
            for (at, &step) in steps.iter().enumerate() {
                let may_end = if turn == 0 { may_leave_out && at >= 2 } else { true };
                if (may_end && Instant::now() > until) || (turn > 0 && at >= found.len()) {
                    break;
                }
                let walked = one(&mut lane, &mut cursor, self, step)?;
                match found.get_mut(at) {
                    Some(turns) => turns.push(walked),
                    None => found.push(vec![walked]),
                }
            }
        }
        Ok(found.iter().map(|turns| usual_of(turns)).collect())
    }
}

/// Of several turns of one step.
fn usual_of(turns: &[Walked]) -> Walked {
    let of = |value: fn(&Walked) -> f64| middle(turns.iter().map(value).collect());
    Walked {
        step: turns[0].step,
        trunk: of(|one| one.trunk),
        gate: of(|one| one.gate),
        ends: of(|one| one.ends),
        sampling: of(|one| one.sampling),
    }
}

fn one(lane: &mut Lane, cursor: &mut Cursor, kind: &Kind, step: Step) -> Result<Walked, StepError> {
    let spec = &kind.spec;
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
        None => Ok(Walked {
            step,
            trunk: trunk * kind.layers,
            gate: gate * kind.layers,
            ends: ends * kind.tokens,
            sampling: sampling * kind.tokens,
        }),
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
