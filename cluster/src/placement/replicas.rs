//! Further copies of the experts that are hit most, where they shorten a layer most.

use super::job::Job;
use super::spread::{Spread, group_of};

/// A copy that shortens its layer by less than this part of the layer's mean time is not worth its memory.
const GAIN_MIN: f64 = 0.02;
/// Candidates of the busiest group that are looked at.
const HOTTEST: usize = 4;
/// What is there already is preferred, so that nothing moves for next to nothing.
const THERE: f64 = 1.1;

/// Adds copies to `spread` within the memory meant for them.
pub(super) fn replicate(job: &Job<'_>, spread: &mut Spread) {
    let mut budget = job.wanted.replica_bytes as f64;
    if job.wanted.popularity.is_none() {
        keep(job, spread, budget);
        return;
    }
    let mut candidates: Vec<Option<Candidate>> =
        (0..job.layers.len()).map(|layer| candidate(job, spread, layer, budget)).collect();
    loop {
        let best = candidates.iter().flatten().max_by(|a, b| a.gain.total_cmp(&b.gain)).copied();
        let Some(Candidate { expert, group, .. }) = best else { return };
        let at = job.experts[expert];
        if at.bytes <= budget {
            budget -= at.bytes;
            spread.room[group] -= job.cost(expert, group);
            spread.at[expert].push(group);
        }
        candidates[at.layer] = candidate(job, spread, at.layer, budget);
    }
}

/// Without knowing what is hot: those there are, as far as they fit.
fn keep(job: &Job<'_>, spread: &mut Spread, mut budget: f64) {
    for (expert, copies) in job.now.iter().enumerate() {
        for group in copies.iter().filter_map(|copy| group_of(job, copy)) {
            let (bytes, cost) = (job.experts[expert].bytes, job.cost(expert, group));
            let fits = bytes <= budget && cost <= spread.room[group] && !spread.at[expert].contains(&group);
            if fits {
                budget -= bytes;
                spread.room[group] -= cost;
                spread.at[expert].push(group);
            }
        }
    }
}

/// A copy that could be added.
#[derive(Clone, Copy)]
struct Candidate {
    /// Hits by which the busiest group of the layer gets shorter, a unit of speed.
    gain: f64,
    expert: usize,
    group: usize,
}

/// The best copy to add to a layer.
fn candidate(job: &Job<'_>, spread: &Spread, layer: usize, budget: f64) -> Option<Candidate> {
    let experts = job.layers[layer].clone();
    let bytes = job.experts[experts.clone().next()?].bytes;
    if bytes > budget {
        return None;
    }
    let mut load = vec![0.0; job.groups.len()];
    for expert in experts.clone() {
        let part = job.hits(expert) / spread.at[expert].len() as f64;
        spread.at[expert].iter().for_each(|&group| load[group] += part);
    }
    let time = |load: &[f64]| {
        let times = load.iter().zip(&job.groups).map(|(load, group)| load / group.speed);
        times.fold(0.0, f64::max)
    };
    let longest = time(&load);
    let mean = load.iter().sum::<f64>() / job.groups.iter().map(|group| group.speed).sum::<f64>();
    let busiest = (0..load.len())
        .max_by(|&a, &b| (load[a] / job.groups[a].speed).total_cmp(&(load[b] / job.groups[b].speed)))?;
    let part = |expert: usize| job.hits(expert) / spread.at[expert].len() as f64;
    let mut hot: Vec<usize> = experts.filter(|&expert| spread.at[expert].contains(&busiest)).collect();
    hot.sort_by(|&a, &b| part(b).total_cmp(&part(a)));
    let mut best: Option<Candidate> = None;
    for &expert in hot.iter().take(HOTTEST) {
        for group in 0..load.len() {
            if spread.at[expert].contains(&group) || job.cost(expert, group) > spread.room[group] {
                continue;
            }
            let (before, holders) = (part(expert), &spread.at[expert]);
            let after = job.hits(expert) / (holders.len() + 1) as f64;
            let mut then = load.clone();
            holders.iter().for_each(|&holder| then[holder] -= before - after);
            then[group] += after;
            let held = job.now[expert].iter().any(|copy| group_of(job, copy) == Some(group));
            let gain = (longest - time(&then)) * if held { THERE } else { 1.0 };
            if gain > GAIN_MIN * mean && best.is_none_or(|best| gain > best.gain) {
                best = Some(Candidate { gain, expert, group });
            }
        }
    }
    best
}
