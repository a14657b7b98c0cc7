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

use gaterail_cluster::predict::Drawn;
use serde::Serialize;

use super::dialect::Dialect;
use super::interrupt;
use super::save::save;
use crate::error::CliError;
use crate::plan;
use crate::plan::args::Crew;
use crate::plan::forecast::{Draws, Forecast};
use crate::plan::{Contender, Contenders, Study};
use crate::progress::Tally;
use crate::terminal;
use crate::weights::KvArg;
use args::Plan;
use figures::{Cell, Winner, cell, winner};
use measure::{Circumstances, Reads, Texts, Turn, turn};
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
    /// In the order in which they were made: for each mode in each round, and for each time that it was measured again.
    pub predictions: Vec<plan::Plan>,
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
        save(path, &(text + "\n"))?;
    }
    if let Some(path) = page {
        save(path, &report::page(&found))?;
    }
    match stop.load(Relaxed) {
        true => Err(CliError::Refused("interrupted: the figures are those of the turns before".to_string())),
        false => Ok(()),
    }
}

/// How often a mode is measured again in a round because the machine's memory moved.
const AGAIN_MAX: usize = 1;

/// What was said before turns, and what was measured.
#[derive(Default)]
struct Measured {
    predictions: Vec<plan::Plan>,
    turns: Vec<Turn>,
}

/// This machine, measured before the mode's server takes memory and cores: it need not be as fast as it was a minute ago.
fn study<'a>(plan: &'a Plan, crew: &'a Crew, only: &'a Contenders) -> Result<Study<'a>, CliError> {
    let study = Study::new(plan::Asked {
        model: &plan.model,
        weights: plan.weights,
        kv: KvArg::Auto,
        threads: plan.threads,
        crew,
        contenders: only,
        question: plan.question(),
    })?;
    for forecast in &study.forecasts(Draws::EVEN) {
        if let Some(why) = &forecast.misfit {
            return Err(CliError::Refused(format!("{}: {why}", forecast.mode)));
        }
    }
    Ok(study)
}

/// Turns that cannot be predicted have no prediction: those before are worth more than the reason.
fn kept<T>(predicted: Result<T, CliError>) -> Option<T> {
    let said = |error: &CliError| {
        terminal::note(&terminal::visible(&format!("bench: no prediction for these turns: {error}")));
    };
    predicted.inspect_err(said).ok()
}

/// Every mode in turn, again and again.
fn turns(plan: &Plan, stop: &AtomicBool) -> Result<Measured, CliError> {
    let modes = &plan.contenders.0;
    let mut shown = Tally::new("compare", "turns", plan.rounds * modes.len() * plan.streams.len());
    let (mut measured, mut asked) = (Measured::default(), None);
    // What does not fit is refused with what would, before anything is measured for a mode that does.
    study(plan, &plan.crew(), &plan.contenders)?;
    for round in 1..=plan.rounds {
        for &contender in modes {
            let turns = Round { plan, contender, round, stop }.turns(&mut asked, &mut measured)?;
            measured.turns.extend(turns);
            shown.show(measured.turns.len());
            if stop.load(Relaxed) {
                shown.finish();
                return Ok(measured);
            }
        }
    }
    shown.finish();
    Ok(measured)
}

/// One mode's turns of one round.
struct Round<'a> {
    plan: &'a Plan,
    contender: Contender,
    round: usize,
    stop: &'a AtomicBool,
}

