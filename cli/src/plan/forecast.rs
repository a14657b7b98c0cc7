//! What every way to spread the experts costs: a pure function of shape, rates and placement.

use gaterail_cluster::placement::{Seat, Wanted, place};
use gaterail_cluster::predict::{Prediction, Rates, Step, Term, Terms, Verdict, Where, compare, predict};
use gaterail_proto::{ExpertInventory, Placement};
use serde::Serialize;

use super::args::Contender;

/// What is asked of every contender.
#[derive(Clone, Debug, Serialize)]
pub struct Question {
    /// Sequences that are decoded at once.
    pub streams: Vec<u32>,
    /// Positions that each has then.
    pub context: u32,
    /// Tokens of a prompt.
    pub prompt: u32,
    /// Rows of a step, at most.
    pub step_rows: u32,
    pub copies: u32,
}

/// What is known of model and machines.
pub struct Known<'a> {
    pub shape: &'a gaterail_cluster::predict::Shape,
    pub inventory: &'a ExpertInventory,
    pub rates: Rates,
    pub seats: Vec<Seat>,
    pub smaller: &'a [(String, ExpertInventory)],
    /// Why all in one process does not fit.
    pub local_misfit: Option<String>,
}

/// A contender's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    pub mode: String,
    /// Why it does not fit.
    pub misfit: Option<String>,
    /// By `Question::streams`.
    pub decode: Vec<Prediction>,
    /// One step of a prompt.
    pub prefill: Option<Prediction>,
    /// Seconds until so many prompts that come at once have their first tokens, on average; by `Question::streams`.
    pub first_token_seconds: Vec<f64>,
    /// Of each worker, in bytes of experts.
    pub memory: Vec<f64>,
}

pub fn forecasts(known: &Known<'_>, contenders: &[Contender], question: &Question) -> Vec<Forecast> {
    contenders.iter().map(|&contender| forecast(known, contender, question)).collect()
}

fn forecast(known: &Known<'_>, contender: Contender, question: &Question) -> Forecast {
    let placed = match contender {
        Contender::Local => match &known.local_misfit {
            Some(why) => Err(why.clone()),
            None => Ok(None),
        },
        Contender::On(mode) => {
            let wanted = Wanted {
                inventory: known.inventory,
                seats: &known.seats,
                mode,
                copies: question.copies,
                replica_bytes: 0,
                popularity: None,
                current: None,
                beside: false,
                smaller: known.smaller,
            };
            place(&wanted).map(Some).map_err(|misfit| misfit.to_string())
        }
    };
    let mode = contender.to_string();
    match placed {
        Ok(placement) => fitting(known, mode, placement.as_ref(), question),
        Err(why) => Forecast {
            mode,
            misfit: Some(why),
            decode: Vec::new(),
            prefill: None,
            first_token_seconds: Vec::new(),
            memory: Vec::new(),
        },
    }
}

fn fitting(known: &Known<'_>, mode: String, placement: Option<&Placement>, question: &Question) -> Forecast {
    let at = placement.map_or(Where::Local, Where::On);
    let step = |step| predict(known.shape, &known.rates, at, step, None);
    let decode: Vec<Prediction> =
        question.streams.iter().map(|&streams| step(Step::decode(streams, question.context))).collect();
    let first = |&streams: &u32| first_tokens(question, streams, |rows| step(rows).terms.total());
    let memory = decode.first().map(|one| one.memory.iter().map(|(_, bytes)| *bytes).collect());
    Forecast {
        mode,
        misfit: None,
        prefill: Some(step(Step::prefill(question.prompt.min(question.step_rows)))),
        first_token_seconds: question.streams.iter().map(first).collect(),
        decode,
        memory: memory.unwrap_or_default(),
    }
}

