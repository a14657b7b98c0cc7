//! Which of several plans wins, and why.

use serde::Serialize;

use super::rates::Rates;
use super::routing::Drawn;
use super::shape::{Shape, Step};
use super::step::{Prediction, Term, Where, predict};
use crate::placement::{Mode, Wanted, fit};

/// Of two plans.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether the first takes less time.
    pub first_wins: bool,
    /// The loser's time over the winner's.
    pub factor: f64,
    /// The term that differs most in the winner's favour, and by how many seconds.
    pub because: (Term, f64),
}

/// Compares two predictions of one step.
pub fn compare(first: &Prediction, second: &Prediction) -> Verdict {
    let first_wins = first.terms.total() <= second.terms.total();
    let (winner, loser) = if first_wins { (first, second) } else { (second, first) };
    let saved = winner.terms.all().into_iter().zip(loser.terms.all());
    let saved = saved.map(|((term, winners), (_, losers))| (term, losers - winners));
    let because = saved.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((Term::Experts, 0.0));
    Verdict { first_wins, factor: loser.terms.total() / winner.terms.total(), because }
}

/// All modes in which the experts fit, the fastest first: what `auto` chooses from.
///
/// `steps` are what it is to be fast at, each with its weight.
pub fn choose(
    wanted: &Wanted<'_>,
    shape: &Shape,
    rates: &Rates,
    steps: &[(Step, f64)],
) -> Vec<(Mode, Vec<Prediction>)> {
    let workers = wanted.seats.len();
    let divides = |ep: &usize| workers.is_multiple_of(*ep);
    let mixed = (2..workers).filter(divides).map(|ep| Mode::Mixed { ep, tp: workers / ep });
    let mut found: Vec<(f64, Mode, Vec<Prediction>)> = Vec::new();
    let drawn = Drawn::popular(wanted.popularity);
    for mode in [Mode::Ep, Mode::Tp].into_iter().chain(mixed) {
        let Ok(placement) = fit(&Wanted { mode, current: None, ..*wanted }) else { continue };
        let predictions: Vec<Prediction> = steps
            .iter()
            .map(|(step, _)| predict(shape, rates, Where::On(&placement), *step, drawn))
            .collect();
        // Seconds a row: decode and prefill weigh as they are asked to.
        let cost = predictions.iter().zip(steps).map(|(one, (_, weight))| weight / one.rows_per_second());
        found.push((cost.sum(), mode, predictions));
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.into_iter().map(|(_, mode, predictions)| (mode, predictions)).collect()
}
