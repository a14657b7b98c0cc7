//! Moves tokens through one model, or through several in step: many sequences at a time, each in its own chunks.
//!
//! What a row yields does not depend on who shares its batch, so that nothing here changes a figure.

use gaterail_model::kv::PageTable;
use gaterail_model::walk::{Batch, Choice};

use super::models::{Model, ROWS_MAX, SEQUENCES_MAX};
use crate::error::CliError;

/// Bytes of logits of one step.
const LOGITS_BYTES_MAX: usize = 64 << 20;

/// Tokens to read.
pub struct Sequence {
    pub tokens: Vec<u32>,
    /// Logits are wanted behind each token from this one on.
    pub wants_from: usize,
    /// Tokens that may be added to them.
    pub room: usize,
}

/// Logits behind one token.
pub struct Row<'a> {
    /// Which sequence.
    pub sequence: usize,
    /// Which of its tokens.
    pub at: usize,
    /// Of each model, `[V]`.
    pub logits: &'a [&'a [f32]],
}

/// Takes what comes out.
pub trait Sink {
    /// A token to read behind the last one, or nothing more. Asked at every wanted row; counts at a sequence's last one.
    fn row(&mut self, row: &Row<'_>) -> Option<u32>;

    /// What each model's gates chose in one step.
    fn choices(&mut self, _models: Vec<Vec<Choice>>) {}

    /// So many sequences are done.
    fn done(&mut self, _count: usize) {}
}

/// A sequence on its way.
struct Active {
    sequence: usize,
    /// Tokens that have been read.
    read: usize,
    /// Its pages in each model.
    tables: Vec<PageTable>,
}

/// Reads all sequences to their ends.
pub fn feed(models: &mut [Model], mut sequences: Vec<Sequence>, sink: &mut dyn Sink) -> Result<(), CliError> {
    let mut active: Vec<Active> = Vec::new();
    let (mut next, mut done) = (0, 0);
    while next < sequences.len() || !active.is_empty() {
        while active.len() < SEQUENCES_MAX && next < sequences.len() {
            let Some(admitted) = admit(models, next, &sequences[next], active.is_empty())? else { break };
            active.push(admitted);
            next += 1;
        }
        step(models, &mut active, &mut sequences, sink)?;
        for at in (0..active.len()).rev() {
            if active[at].read == sequences[active[at].sequence].tokens.len() {
                let ended = active.swap_remove(at);
                models.iter_mut().zip(ended.tables).for_each(|(model, table)| model.release(table));
                done += 1;
            }
        }
        sink.done(done);
    }
    Ok(())
}

/// Pages for a whole sequence in every model; none if there are too few now.
fn admit(
    models: &mut [Model],
    sequence: usize,
    of: &Sequence,
    alone: bool,
) -> Result<Option<Active>, CliError> {
    let mut tables = Vec::new();
    for model in models.iter_mut() {
        let mut table = PageTable::default();
        // Models have as many pages each and take the same sequences, so that the first one speaks for all.
        match model.grow(&mut table, of.tokens.len() + of.room) {
            Ok(()) => tables.push(table),
            Err(error) if alone => return Err(CliError::Refused(error.to_string())),
            Err(_) => {
                models.iter_mut().zip(tables).for_each(|(model, table)| model.release(table));
                return Ok(None);
            }
        }
    }
    Ok(Some(Active { sequence, read: 0, tables }))
}

/// One step of every model with as many rows as there is room for, the oldest sequences first.
fn step(
    models: &mut [Model],
    active: &mut [Active],
    sequences: &mut [Sequence],
    sink: &mut dyn Sink,
) -> Result<(), CliError> {
    let vocab = models[0].spec().vocab;
    let wanted_max = (LOGITS_BYTES_MAX / size_of::<f32>() / vocab).max(1);
    let mut batches = vec![Batch::default(); models.len()];
    let mut wanted: Vec<(usize, usize)> = Vec::new();
    for (index, one) in active.iter_mut().enumerate() {
        let sequence = &sequences[one.sequence];
        let unwanted = sequence.wants_from.saturating_sub(one.read);
        let count = (sequence.tokens.len() - one.read)
            .min(ROWS_MAX - batches[0].rows.len())
            .min(unwanted + wanted_max - wanted.len());
        if count == 0 {
            continue;
        }
        let (start, end) = (one.read, one.read + count);
        for (batch, table) in batches.iter_mut().zip(&one.tables) {
            batch.add(&sequence.tokens[start..end], start, table, |row| start + row >= sequence.wants_from);
        }
        wanted.extend((start.max(sequence.wants_from)..end).map(|at| (index, at)));
        one.read = end;
    }
    let mut logits = Vec::new();
    for (model, batch) in models.iter_mut().zip(&batches) {
        logits.push(model.step(batch)?);
    }
    sink.choices(models.iter_mut().map(|model| model.experts().take()).collect());
    for (number, &(index, at)) in wanted.iter().enumerate() {
        let rows: Vec<&[f32]> = logits.iter().map(|logits| &logits[number * vocab..][..vocab]).collect();
        let sequence = active[index].sequence;
        let more = sink.row(&Row { sequence, at, logits: &rows });
        let tokens = &mut sequences[sequence].tokens;
        if at + 1 == tokens.len() {
            tokens.extend(more);
        }
    }
    Ok(())
}
