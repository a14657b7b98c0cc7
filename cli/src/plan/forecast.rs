//! What every way to spread the experts costs: a pure function of shape, rates and placement.

use gaterail_cluster::placement::{Seat, Wanted, place};
use gaterail_cluster::predict::{
    Drawn, Prediction, Rates, Step, Term, Terms, Verdict, Where, compare, predict,
};
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
    pub draws: Draws<'a>,
}

/// Which experts rows are taken to go to.
#[derive(Clone, Copy, Debug)]
pub struct Draws<'a> {
    pub prefill: Drawn<'a>,
    pub decode: Drawn<'a>,
}

impl Draws<'_> {
    /// To all alike.
    pub const EVEN: Draws<'static> = Draws { prefill: Drawn::Even, decode: Drawn::Even };
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
                copies: question.copies,
                smaller: known.smaller,
                ..Wanted::new(known.inventory, &known.seats, mode)
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
    let step = |step, drawn| predict(known.shape, &known.rates, at, step, drawn);
    let Draws { prefill, decode: drawn } = known.draws;
    let decode = |&streams: &u32| step(Step::decode(streams, question.context), drawn);
    let decode: Vec<Prediction> = question.streams.iter().map(decode).collect();
    let first = |&streams: &u32| question.first_tokens(streams, |rows| step(rows, prefill).terms.total());
    let memory = decode.first().map(|one| one.memory.iter().map(|(_, bytes)| *bytes).collect());
    Forecast {
        mode,
        misfit: None,
        prefill: Some(step(Step::prefill(question.prompt.min(question.step_rows)), prefill)),
        first_token_seconds: question.streams.iter().map(first).collect(),
        decode,
        memory: memory.unwrap_or_default(),
    }
}

/// Parts of a prompt in which its pieces are told from each other by their context.
const CONTEXTS: u64 = 4;

/// A step of prompts, and how many of those have their first tokens after it.
struct PromptStep {
    step: Step,
    done: u64,
}

impl Question {
    /// All steps that are asked about, each once; those first that say most.
    pub fn steps(&self) -> Vec<Step> {
        let mut all: Vec<Step> = vec![Step::prefill(self.prompt.min(self.step_rows))];
        let decode = self.streams.iter().map(|&streams| Step::decode(streams, self.context));
        let prompts = self.streams.iter().flat_map(|&streams| self.prompt_steps(streams));
        for step in decode.chain(prompts.map(|one| one.step)) {
            if !all.contains(&step) {
                all.push(step);
            }
        }
        all
    }

    /// Where a piece of a prompt lies, to a part of the prompt: pieces that lie nearly alike are one step.
    fn rounded(&self, middle: u64) -> u64 {
        let (prompt, parts) = (u64::from(self.prompt), CONTEXTS);
        if self.prompt <= self.step_rows {
            middle
        } else {
            (2 * (middle * parts / prompt) + 1) * prompt / (2 * parts)
        }
    }

    /// The steps of so many prompts that come at once. The first of them finds an engine that has nothing to do, and does not
    /// wait for the others; from then on steps are full, and take rows in order.
    fn prompt_steps(&self, prompts: u32) -> Vec<PromptStep> {
        let (prompt, most) = (u64::from(self.prompt), u64::from(self.step_rows));
        let (all, mut done, mut steps) = (u64::from(prompts) * prompt, 0, Vec::new());
        while done < all {
            let rows = most.min(if done == 0 { prompt } else { all - done });
            // Prompts that have rows in this step, and where in them those are.
            let sequences = (done + rows).div_ceil(prompt) - done / prompt;
            let middle = if sequences == 1 { self.rounded(done % prompt + rows / 2) } else { prompt / 2 };
            let step = Step { rows: rows as u32, sequences: sequences as u32, context: middle as u32 };
            steps.push(PromptStep { step, done: (done + rows) / prompt - done / prompt });
            done += rows;
        }
        steps
    }

    /// When so many prompts that come at once have their first tokens, on average.
    fn first_tokens(&self, prompts: u32, seconds: impl Fn(Step) -> f64) -> f64 {
        let (mut now, mut sum, mut last) = (0.0, 0.0, None);
        for PromptStep { step, done } in self.prompt_steps(prompts) {
            // Steps of many prompts are alike.
            let took = match last {
                Some((known, took)) if known == step => took,
                _ => seconds(step),
            };
            last = Some((step, took));
            now += took;
            sum += now * done as f64;
        }
        sum / f64::from(prompts.max(1))
    }
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
        Term::Ends => "embedding and head",
        Term::Sampling => "sampling",
    }
}

/// Of a step in milliseconds, with their names.
pub fn named_ms(terms: &Terms) -> [(&'static str, f64); 8] {
    terms.all().map(|(term, seconds)| (term_name(term), seconds * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_tokens_come_when_their_steps_are_done() {
        let first = |prompt, step_rows, prompts| {
            let question = Question { streams: vec![], context: 1, prompt, step_rows, copies: 1 };
            // A step of so many rows takes as many seconds.
            question.first_tokens(prompts, |step: Step| f64::from(step.rows))
        };
        assert_eq!(first(100, 512, 1), 100.0);
        assert_eq!(first(100, 40, 1), 100.0);
        // One after the other: nobody waits for the second. Then four, of which three share two steps.
        assert_eq!(first(100, 200, 2), 150.0);
        assert_eq!(first(100, 200, 4), (100.0 + 300.0 + 300.0 + 400.0) / 4.0);
        // The second of three is done with the second step, the third with the third.
        assert_eq!(first(100, 150, 3), (100.0 + 250.0 + 300.0) / 3.0);
    }

    #[test]
    fn long_prompts_are_few_steps() {
        let question =
            Question { streams: vec![1, 4, 16, 64], context: 512, prompt: 4000, step_rows: 512, copies: 1 };
        let steps = question.steps();
        assert!(steps.len() <= 20, "{} steps", steps.len());
        // Yet each of them is among those that are walked or near one, and early pieces are cheaper than late ones.
        let contexts: std::collections::BTreeSet<u32> = steps
            .iter()
            .filter(|step| step.sequences == 1 && step.rows == 512)
            .map(|step| step.context)
            .collect();
        assert!(contexts.contains(&500) && contexts.contains(&3500), "{contexts:?}");
        let all: u64 = question.prompt_steps(16).iter().map(|one| u64::from(one.step.rows)).sum();
        assert_eq!(all, 16 * 4000);
    }
}
