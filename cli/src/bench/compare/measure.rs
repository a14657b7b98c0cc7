//! One turn of a mode: prompts that are new to it, and then their answers.
//!
//! Three loads with the same prompts: an answer of one token each, which is prefill; the same once more, which finds its
//! prompts in the prefix cache, but for what whole pages of 64 do not hold; and the whole answers. What the third costs more than
//! the second is decode and nothing else; where the second costs much, it is a difference of large numbers.

use std::sync::atomic::AtomicBool;

use gaterail_cluster::predict::{Seen, SeenLayer};
use gaterail_model::walk::LayerHits;
use gaterail_router::http::ClusterPage;
use gaterail_router::serving::{StepParts, StepTotals};

use super::args::Plan;
use super::server::Server;
use crate::bench::dialect::Dialect;
use crate::bench::load::{self, Load, Measured};
use crate::bench::prompt::{Prompt, fit};
use crate::bench::random::Random;
use crate::bench::request::{Answer, Asked};
use crate::bench::tokens::Counting;
use crate::bench::workload::{PlannedPrompt, Shape};
use crate::endpoint::Failure;
use crate::error::CliError;
use crate::plan::Contender;
use crate::plan::forecast::Forecast;

/// What one turn with one number of streams gave.
#[derive(Clone, Debug)]
pub struct Turn {
    pub contender: Contender,
    pub streams: u32,
    pub prefill: Phase,
    pub decode: Phase,
    /// Of every request, in order.
    pub texts: Vec<String>,
    /// Bytes of experts that each worker holds of the plan in force.
    pub memory: Vec<u64>,
    pub round: usize,
    /// What was said before it; and what would have been said had it been known which experts its rows would go to. `None`
    /// where this round could not be predicted, or where nobody counted.
    pub predicted: Option<Forecast>,
    pub knowing: Option<Forecast>,
    pub reads: Reads,
}

/// What the machine's memory gave, in bytes a second: when rates were measured for the prediction, and right before and after
/// the turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reads(pub [f64; 3]);

/// `33.1, 52.0, 51.8`
impl std::fmt::Display for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [known, before, after] = self.0.map(|rate| rate / 1e9);
        write!(f, "{known:.1}, {before:.1}, {after:.1}")
    }
}

/// Memory whose measurements are further apart than this moved.
const MOVED: f64 = 1.15;

impl Reads {
    /// The largest over the smallest.
    pub fn apart(&self) -> f64 {
        let of = |pick: fn(f64, f64) -> f64| self.0.into_iter().reduce(pick).unwrap_or(1.0);
        of(f64::max) / of(f64::min)
    }

    /// Whether a prediction and a measurement beside each other were of the same machine.
    pub fn steady(&self) -> bool {
        self.apart() <= MOVED
    }
}

/// A part of a turn.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Seconds of one request: TTFT of prefill, TPOT of decode.
    pub seconds: Vec<f64>,
    /// Tokens a second, of all streams.
    pub rate: f64,
    pub totals: StepTotals,
    pub answers: Vec<Answer>,
    /// Which experts its rows went to; `None` where nobody counted.
    pub seen: Option<Seen>,
}

/// What stays the same for all modes.
pub struct Texts {
    /// By number of streams, then by round.
    prompts: Vec<Vec<Vec<Prompt>>>,
}

