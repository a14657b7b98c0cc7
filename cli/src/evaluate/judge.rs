//! One pass over all prompts with their right answers: what each model would say at every token of them.
//!
//! A greedy answer is right exactly if every token of the right one is the likeliest behind those before it, and then one
//! that ends the answer. So this pass finds all right answers; only the others have to be generated.

use super::experts::ExpertUse;
use super::feed::{Row, Sequence, Sink, feed};
use super::likelihood::{divergence, likeliest, log_softmax};
use super::models::Model;
use super::prompts::Prompt;
use crate::error::CliError;
use crate::progress::Count;

/// What the model says to one right answer.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Its negative log-likelihood, in nats.
    pub loss: f64,
    /// Tokens of it that the model would say, up to the first that it would not.
    pub agreed: usize,
    /// The likeliest token behind the whole of it, if that ends an answer.
    pub ended: Option<u32>,
}

/// Two precisions over the tokens of all right answers.
#[derive(Clone, Debug, Default)]
pub struct Distance {
    pub divergence: f64,
    /// Tokens whose likeliest one is the same.
    pub same: usize,
    pub tokens: usize,
}

pub struct Judged {
    /// Of each prompt.
    pub verdicts: Vec<Verdict>,
    /// Over all rows, those of the prompts included.
    pub experts: ExpertUse,
    /// The first model against the second, where there is one.
    pub distance: Option<Distance>,
}

/// The first of `models` is judged, the second is what it is compared with.
pub fn all(models: &mut [Model], prompts: &[Prompt], stops: &[u32]) -> Result<Judged, CliError> {
    let sequences = prompts.iter().map(|prompt| Sequence {
        tokens: [prompt.tokens.as_slice(), &prompt.answer].concat(),
        wants_from: prompt.tokens.len() - 1,
        room: 0,
    });
    let sequences = sequences.collect();
    let experts = models[0].spec().layers.iter();
    let experts = experts.map(|layer| layer.mlp.sparse().map_or(0, |sparse| sparse.experts)).collect();
    let mut judge = Judge {
        prompts,
        stops,
        judged: Judged {
            verdicts: vec![Verdict::default(); prompts.len()],
            experts: ExpertUse::new(experts),
            distance: (models.len() > 1).then(Distance::default),
        },
        count: Count::new("evaluate", "prompts", prompts.len()),
    };
    feed(models, sequences, &mut judge)?;
    Ok(judge.judged)
}

struct Judge<'a> {
    prompts: &'a [Prompt],
    stops: &'a [u32],
    judged: Judged,
    count: Count,
}

impl Sink for Judge<'_> {
    fn row(&mut self, row: &Row<'_>) -> Option<u32> {
        let prompt = &self.prompts[row.sequence];
        let verdict = &mut self.judged.verdicts[row.sequence];
        let values = log_softmax(row.logits[0]);
        let best = likeliest(&values);
        let index = row.at + 1 - prompt.tokens.len();
        let Some(&right) = prompt.answer.get(index) else {
            verdict.ended = Some(best).filter(|best| self.stops.contains(best));
            return None;
        };
        verdict.loss -= f64::from(values[right as usize]);
        verdict.agreed += usize::from(verdict.agreed == index && best == right);
        if let (Some(distance), Some(other)) = (&mut self.judged.distance, row.logits.get(1)) {
            let truth = log_softmax(other);
            distance.divergence += divergence(&truth, &values);
            distance.same += usize::from(likeliest(&truth) == best);
            distance.tokens += 1;
        }
        None
    }

    fn choices(&mut self, models: Vec<Vec<gaterail_model::walk::Choice>>) {
        self.judged.experts.add(&models[0], models.get(1).map(Vec::as_slice));
    }

    fn done(&mut self, count: usize) {
        self.count.show(count);
    }
}
