//! The model's own greedy answers, as tokens.

use super::feed::{Row, Sequence, Sink, feed};
use super::judge::Judged;
use super::likelihood::likeliest;
use super::models::Model;
use super::prompts::Prompt;
use crate::error::CliError;
use crate::progress::Count;

/// Which answers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that can be right or wrong.
    Scored,
    All,
}

/// A greedy answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub tokens: Vec<u32>,
    /// The token that ended it; none where it was cut off.
    pub end: Option<u32>,
}

impl Answer {
    /// All tokens that were taken, the last one included.
    pub fn taken(&self) -> Vec<u32> {
        self.tokens.iter().copied().chain(self.end).collect()
    }
}

/// Of each prompt; none where it is not wanted. Those that are right are known, the others are generated from where they
/// part from the right ones.
pub fn own(
    models: &mut [Model],
    prompts: &[Prompt],
    judged: &Judged,
    stops: &[u32],
    which: Which,
) -> Result<Vec<Option<Answer>>, CliError> {
    let context = models[0].spec().context;
    let mut answers: Vec<Option<Answer>> = Vec::new();
    let (mut sequences, mut whose) = (Vec::new(), Vec::new());
    for (index, (prompt, verdict)) in prompts.iter().zip(&judged.verdicts).enumerate() {
        let agreed = &prompt.answer[..verdict.agreed];
        let whole = verdict.agreed == prompt.answer.len() && verdict.ended.is_some();
        let wanted = which == Which::All || !prompt.free;
        answers
            .push(wanted.then(|| Answer { tokens: agreed.to_vec(), end: verdict.ended.filter(|_| whole) }));
        if wanted && !whole {
            let tokens = [prompt.tokens.as_slice(), agreed].concat();
            let most = (prompt.tokens.len() + prompt.answer_max()).min(context);
            let room = most.saturating_sub(tokens.len());
            sequences.push(Sequence { wants_from: tokens.len() - 1, tokens, room });
            whose.push(index);
        }
    }
    let count = Count::new("evaluate", "answers", sequences.len());
    let mut writer = Writer { prompts, stops, whose, context, answers, count };
    feed(&mut models[..1], sequences, &mut writer)?;
    Ok(writer.answers)
}

struct Writer<'a> {
    prompts: &'a [Prompt],
    stops: &'a [u32],
    /// The prompt of each sequence.
    whose: Vec<usize>,
    context: usize,
    answers: Vec<Option<Answer>>,
    count: Count,
}

impl Sink for Writer<'_> {
    fn row(&mut self, row: &Row<'_>) -> Option<u32> {
        let whose = self.whose[row.sequence];
        let (prompt, answer) = (&self.prompts[whose], self.answers[whose].as_mut()?);
        let token = likeliest(row.logits[0]);
        if self.stops.contains(&token) {
            answer.end = Some(token);
            return None;
        }
        answer.tokens.push(token);
        let full = prompt.tokens.len() + answer.tokens.len() >= self.context;
        (answer.tokens.len() < prompt.answer_max() && !full).then_some(token)
    }

    fn done(&mut self, count: usize) {
        self.count.show(count);
    }
}