impl Texts {
    /// Words of the seed, as many as make the tokens; `server` counts them, as every other one would.
    pub fn new(plan: &Plan, server: &Server, dialect: &Dialect) -> Result<Texts, Failure> {
        let counting = Counting::find(&server.endpoint, dialect);
        let count = |text: &str| counting.count(&server.endpoint, dialect, text);
        let shape = Shape {
            input: crate::bench::lengths::Lengths::Constant(plan.prompt),
            output: crate::bench::lengths::Lengths::Constant(plan.output),
            prefix: None,
            seed: plan.seed,
        };
        let one = |(at, &streams): (usize, &u32)| {
            let round = |round: usize| {
                let planned = shape.requests(streams as usize, (at * (plan.rounds + 1) + round) as u64);
                let prompts = planned.into_iter().map(|planned| match planned.prompt {
                    PlannedPrompt::Length { tokens, seed, .. } => {
                        fit("", tokens, &mut Random::new(seed, 0), count)
                    }
                    PlannedPrompt::Text(text) => Ok(Prompt { tokens: count(&text)?, text }),
                });
                prompts.collect::<Result<Vec<Prompt>, Failure>>()
            };
            // One more to warm up with.
            (0..=plan.rounds).map(round).collect::<Result<Vec<_>, Failure>>()
        };
        let prompts = plan.streams.iter().enumerate().map(one).collect::<Result<Vec<_>, Failure>>()?;
        Ok(Texts { prompts })
    }
}

/// What a turn needs to know.
pub struct Circumstances<'a> {
    pub plan: &'a Plan,
    pub texts: &'a Texts,
    pub dialect: &'a Dialect,
    pub stop: &'a AtomicBool,
}

/// Measures one number of streams, the `at`-th, in one round; 0 warms up. `None`: Ctrl-C came.
pub fn turn(
    on: &Circumstances<'_>,
    server: &Server,
    contender: Contender,
    at: usize,
    round: usize,
) -> Result<Option<Turn>, CliError> {
    let (streams, prompts) = (on.plan.streams[at], &on.texts.prompts[at][round]);
    let phase = |tokens: u32| -> Result<Option<(Measured, StepTotals, ClusterPage)>, CliError> {
        let before = server.page()?;
        let measured = ask(on, server, prompts, tokens);
        let mut page = server.page()?;
        if measured.interrupted {
            return Ok(None);
        }
        let failed = measured.records.iter().find_map(|record| record.result.as_ref().err());
        if let Some(failure) = failed {
            return Err(CliError::Refused(format!("{contender}: a request failed: {failure}")));
        }
        page.experts = page.experts.zip(before.experts).map(|(now, before)| since(&now, &before));
        Ok(Some((measured, difference(&page.totals, &before.totals), page)))
    };
    let Some((prefill, prefill_totals, prefill_page)) = phase(1)? else { return Ok(None) };
    let Some((_, again_totals, again_page)) = phase(1)? else { return Ok(None) };
    let Some((whole, whole_totals, page)) = phase(on.plan.output)? else { return Ok(None) };
    let decoded = page.experts.zip(again_page.experts).map(|(whole, again)| since(&whole, &again));
    let workers = page.cluster.map(|cluster| cluster.workers).unwrap_or_default();
    let tokens: u32 = prompts.iter().map(|prompt| prompt.tokens).sum();
    let (first, whole) = (answers(prefill.records), answers(whole.records));
    let ttfts: Vec<f64> = first.iter().map(|answer| answer.ttft).collect();
    let decode_totals = difference(&whole_totals, &again_totals);
    // A client that falls behind finds several tokens at once: no token came faster than its step.
    let step = decode_totals.step / decode_totals.steps.max(1) as f64;
    let tpots: Vec<f64> = whole.iter().filter_map(Answer::tpot).map(|tpot| tpot.max(step)).collect();
    let mean = tpots.iter().sum::<f64>() / tpots.len().max(1) as f64;
    Ok(Some(Turn {
        contender,
        streams,
        texts: whole.iter().map(|answer| answer.text.clone()).collect(),
        prefill: Phase {
            rate: f64::from(tokens) / prefill.duration,
            seconds: ttfts,
            totals: prefill_totals,
            answers: first,
            seen: prefill_page.experts.and_then(|hits| seen(&hits)),
        },
        decode: Phase {
            rate: f64::from(streams) / mean,
            seconds: tpots,
            totals: decode_totals,
            answers: whole,
            seen: decoded.and_then(|hits| seen(&hits)),
        },
        round,
        predicted: None,
        knowing: None,
        reads: Reads::default(),
        memory: workers.iter().map(|worker| worker.bytes).collect(),
    }))
}

