//! Progress of work that is counted in pieces: a line every few seconds, none for work that is soon done.

use std::time::{Duration, Instant};

use crate::terminal;

const EVERY: Duration = Duration::from_secs(5);

pub struct Count {
    verb: &'static str,
    what: &'static str,
    total: usize,
    shown: Instant,
}

impl Count {
    /// `evaluate: 20 of 680 prompts`.
    pub fn new(verb: &'static str, what: &'static str, total: usize) -> Count {
        Count { verb, what, total, shown: Instant::now() }
    }

    pub fn show(&mut self, done: usize) {
        if self.shown.elapsed() >= EVERY {
            self.shown = Instant::now();
            terminal::note(&format!("{}: {done} of {} {}", self.verb, self.total, self.what));
        }
    }
}