impl Round<'_> {
    /// By number of streams. Where memory moved under a turn, its number of streams is measured again, on a new server that has
    /// not seen its prompts, beside a new prediction; what was steadiest is kept.
    fn turns(
        &self,
        asked: &mut Option<(Texts, Dialect)>,
        measured: &mut Measured,
    ) -> Result<Vec<Turn>, CliError> {
        let mut kept: Vec<Option<Turn>> = vec![None; self.plan.streams.len()];
        for again in 0..=AGAIN_MAX {
            let is_open = |turn: &Option<Turn>| turn.as_ref().is_none_or(|turn| !turn.reads.steady());
            let open: Vec<usize> = (0..kept.len()).filter(|&at| is_open(&kept[at])).collect();
            if open.is_empty() || self.stop.load(Relaxed) {
                break;
            }
            if again > 0 {
                let each = open.iter().filter_map(|&at| kept[at].as_ref());
                let reads: Vec<String> = each.map(|turn| turn.reads.to_string()).collect();
                let reads = reads.join("; ");
                terminal::note(&format!("bench: {}: memory moved ({reads} GB/s): again", self.contender));
            }
            for (at, turn) in self.pass(&open, asked, measured)? {
                let Some(before) = &kept[at] else {
                    kept[at] = Some(turn);
                    continue;
                };
                // Neither may be dropped before its texts were looked at.
                check_texts(&[before.clone(), turn.clone()])?;
                if turn.reads.apart() < before.reads.apart() {
                    kept[at] = Some(turn);
                }
            }
        }
        Ok(kept.into_iter().flatten().collect())
    }

    /// Rates, a server, and turns with those numbers of streams.
    fn pass(
        &self,
        open: &[usize],
        asked: &mut Option<(Texts, Dialect)>,
        measured: &mut Measured,
    ) -> Result<Vec<(usize, Turn)>, CliError> {
        let &Round { plan, contender, round, stop } = self;
        let (crew, only) = (plan.crew(), Contenders(vec![contender]));
        let study = kept(study(plan, &crew, &only));
        measured.predictions.extend(study.as_ref().map(Study::plan));
        let mut turns = Vec::new();
        let Some(server) = Server::start(plan, contender, stop)? else { return Ok(turns) };
        let (texts, dialect) = match asked {
            Some(asked) => &*asked,
            none => none.insert(questions(plan, &server)?),
        };
        let on = Circumstances { plan, texts, dialect, stop };
        // The first step after a start finds nothing in its caches.
        turn(&on, &server, contender, open[0], 0)?;
        for &at in open {
            let before = plan::read_now(plan.threads)?;
            let Some(mut turn) = turn(&on, &server, contender, at, round)? else { break };
            let after = plan::read_now(plan.threads)?;
            let known = study.as_ref().map_or(before, |study| study.measured().read_bytes_per_second);
            turn.reads = Reads([known, before, after]);
            if let Some(study) = &study {
                turn.predicted = study.forecasts(Draws::EVEN).pop();
                turn.knowing = knowing(study, &turn);
            }
            turns.push((at, turn));
        }
        Ok(turns)
    }
}

/// What would have been predicted with the experts that the turn's rows went to.
fn knowing(study: &Study<'_>, turn: &Turn) -> Option<Forecast> {
    let (prefill, decode) = (turn.prefill.seen.as_ref()?, turn.decode.seen.as_ref()?);
    study.forecasts(Draws { prefill: Drawn::Seen(prefill), decode: Drawn::Seen(decode) }).pop()
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

/// The first turn with the same prompts, if it is another one.
fn first_alike(turns: &[Turn], at: usize) -> Option<&Turn> {
    let this = &turns[at];
    turns[..at].iter().find(|other| other.streams == this.streams && other.round == this.round)
}

fn gathered(plan: &Plan, predictions: Vec<plan::Plan>, turns: Vec<Turn>, same: String) -> Comparison {
    let mut cells = Vec::new();
    for (at, &streams) in plan.streams.iter().enumerate() {
        for &contender in &plan.contenders.0 {
            let own = |turn: &&Turn| turn.contender == contender && turn.streams == streams;
            let own: Vec<Turn> = turns.iter().filter(own).cloned().collect();
            if !own.is_empty() {
                cells.push(cell(contender.to_string(), streams, own, at));
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
        device: predictions.first().map(|one| one.measured.device.clone()).unwrap_or_default(),
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
    fn turns_outlive_a_prediction_that_fails() {
        assert_eq!(kept(Err::<(), _>(CliError::Refused("memory is short now".to_string()))), None);
        assert_eq!(kept(Ok(1)), Some(1));
    }
}