/// When so many prompts that come at once have their first tokens, on average: steps take their rows in order, full ones
/// first.
fn first_tokens(question: &Question, prompts: u32, seconds: impl Fn(Step) -> f64) -> f64 {
    let (prompt, step_rows) = (u64::from(question.prompt), u64::from(question.step_rows));
    let all = u64::from(prompts) * prompt;
    let (mut done, mut now, mut sum, mut last) = (0u64, 0.0, 0.0, None);
    while done < all {
        let rows = step_rows.min(all - done);
        // Prompts that have rows in this step, and where in them those are.
        let sequences = (done + rows).div_ceil(prompt) - done / prompt;
        let middle = if sequences == 1 { done % prompt + rows / 2 } else { prompt / 2 };
        let step = Step { rows: rows as u32, sequences: sequences as u32, context: middle as u32 };
        // Steps of many prompts are alike.
        let took = match last {
            Some((known, took)) if known == step => took,
            _ => seconds(step),
        };
        last = Some((step, took));
        now += took;
        sum += now * ((done + rows) / prompt - done / prompt) as f64;
        done += rows;
    }
    sum / f64::from(prompts.max(1))
}

/// Who wins one step, over whom, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Winner {
    pub step: String,
    pub winner: String,
    pub over: Vec<Lead>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Lead {
    pub loser: String,
    /// The loser's time over the winner's.
    pub factor: f64,
    pub term: Term,
    /// Seconds of a step that the winner saves in that term.
    pub seconds: f64,
}

/// Winners for decode with each number of streams, and for a prompt.
pub fn winners(forecasts: &[Forecast], question: &Question) -> Vec<Winner> {
    let decode = question.streams.iter().enumerate().map(|(at, &streams)| {
        (decode_name(streams), forecasts.iter().map(|one| one.decode.get(at)).collect::<Vec<_>>())
    });
    let prefill = forecasts.iter().map(|one| one.prefill.as_ref()).collect();
    let steps = decode.chain([(format!("prefill of {}", question.prompt), prefill)]);
    steps.filter_map(|(step, found)| winner(step, forecasts, &found)).collect()
}

pub fn decode_name(streams: u32) -> String {
    format!("decode, {streams} stream{}", if streams == 1 { "" } else { "s" })
}

fn winner(step: String, forecasts: &[Forecast], found: &[Option<&Prediction>]) -> Option<Winner> {
    let named = forecasts.iter().zip(found).filter_map(|(one, found)| Some((&one.mode, (*found)?)));
    let mut all: Vec<(&String, &Prediction)> = named.collect();
    all.sort_by(|a, b| a.1.terms.total().total_cmp(&b.1.terms.total()));
    let (winner, best) = all.first().copied()?;
    let over = all.iter().skip(1).map(|(loser, worse)| {
        let Verdict { factor, because: (term, seconds), .. } = compare(best, worse);
        Lead { loser: loser.to_string(), factor, term, seconds }
    });
    Some(Winner { step, winner: winner.clone(), over: over.collect() })
}

/// A term as a person calls it.
pub fn term_name(term: Term) -> &'static str {
    match term {
        Term::Trunk => "trunk",
        Term::Gate => "gate",
        Term::Dispatch => "dispatch",
        Term::Experts => "experts",
        Term::Wait => "waiting for the slowest",
        Term::Combine => "combine",
    }
}

/// Of a step in milliseconds, with their names.
pub fn named_ms(terms: &Terms) -> [(&'static str, f64); 6] {
    terms.all().map(|(term, seconds)| (term_name(term), seconds * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_tokens_come_when_their_steps_are_done() {
        let question =
            |prompt, step_rows| Question { streams: vec![], context: 1, prompt, step_rows, copies: 1 };
        // A step of so many rows takes as many seconds.
        let seconds = |step: Step| f64::from(step.rows);
        assert_eq!(first_tokens(&question(100, 512), 1, seconds), 100.0);
        assert_eq!(first_tokens(&question(100, 40), 1, seconds), 100.0);
        // Two in one step; then four in two steps.
        assert_eq!(first_tokens(&question(100, 200), 2, seconds), 200.0);
        assert_eq!(first_tokens(&question(100, 200), 4, seconds), 300.0);
        // The first of three is done with the first step, the others with the second.
        assert_eq!(first_tokens(&question(100, 150), 3, seconds), (150.0 + 300.0 + 300.0) / 3.0);
    }
}
