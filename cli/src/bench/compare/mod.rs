//! `gaterail bench --compare ep,tp --workers 2 MODEL`: every way to spread the experts, measured in turns on the same weights,
//! prompts and seed, beside what `gaterail plan` predicts.
//!
//! | file | in the order of a run |
//! |---|---|
//! | [`args`] | the command line, and the plan that it makes |
//! | [`server`] | a mode's server: this program once more |
//! | [`measure`] | one turn of a mode |
//! | [`figures`] | medians, spreads, errors, winners |
//! | [`report`], [`picture`] | for a person |

pub mod args;
mod figures;
mod measure;
mod picture;
mod report;
mod server;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde::Serialize;

use super::dialect::Dialect;
use super::{interrupt, write};
use crate::error::CliError;
use crate::plan;
use crate::plan::forecast::Forecast;
use crate::progress::Tally;
use crate::terminal;
use crate::weights::KvArg;
use args::Plan;
use figures::{Cell, Winner, cell, winner};
use measure::{Circumstances, Texts, Turn, turn};
use server::Server;

/// All that is printed and saved.
#[derive(Serialize)]
pub struct Comparison {
    pub model: String,
    pub device: String,
    pub workers: usize,
    pub rounds: usize,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub seed: u64,
    pub streams: Vec<u32>,
    pub cells: Vec<Cell>,
    pub winners: Vec<Winner>,
    /// That all modes gave the same texts.
    pub same: String,
    /// Of each round; none where a later round could not be predicted.
    pub predictions: Vec<Option<plan::Plan>>,
}

impl Comparison {
    /// Of each mode one.
    fn first_cells(&self) -> impl Iterator<Item = &Cell> {
        let first = self.streams.first().copied();
        self.cells.iter().filter(move |cell| Some(cell.streams) == first)
    }
}

pub fn run(plan: &Plan, json: Option<&Path>, page: Option<&Path>) -> Result<(), CliError> {
    let stop = interrupt::watch()?;
    let Measured { predictions, turns } = turns(plan, &stop)?;
    if stop.load(Relaxed) && turns.is_empty() {
        return Err(CliError::Refused("interrupted before anything was measured".to_string()));
    }
    let same = check_texts(&turns)?;
    let found = gathered(plan, predictions, turns, same);
    terminal::print(&terminal::visible(&report::text(&found)))?;
    if let Some(path) = json {
        let text =
            serde_json::to_string_pretty(&found).map_err(|error| CliError::Refused(error.to_string()))?;
        write(path, &(text + "\n"))?;
    }
    if let Some(path) = page {
        write(path, &report::page(&found))?;
    }
    match stop.load(Relaxed) {
        true => Err(CliError::Refused("interrupted: the figures are those of the turns before".to_string())),
        false => Ok(()),
    }
}

/// What was predicted in each round, and what was measured.
struct Measured {
    predictions: Vec<Option<plan::Plan>>,
    turns: Vec<Turn>,
}

/// In every round, before any server takes memory and cores: a machine that others use, too, is not as fast as it was a minute
/// ago.
fn predict(plan: &Plan) -> Result<plan::Plan, CliError> {
    let prediction = plan::plan(plan::Asked {
        model: &plan.model,
        weights: plan.weights,
        kv: KvArg::Auto,
        threads: plan.threads,
        crew: &plan.crew(),
        contenders: &plan.contenders,
        question: plan.question(),
    })?;
    for forecast in &prediction.forecasts {
        if let Some(why) = &forecast.misfit {
            return Err(CliError::Refused(format!("{}: {why}", forecast.mode)));
        }
    }
    Ok(prediction)
}

/// What cannot be predicted before anything was measured is refused, with what would fit. Later that is a round without a
/// prediction: the rounds before it are worth more than the reason.
fn kept<T>(round: usize, predicted: Result<T, CliError>) -> Result<Option<T>, CliError> {
    match predicted {
        Ok(prediction) => Ok(Some(prediction)),
        Err(error) if round == 1 => Err(error),
        Err(error) => {
            let note = format!("bench: no prediction for round {round}: {error}");
            terminal::note(&terminal::visible(&note));
            Ok(None)
        }
    }
}

