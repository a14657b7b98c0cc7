//! From turns to figures: measured with their spread, predicted, and how far that was off.

use gaterail_cluster::predict::{Prediction, Seen, Terms};
use gaterail_router::serving::StepTotals;
use serde::Serialize;

use super::measure::{Phase, Reads, Turn, sum};
use crate::plan::forecast::{Forecast, named_ms};

/// Over rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Some(Spread { median, least, most })
    }
}

/// A measured figure beside its prediction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub measured: Option<Spread>,
    pub predicted: Option<f64>,
    /// Of the prediction over what was measured: 0.1 is a tenth too much.
    pub error: Option<f64>,
}

impl Figure {
    /// Of each round what was measured and what was predicted just before. The error is that of the round in the middle.
    fn of(rounds: Vec<(Option<f64>, Option<f64>)>) -> Figure {
        let middle = |values: Vec<f64>| Spread::of(values).map(|spread| spread.median);
        let off = |(measured, predicted): &(Option<f64>, Option<f64>)| {
            let measured = measured.filter(|measured| *measured != 0.0)?;
            Some((*predicted)? / measured - 1.0)
        };
        Figure {
            error: middle(rounds.iter().filter_map(off).collect()),
            predicted: middle(rounds.iter().filter_map(|round| round.1).collect()),
            measured: Spread::of(rounds.iter().filter_map(|round| round.0).collect()),
        }
    }
}

/// Prefill or decode of one mode with one number of streams.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// TTFT of prefill, TPOT of decode, in milliseconds.
    pub latency_ms: Figure,
    /// The same beside what would have been predicted with the experts that were touched in fact.
    pub knowing_ms: Figure,
    /// Different experts of a layer in a step, on average; predicted as if all were as likely.
    pub touched: Figure,
    pub tokens_per_second: Figure,
    pub bytes_per_token: Figure,
    pub hops_per_token: Figure,
    /// Milliseconds of a step in which the slowest worker was waited for.
    pub slowest_ms: Figure,
    /// The slowest worker's time over the mean.
    pub imbalance: Figure,
    /// Milliseconds of a step by part; the last one is all of it.
    pub parts: Vec<Part>,
    pub steps: u64,
    /// Of all steps: in decode one for every token but the first of each answer.
    pub rows: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Part {
    pub name: &'static str,
    pub measured_ms: f64,
    pub predicted_ms: Option<f64>,
}

/// A mode with one number of streams.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub mode: String,
    pub streams: u32,
    pub prefill: Side,
    pub decode: Side,
    /// Bytes of experts that the fullest worker holds.
    pub memory: Figure,
    /// What the machine's memory gave, before, between and after.
    pub read_bytes_per_second: Option<Spread>,
    /// Turns in which it did not give the same all the time.
    pub moved: usize,
    #[serde(skip)]
    pub turns: Vec<Turn>,
}

/// All turns of one mode and one number of streams, which is the `at`-th.
pub fn cell(mode: String, streams: u32, turns: Vec<Turn>, at: usize) -> Cell {
    let fits = |forecast: &Option<Forecast>| forecast.clone().filter(|one| one.misfit.is_none());
    // The prompt's last step is for one prompt alone only where there is one.
    let first = |forecast: &Option<Forecast>| fits(forecast)?.first_token_seconds.get(at).copied();
    let step = |forecast: &Option<Forecast>| fits(forecast)?.decode.get(at).cloned();
    let prefill = |turn: &Turn| Expected {
        latency: first(&turn.predicted),
        knowing: first(&turn.knowing),
        step: fits(&turn.predicted).and_then(|one| one.prefill).filter(|_| streams == 1),
    };
    let decode = |turn: &Turn| {
        let seconds = |step: &Prediction| step.terms.total();
        let plain = step(&turn.predicted);
        Expected {
            latency: plain.as_ref().map(seconds),
            knowing: step(&turn.knowing).as_ref().map(seconds),
            step: plain,
        }
    };
    let fullest = |turn: &Turn| {
        let predicted = fits(&turn.predicted).and_then(|one| one.memory.iter().copied().reduce(f64::max));
        (turn.memory.iter().max().map(|&bytes| bytes as f64), predicted)
    };
    Cell {
        prefill: side(&turns.iter().map(|turn| (&turn.prefill, prefill(turn))).collect::<Vec<_>>()),
        decode: side(&turns.iter().map(|turn| (&turn.decode, decode(turn))).collect::<Vec<_>>()),
        memory: Figure::of(turns.iter().map(fullest).collect()),
        read_bytes_per_second: Spread::of(turns.iter().flat_map(|turn| turn.reads.0).collect()),
        moved: turns.iter().filter(|turn| !turn.reads.steady()).count(),
        mode,
        streams,
        turns,
    }
}

