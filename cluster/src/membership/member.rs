//! A worker that is there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use gaterail_proto::{ExpertId, LayerId};

use super::{Progress, WorkerAbout};

/// Once a first gap is forgiven, however long it was: so much more until the worker is heard. A router that is late again and
/// again must not keep a dead worker for ever.
const EXCUSED_MAX: Duration = Duration::from_secs(10);

pub(super) struct Member {
    pub about: WorkerAbout,
    /// Experts of which something lies packed on its host.
    pub packed: u64,
    /// Its place in the order of joining.
    pub joined: u64,
    pub heard: Instant,
    /// What was forgiven beyond a first gap since it was heard; `None` before that one.
    excused: Option<Duration>,
    /// Calls computed since its start.
    pub calls: u64,
    pub held_bytes: u64,
    /// Since when the engine waits for it without seeing it move.
    pub waiting: Option<Instant>,
    /// The longest that the engine waited for a call of it.
    pub slowest: Duration,
    pub loading: Option<Progress>,
    /// When its loading last got on.
    pub moved: Instant,
    pub leaving: bool,
}

impl Member {
    pub fn new(about: WorkerAbout, joined: u64, now: Instant) -> Member {
        let slices = about.packed.slices.iter();
        let experts: HashSet<(LayerId, ExpertId)> = slices.map(|at| (at.layer, at.expert)).collect();
        Member {
            about,
            packed: experts.len() as u64,
            joined,
            heard: now,
            excused: None,
            calls: 0,
            held_bytes: 0,
            waiting: None,
            slowest: Duration::ZERO,
            loading: None,
            moved: now,
            leaving: false,
        }
    }

    pub fn heard(&mut self, calls: u64, held_bytes: u64, now: Instant) {
        self.heard = now;
        self.excused = None;
        self.held_bytes = held_bytes;
        if calls > self.calls {
            self.calls = calls;
            self.called(now);
            self.waiting = self.waiting.map(|_| now);
        }
    }

    /// So much time does not count, within `EXCUSED_MAX`.
    pub fn excuse(&mut self, gap: Duration) {
        let gap = self.excused.map_or(gap, |excused| gap.min(EXCUSED_MAX.saturating_sub(excused)));
        self.excused = Some(self.excused.map_or(Duration::ZERO, |excused| excused + gap));
        self.heard += gap;
        self.moved += gap;
        self.waiting = self.waiting.map(|since| since + gap);
    }

    pub fn waiting(&mut self, waiting: bool, now: Instant) {
        if !waiting {
            self.called(now);
        }
        self.waiting = waiting.then(|| self.waiting.unwrap_or(now));
    }

    /// A call that was waited for is done.
    fn called(&mut self, now: Instant) {
        let waited = self.waiting.map(|since| now.saturating_duration_since(since));
        self.slowest = self.slowest.max(waited.unwrap_or_default());
    }

    pub fn loading(&mut self, progress: Progress, now: Instant) {
        let further =
            self.loading.is_none_or(|seen| seen.epoch != progress.epoch || seen.bytes < progress.bytes);
        if further {
            self.moved = now;
        }
        self.loading = Some(progress);
    }
}