/// Every mode in turn, again and again.
fn turns(plan: &Plan, stop: &AtomicBool) -> Result<Measured, CliError> {
    let modes = &plan.contenders.0;
    let mut shown = Tally::new("compare", "turns", plan.rounds * modes.len() * plan.streams.len());
    let (mut turns, mut asked): (Vec<Turn>, Option<(Texts, Dialect)>) = (Vec::new(), None);
    let mut predictions = Vec::new();
    for round in 1..=plan.rounds {
        predictions.push(kept(round, predict(plan))?);
        for &contender in modes {
            let Some(server) = Server::start(plan, contender, stop)? else { break };
            let (texts, dialect) = match &mut asked {
                Some(asked) => &*asked,
                none => none.insert(questions(plan, &server)?),
            };
            let on = Circumstances { plan, texts, dialect, stop };
            for at in 0..plan.streams.len() {
                // The first step after a start finds nothing in its caches.
                if at == 0 {
                    turn(&on, &server, contender, at, 0)?;
                }
                match turn(&on, &server, contender, at, round)? {
                    Some(turn) => turns.push(turn),
                    None => break,
                }
                shown.show(turns.len());
            }
        }
        if stop.load(Relaxed) {
            break;
        }
    }
    shown.finish();
    Ok(Measured { predictions, turns })
}

fn questions(plan: &Plan, server: &Server) -> Result<(Texts, Dialect), CliError> {
    let refused = |failure: crate::endpoint::Failure| CliError::Refused(failure.to_string());
    let model = server.endpoint.first_model().map_err(refused)?;
    let dialect = Dialect::find(&server.endpoint, model, false, 0.0).map_err(refused)?;
    Ok((Texts::new(plan, server, &dialect).map_err(refused)?, dialect))
}

/// Placement must not change an answer. The same prompts were asked in every mode, with other prompts in every round.
fn check_texts(turns: &[Turn]) -> Result<String, CliError> {
    let mut answers = 0;
    for (at, turn) in turns.iter().enumerate() {
        let Some(first) = first_alike(turns, at) else { continue };
        for (request, (ours, theirs)) in turn.texts.iter().zip(&first.texts).enumerate() {
            if ours != theirs {
                return Err(CliError::Refused(format!(
                    "{} and {} answered request {request} of {} at once differently, which is a fault:\n  {}: {ours:?}\n  {}: {theirs:?}",
                    first.contender, turn.contender, turn.streams, turn.contender, first.contender
                )));
            }
            answers += 1;
        }
    }
    let modes: std::collections::BTreeSet<String> =
        turns.iter().map(|turn| turn.contender.to_string()).collect();
    Ok(match modes.len() {
        0 | 1 => "one mode alone: there was no other text to compare with".to_string(),
        count => {
            format!("all {count} modes gave the same texts, byte for byte: {answers} answers were compared")
        }
    })
}

/// The first turn with the same prompts, if it is another one: turns of a mode are in the order of rounds.
fn first_alike(turns: &[Turn], at: usize) -> Option<&Turn> {
    let round = |at: usize| {
        let same = |turn: &&Turn| turn.contender == turns[at].contender && turn.streams == turns[at].streams;
        turns[..at].iter().filter(same).count()
    };
    let alike =
        (0..at).find(|&other| turns[other].streams == turns[at].streams && round(other) == round(at))?;
    Some(&turns[alike])
}

fn gathered(plan: &Plan, predictions: Vec<Option<plan::Plan>>, turns: Vec<Turn>, same: String) -> Comparison {
    let mut cells = Vec::new();
    for (at, &streams) in plan.streams.iter().enumerate() {
        for (index, &contender) in plan.contenders.0.iter().enumerate() {
            let own = |turn: &&Turn| turn.contender == contender && turn.streams == streams;
            let own: Vec<Turn> = turns.iter().filter(own).cloned().collect();
            if !own.is_empty() {
                let of_round = |one: &'_ Option<plan::Plan>| one.as_ref()?.forecasts.get(index).cloned();
                let forecasts: Vec<Option<Forecast>> = predictions.iter().map(of_round).collect();
                cells.push(cell(contender.to_string(), streams, own, &forecasts, at));
            }
        }
    }
    let mut winners = Vec::new();
    for (name, _, side) in report::sides() {
        for &streams in &plan.streams {
            let alike: Vec<&Cell> = cells.iter().filter(|cell| cell.streams == streams).collect();
            let of = if streams == 1 { "1 stream".to_string() } else { format!("{streams} streams") };
            winners.extend(winner(format!("{name}, {of}"), &alike, side));
        }
    }
    Comparison {
        model: plan.model.clone(),
        device: predictions
            .iter()
            .flatten()
            .next()
            .map(|one| one.measured.device.clone())
            .unwrap_or_default(),
        workers: plan.workers,
        rounds: plan.rounds,
        prompt_tokens: plan.prompt,
        output_tokens: plan.output,
        seed: plan.seed,
        streams: plan.streams.clone(),
        cells,
        winners,
        same,
        predictions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_were_measured_outlive_a_prediction_that_fails() {
        let fails = || Err::<(), _>(CliError::Refused("memory is short now".to_string()));
        assert!(kept(1, fails()).is_err());
        assert!(matches!(kept(2, fails()), Ok(None)));
        assert!(matches!(kept(2, Ok(1)), Ok(Some(1))));
    }
}
