//! The last change of plans, from its beginning to its end: what was loaded for it, and how long any step took meanwhile.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gaterail_cluster::membership::Note;
use gaterail_proto::Epoch;
use serde::{Deserialize, Serialize};

use super::stats::ExchangeStats;

/// Steps of so much time before a change are what its steps are held against.
const BEFORE: Duration = Duration::from_secs(3);
/// A change is watched for so long after the engine has switched.
const AFTER: Duration = Duration::from_millis(500);

/// A change of plans as operators see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChangeStatus {
    pub epoch: u64,
    /// Why the plan was made.
    pub why: String,
    /// "loading"; "active": all have loaded; "in use": the engine has switched; "done": steps were watched for a while after that;
    /// "given up"
    pub state: String,
    /// Why it was given up.
    pub detail: String,
    /// It was made for a rebalance, and is not tried again: what was wanted before is wanted again. Others are tried again.
    #[serde(default)]
    pub withdrawn: bool,
    /// Bytes of experts that were loaded for it; what was there already is not loaded.
    pub loaded_bytes: u64,
    /// From the plan to its activation.
    pub seconds: f64,
    /// Milliseconds of a step, from its first rows to its last sums: the mean before, and the longest from then until a little
    /// after the switch. 0 where there was none.
    pub step_ms_before: f64,
    pub longest_step_ms: f64,
    /// Milliseconds for which a step waited for the switch itself.
    pub switch_ms: f64,
}

impl ChangeStatus {
    /// For the log.
    pub(super) fn line(&self) -> String {
        let ChangeStatus { epoch, loaded_bytes, seconds, step_ms_before, longest_step_ms, switch_ms, .. } =
            self;
        format!(
            "epoch {epoch} is in use: {:.1} MB loaded in {seconds:.2} s; the longest step meanwhile took {longest_step_ms:.1} ms ({step_ms_before:.1} ms before), {switch_ms:.2} ms of one for the switch",
            *loaded_bytes as f64 / 1e6
        )
    }
}

/// Watches.
#[derive(Default)]
pub(super) struct Changes {
    last: Option<Change>,
    /// Steps and nanoseconds of each look, lately.
    looks: VecDeque<(Instant, u64, u64)>,
    /// Totals at the last look.
    seen: (u64, u64),
}

struct Change {
    epoch: Epoch,
    since: Instant,
    switched: Option<Instant>,
    status: ChangeStatus,
}

impl Changes {
    /// Hears what the roster has to say.
    pub fn note(&mut self, note: &Note, now: Instant) {
        match note {
            Note::Planned { epoch, why, .. } => {
                let step_ms_before = self.step_ms();
                let (state, why) = ("loading".to_string(), why.to_string());
                let status =
                    ChangeStatus { epoch: epoch.0, why, state, step_ms_before, ..Default::default() };
                self.last = Some(Change { epoch: *epoch, since: now, switched: None, status });
            }
            Note::GaveUp { epoch, why, withdrawn } => {
                for change in self.last.iter_mut().filter(|change| change.epoch == *epoch) {
                    (change.status.state, change.status.detail) = ("given up".to_string(), why.clone());
                    change.status.withdrawn = *withdrawn;
                }
            }
            _ => {}
        }
    }

    /// Somebody has loaded so much for a plan.
    pub fn loaded(&mut self, epoch: Epoch, bytes: u64) {
        self.last.iter_mut().filter(|at| at.epoch == epoch).for_each(|at| {
            at.status.loaded_bytes = at.status.loaded_bytes.saturating_add(bytes);
        });
    }

    pub fn activated(&mut self, epoch: Epoch, now: Instant) {
        for change in self.last.iter_mut().filter(|change| change.epoch == epoch) {
            change.status.state = "active".to_string();
            change.status.seconds = now.saturating_duration_since(change.since).as_secs_f64();
        }
    }

    /// The engine uses it.
    pub fn switched(&mut self, epoch: Epoch, stats: &ExchangeStats, now: Instant) {
        for change in self.last.iter_mut().filter(|change| change.epoch == epoch) {
            change.switched = Some(now);
            change.status.state = "in use".to_string();
            change.status.switch_ms = stats.switch_ns.load(Ordering::Relaxed) as f64 / 1e6;
        }
    }

    /// Looks at the steps; to be called several times a second. With the change whose watch is over with this look.
    pub fn look(&mut self, stats: &ExchangeStats, now: Instant) -> Option<&ChangeStatus> {
        let totals = (stats.steps.load(Ordering::Relaxed), stats.step_ns.load(Ordering::Relaxed));
        let longest = stats.take_longest();
        self.looks.push_back((now, totals.0 - self.seen.0, totals.1 - self.seen.1));
        self.seen = totals;
        while self.looks.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) > BEFORE) {
            self.looks.pop_front();
        }
        let change = self.last.as_mut()?;
        let (status, switched) = (&mut change.status, change.switched);
        if matches!(&status.state[..], "given up" | "done") {
            return None;
        }
        status.longest_step_ms = status.longest_step_ms.max(longest.as_secs_f64() * 1e3);
        let is_over = switched.is_some_and(|switched| now > switched + AFTER);
        is_over.then(|| {
            status.state = "done".to_string();
            &*status
        })
    }

    pub fn status(&self) -> Option<ChangeStatus> {
        self.last.as_ref().map(|change| change.status.clone())
    }

    /// Of the steps of the last looks, on average.
    fn step_ms(&self) -> f64 {
        let steps: u64 = self.looks.iter().map(|(_, steps, _)| steps).sum();
        let time: u64 = self.looks.iter().map(|(.., time)| time).sum();
        if steps > 0 { time as f64 / 1e6 / steps as f64 } else { 0.0 }
    }
}
