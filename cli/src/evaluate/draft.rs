//! How often a draft says what the model says: its likeliest token behind each beginning of the model's own answers.

use super::answers::Answer;
use super::feed::{Row, Sequence, Sink, feed};
use super::likelihood::likeliest;
use super::models::Model;
use super::prompts::Prompt;
use crate::error::CliError;
use crate::progress::Count;

/// Tokens of the model's answer to one prompt, and those of them that the draft would have said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreement {
    pub tokens: usize,
    pub same: usize,
}

/// Of each prompt.
pub fn agreement(
    draft: Model,
    prompts: &[Prompt],
    answers: &[Option<Answer>],
) -> Result<Vec<Agreement>, CliError> {
    let taken: Vec<Vec<u32>> =
        answers.iter().map(|answer| answer.as_ref().map_or_else(Vec::new, Answer::taken)).collect();
    let sequences = prompts.iter().zip(&taken).map(|(prompt, taken)| Sequence {
        tokens: [prompt.tokens.as_slice(), &taken[..taken.len().saturating_sub(1)]].concat(),
        wants_from: prompt.tokens.len() - 1,
        room: 0,
    });
    let sequences = sequences.collect();
    let count = Count::new("evaluate", "prompts of the draft", prompts.len());
    let mut reader =
        Reader { prompts, taken: &taken, agreement: vec![Agreement::default(); prompts.len()], count };
    feed(&mut [draft], sequences, &mut reader)?;
    Ok(reader.agreement)
}

struct Reader<'a> {
    prompts: &'a [Prompt],
    taken: &'a [Vec<u32>],
    agreement: Vec<Agreement>,
    count: Count,
}

impl Sink for Reader<'_> {
    fn row(&mut self, row: &Row<'_>) -> Option<u32> {
        let index = row.at + 1 - self.prompts[row.sequence].tokens.len();
        if let Some(&token) = self.taken[row.sequence].get(index) {
            let agreement = &mut self.agreement[row.sequence];
            agreement.tokens += 1;
            agreement.same += usize::from(likeliest(row.logits[0]) == token);
        }
        None
    }

    fn done(&mut self, count: usize) {
        self.count.show(count);
    }
}
