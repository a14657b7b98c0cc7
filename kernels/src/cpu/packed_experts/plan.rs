//! Who computes what: rows sorted by expert, and the tasks of the first step.

use super::packed;
use crate::buffer::AlignedVec;
use crate::ops::{ExpertsArgs, UNIT_MIN};

/// The rows that chose a piece's expert.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub piece: usize,
    /// Its rows in `Plan::rows`.
    pub first: usize,
    pub count: usize,
    /// Where its activated rows begin, in groups of `GROUP_MIN`.
    pub groups: usize,
}

/// Who computes what, and the activated rows between the steps; kept for the next layer.
#[derive(Default)]
pub(crate) struct Plan {
    pub jobs: Vec<Job>,
    /// A job and a unit of it.
    pub tasks: Vec<(u32, u32)>,
    /// Row and gate weight, job after job.
    pub rows: Vec<u32>,
    pub weights: Vec<f32>,
    /// How many rows chose each expert, then where its next row goes.
    cursor: Vec<u32>,
    by_expert: Vec<(u32, f32)>,
    pub codes: Option<AlignedVec<i8>>,
    pub scales: Vec<f32>,
    pub sums: Vec<i32>,
    pub starts: Vec<i32>,
}

impl Plan {
    /// Sorts the rows by expert, and lays out the tasks.
    pub fn make(&mut self, args: &ExpertsArgs<'_>) {
        let rows = args.x.rows();
        let ids = &args.ids.host()[..rows * args.top_k];
        let weights = &args.weights.host()[..rows * args.top_k];
        let experts = 1 + args.pieces.experts().iter().max().map_or(0, |&expert| expert as usize);
        // Starts of each expert's rows, by counting; rows stay in order.
        self.cursor.clear();
        self.cursor.resize(experts + 1, 0);
        for &id in ids.iter().filter(|id| (**id as usize) < experts) {
            self.cursor[id as usize + 1] += 1;
        }
        for expert in 0..experts {
            self.cursor[expert + 1] += self.cursor[expert];
        }
        self.by_expert.clear();
        self.by_expert.resize(self.cursor[experts] as usize, (0, 0.0));
        for (index, (&id, &weight)) in ids.iter().zip(weights).enumerate() {
            if (id as usize) < experts {
                let at = &mut self.cursor[id as usize];
                self.by_expert[*at as usize] = ((index / args.top_k) as u32, weight);
                *at += 1;
            }
        }
        self.jobs.clear();
        self.tasks.clear();
        self.rows.clear();
        self.weights.clear();
        let mut groups = 0;
        for (index, &expert) in args.pieces.experts().iter().enumerate() {
            let expert = expert as usize;
            // The cursor of an expert now stands where the next one's rows begin.
            let start = if expert == 0 { 0 } else { self.cursor[expert - 1] as usize };
            let chosen = &self.by_expert[start..self.cursor[expert] as usize];
            if chosen.is_empty() {
                continue;
            }
            let piece = &args.pieces[index];
            let (f, group) = (piece.gate.rows(), packed(&piece.down).format().group);
            let job = self.jobs.len() as u32;
            self.tasks.extend((0..f.div_ceil(UNIT_MIN) as u32).map(|unit| (job, unit)));
            self.jobs.push(Job { piece: index, first: self.rows.len(), count: chosen.len(), groups });
            groups += chosen.len() * f.div_ceil(group) * (group / GROUP_MIN);
            self.rows.extend(chosen.iter().map(|(row, _)| *row));
            self.weights.extend(chosen.iter().map(|(_, weight)| *weight));
        }
        if self.codes.as_ref().is_none_or(|codes| codes.as_slice().len() < groups * GROUP_MIN) {
            self.codes = Some(AlignedVec::zeros(groups * GROUP_MIN));
        }
        self.scales.resize(groups.max(self.scales.len()), 0.0);
        self.sums.resize(groups.max(self.sums.len()), 0);
        self.starts.resize(groups.max(self.starts.len()), 0);
    }
}

/// Hidden rows are laid out in steps of the smallest group.
pub(crate) const GROUP_MIN: usize = 32;