/// What was predicted.
struct Expected {
    latency: Option<f64>,
    /// With the experts that were touched in fact.
    knowing: Option<f64>,
    step: Option<Prediction>,
}

fn side(rounds: &[(&Phase, Expected)]) -> Side {
    let each = |value: &dyn Fn(&Phase) -> Option<f64>, of: &dyn Fn(&Expected) -> Option<f64>| {
        Figure::of(rounds.iter().map(|(phase, expected)| (value(phase), of(expected))).collect())
    };
    let of = |value: fn(&Prediction) -> f64| move |one: &Expected| one.step.as_ref().map(value);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let per = |total: f64, count: u64| (count > 0).then(|| total / count as f64);
    let all = sum(rounds.iter().map(|(phase, _)| &phase.totals));
    let steps: Vec<&Prediction> = rounds.iter().filter_map(|(_, expected)| expected.step.as_ref()).collect();
    let taken = |one: &Phase| Some(mean(&one.seconds) * 1e3);
    let latency_ms = each(&taken, &|one| one.latency.map(|seconds| seconds * 1e3));
    let touched = |seen: &Seen| mean(&seen.layers.iter().map(|layer| layer.touched).collect::<Vec<_>>());
    // Where every answer waits for every step: what it waits for beside.
    let latency = latency_ms.measured.map_or(0.0, |spread| spread.median / 1e3);
    let together = !steps.is_empty() && all.steps > 0;
    let outside = if together { (latency - all.step / all.steps as f64).max(0.0) } else { 0.0 };
    Side {
        latency_ms,
        knowing_ms: each(&taken, &|one| one.knowing.map(|seconds| seconds * 1e3)),
        touched: each(&|one| one.seen.as_ref().map(touched), &of(|step| step.touched)),
        tokens_per_second: each(&|one| Some(one.rate), &of(Prediction::rows_per_second)),
        bytes_per_token: each(
            &|one| per((one.totals.bytes_in + one.totals.bytes_out) as f64, one.totals.rows),
            &of(|step| step.bytes_per_row),
        ),
        hops_per_token: each(
            &|one| per(2.0 * one.totals.calls as f64, one.totals.rows),
            &of(|step| step.hops / f64::from(step.step.rows)),
        ),
        slowest_ms: each(
            &|one| per(one.totals.parts.slowest * 1e3, one.totals.steps),
            &of(|step| step.terms.wait * 1e3),
        ),
        imbalance: each(
            &|one| {
                let parts = &one.totals.parts;
                (one.totals.calls > 0 && parts.experts > 0.0)
                    .then(|| (parts.experts + parts.slowest) / parts.experts)
            },
            &of(|step| step.imbalance),
        ),
        parts: parts(&all, outside, &steps),
        steps: all.steps,
        rows: all.rows,
    }
}

/// What a step is made of, in the prediction's terms: attention and dense layers are the trunk, rows on their way home belong to
/// combine, and what is between steps to sampling.
fn parts(all: &StepTotals, outside: f64, predicted: &[&Prediction]) -> Vec<Part> {
    let spent = &all.parts;
    let measured = [
        spent.attention + spent.dense,
        spent.gate,
        spent.dispatch,
        spent.experts,
        spent.slowest,
        spent.combine + spent.travel,
        spent.ends,
        spent.other + outside * all.steps as f64,
    ];
    let names = named_ms(&Terms::default()).map(|(name, _)| name);
    let predicted: Vec<_> = predicted.iter().map(|one| named_ms(&one.terms).map(|(_, ms)| ms)).collect();
    let middle = |at: usize| Spread::of(predicted.iter().map(|one| one[at]).collect());
    let steps = all.steps.max(1) as f64;
    let each = (0..names.len()).map(|at| Part {
        name: names[at],
        measured_ms: measured[at] * 1e3 / steps,
        predicted_ms: middle(at).map(|spread| spread.median),
    });
    each.collect()
}