fn ask(on: &Circumstances<'_>, server: &Server, prompts: &[Prompt], tokens: u32) -> Measured {
    let asked = |prompt: &Prompt| Asked { due: None, prompt: prompt.clone(), output: tokens };
    let load = Load {
        endpoint: server.endpoint.clone(),
        dialect: on.dialect.clone(),
        requests: prompts.iter().map(asked).collect(),
        concurrency: Some(prompts.len()),
        until: None,
    };
    load::run(load, on.stop, |_| ())
}

fn answers(records: Vec<crate::bench::request::Record>) -> Vec<Answer> {
    records.into_iter().filter_map(|record| record.result.ok()).collect()
}

/// What came to each layer since.
fn since(now: &[LayerHits], before: &[LayerHits]) -> Vec<LayerHits> {
    let empty = LayerHits::default();
    let of = |layer: u32| before.iter().find(|one| one.layer == layer).unwrap_or(&empty);
    now.iter().map(|one| one.since(of(one.layer))).collect()
}

/// As parts of rows and of calls. `None`: no layer had any.
fn seen(hits: &[LayerHits]) -> Option<Seen> {
    let layer = |one: &LayerHits| {
        let (calls, rows) = (one.calls.max(1) as f64, one.rows.max(1) as f64);
        SeenLayer {
            hit: one.hits.iter().map(|&hits| hits as f64 / rows).collect(),
            rows: one.rows as f64 / calls,
            touched: one.touched as f64 / calls,
        }
    };
    let any = !hits.is_empty() && hits.iter().all(|one| one.rows > 0);
    any.then(|| Seen { layers: hits.iter().map(layer).collect() })
}

/// What was added; what cannot be less is not.
fn difference(now: &StepTotals, before: &StepTotals) -> StepTotals {
    let less = |now: u64, before: u64| now.saturating_sub(before);
    StepTotals {
        steps: less(now.steps, before.steps),
        rows: less(now.rows, before.rows),
        step: (now.step - before.step).max(0.0),
        parts: parts(&now.parts, &before.parts, |now, before| (now - before).max(0.0)),
        layers: less(now.layers, before.layers),
        calls: less(now.calls, before.calls),
        bytes_out: less(now.bytes_out, before.bytes_out),
        bytes_in: less(now.bytes_in, before.bytes_in),
        bytes_spared: less(now.bytes_spared, before.bytes_spared),
    }
}

/// All of several.
pub fn sum<'a>(all: impl Iterator<Item = &'a StepTotals>) -> StepTotals {
    all.fold(StepTotals::default(), |sum, one| StepTotals {
        steps: sum.steps + one.steps,
        rows: sum.rows + one.rows,
        step: sum.step + one.step,
        parts: parts(&sum.parts, &one.parts, |a, b| a + b),
        layers: sum.layers + one.layers,
        calls: sum.calls + one.calls,
        bytes_out: sum.bytes_out + one.bytes_out,
        bytes_in: sum.bytes_in + one.bytes_in,
        bytes_spared: sum.bytes_spared + one.bytes_spared,
    })
}

fn parts(a: &StepParts, b: &StepParts, f: impl Fn(f64, f64) -> f64) -> StepParts {
    StepParts {
        attention: f(a.attention, b.attention),
        gate: f(a.gate, b.gate),
        dense: f(a.dense, b.dense),
        dispatch: f(a.dispatch, b.dispatch),
        experts: f(a.experts, b.experts),
        slowest: f(a.slowest, b.slowest),
        travel: f(a.travel, b.travel),
        combine: f(a.combine, b.combine),
        ends: f(a.ends, b.ends),
        other: f(a.other, b.other),
    }
}