/// Who is fastest, over whom, and in what.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Winner {
    pub what: String,
    pub winner: String,
    /// Tokens a second.
    pub rate: Spread,
    pub over: Vec<Lead>,
    /// Whether the prediction named the same one.
    pub foreseen: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lead {
    pub loser: String,
    pub rate: Spread,
    /// What memory gave the winner and the loser, in bytes a second, where that was not nearly the same: then it may be what won.
    pub unlike: Option<(f64, f64)>,
    pub factor: f64,
    /// The part of a step in which most is saved, and how many milliseconds.
    pub part: &'static str,
    pub saved_ms: f64,
    /// Whether even the worst round of the winner beat the best of the loser.
    pub clear: bool,
}

/// What memory gave to each of them, if a turn of one and a turn of the other would not have passed for one turn.
fn unlike(a: &Cell, b: &Cell) -> Option<(f64, f64)> {
    let read = |cell: &Cell| cell.read_bytes_per_second.map(|spread| spread.median);
    let (a, b) = (read(a)?, read(b)?);
    (!Reads([a, b, b]).steady()).then_some((a, b))
}

/// Among cells with the same number of streams.
pub fn winner(what: String, cells: &[&Cell], side: impl Fn(&Cell) -> &Side) -> Option<Winner> {
    let rate = |cell: &Cell| side(cell).tokens_per_second.measured;
    let mut ranked: Vec<(&Cell, Spread)> =
        cells.iter().filter_map(|cell| Some((*cell, rate(cell)?))).collect();
    ranked.sort_by(|a, b| b.1.median.total_cmp(&a.1.median));
    let (best, fastest) = *ranked.first()?;
    let over = ranked.iter().skip(1).map(|(cell, spread)| {
        let pairs = side(best).parts.iter().zip(&side(cell).parts);
        let saved = pairs.map(|(ours, theirs)| (ours.name, theirs.measured_ms - ours.measured_ms));
        let (part, saved_ms) = saved.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("experts", 0.0));
        Lead {
            loser: cell.mode.clone(),
            rate: *spread,
            unlike: unlike(best, cell),
            factor: fastest.median / spread.median,
            part,
            saved_ms,
            clear: fastest.least > spread.most,
        }
    });
    let over = over.collect();
    let guess = |cell: &&Cell| side(cell).latency_ms.predicted;
    let known = cells.iter().all(|cell| guess(cell).is_some());
    let guessed =
        cells.iter().min_by(|a, b| guess(a).unwrap_or(f64::MAX).total_cmp(&guess(b).unwrap_or(f64::MAX)));
    let foreseen = guessed.filter(|_| known).map(|cell| cell.mode == best.mode);
    Some(Winner { what, winner: best.mode.clone(), rate: fastest, over, foreseen })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_gave_more_to_one_is_named() {
        let given = |rate: f64| {
            let mut cell = cell("ep".to_string(), 1, Vec::new(), 0);
            cell.read_bytes_per_second = Spread::of(vec![rate]);
            cell
        };
        assert_eq!(unlike(&given(60e9), &given(53e9)), None);
        assert_eq!(unlike(&given(60e9), &given(38e9)), Some((60e9, 38e9)));
        assert_eq!(unlike(&given(38e9), &given(60e9)), Some((38e9, 60e9)));
    }

    #[test]
    fn spreads_and_errors() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 2.0]).map(|spread| spread.median), Some(3.0));
        assert_eq!(Spread::of(Vec::new()), None);
        // Each round beside its own prediction: twice a tenth too much, once a half.
        let rounds = [(10.0, 11.0), (20.0, 22.0), (4.0, 6.0)].map(|(a, b)| (Some(a), Some(b))).to_vec();
        let figure = Figure::of(rounds);
        assert!((figure.error.unwrap() - 0.1).abs() < 1e-12);
        assert_eq!((figure.measured.unwrap().median, figure.predicted), (10.0, Some(11.0)));
        assert_eq!(Figure::of(vec![(Some(0.0), Some(1.0)), (None, Some(1.0))]).error, None);
    }
}
