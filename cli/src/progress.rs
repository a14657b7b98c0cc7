//! Progress of work that is measured in bytes: downloads, and the loading of a model; `count` is for work in pieces.
//!
//! Workers report to a `ByteMeter`, which any number of threads share. One thread takes a `ByteProgress` from
//! it several times a second and hands it to a `Progress`: one bar on a terminal, else a line every few
//! seconds.

mod bar;
mod count;
mod lines;
mod tally;

use std::collections::VecDeque;
use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use bar::Bar;
pub use count::Count;
pub use lines::Lines;
pub use tally::Tally;

use crate::terminal;

/// The rate is an average over this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Most samples that the average keeps.
const RATE_SAMPLES_MAX: usize = 64;

/// Where the work stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByteProgress {
    /// Bytes of all items together; 0 while not known.
    pub total: u64,
    /// Bytes that are in place, those found at the start included.
    pub done: u64,
    /// Bytes that were found in place and did not have to be moved.
    pub resumed: u64,
    /// Bytes that this run has moved, those moved in vain included.
    pub moved: u64,
    /// Bytes per second over the last seconds.
    pub rate: u64,
    /// What is being worked on: a file, a tensor.
    pub item: String,
    pub items_done: u64,
    pub items_total: u64,
    pub elapsed: Duration,
}

impl ByteProgress {
    /// Time left at the present rate.
    pub fn left(&self) -> Option<Duration> {
        let bytes = self.total.checked_sub(self.done)?;
        (self.rate > 0 && self.total > 0).then(|| Duration::from_secs(bytes / self.rate))
    }

    pub fn percent(&self) -> u64 {
        if self.total == 0 { 0 } else { (u128::from(self.done) * 100 / u128::from(self.total)) as u64 }
    }
}

/// Shows progress to somebody.
pub trait Progress {
    /// Comes several times a second.
    fn update(&mut self, now: &ByteProgress);
    /// A line that is to stay.
    fn note(&mut self, line: &str);
    /// Comes once, when the work has ended well or badly.
    fn finish(&mut self, last: &ByteProgress);
}

/// A bar if the standard error is a terminal that a person reads, else lines. `verb` opens the lines: `pull`, `load`.
pub fn on_stderr(verb: &'static str) -> Box<dyn Progress> {
    let bar = stderr().is_terminal() && !terminal::speaks_json();
    if bar { Box::new(Bar::new()) } else { Box::new(Lines::new(verb, terminal::Noted)) }
}

/// Counts bytes for many threads.
pub struct ByteMeter {
    total: AtomicU64,
    done: AtomicU64,
    resumed: AtomicU64,
    moved: AtomicU64,
    items_done: AtomicU64,
    items_total: AtomicU64,
    item: Mutex<String>,
    started: Instant,
    /// Times and values of `moved`, for the rate.
    samples: Mutex<VecDeque<(Duration, u64)>>,
}

impl Default for ByteMeter {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            total: zero(),
            done: zero(),
            resumed: zero(),
            moved: zero(),
            items_done: zero(),
            items_total: zero(),
            item: Mutex::default(),
            started: Instant::now(),
            samples: Mutex::new(VecDeque::from([(Duration::ZERO, 0)])),
        }
    }
}

impl ByteMeter {
    /// Says what there is to do, and counts from zero; what has been moved stays counted.
    pub fn plan(&self, bytes: u64, items: u64) {
        self.total.store(bytes, Relaxed);
        self.items_total.store(items, Relaxed);
        for count in [&self.done, &self.resumed, &self.items_done] {
            count.store(0, Relaxed);
        }
    }

    /// Names what is being worked on.
    pub fn begin(&self, item: &str) {
        let mut current = self.item.lock().unwrap_or_else(PoisonError::into_inner);
        item.clone_into(&mut current);
    }

    /// One item is complete.
    pub fn end(&self) {
        self.items_done.fetch_add(1, Relaxed);
    }

    /// Bytes were moved.
    pub fn add(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
        self.done.fetch_add(bytes, Relaxed);
    }

    /// Bytes were found in place.
    pub fn add_resumed(&self, bytes: u64) {
        self.resumed.fetch_add(bytes, Relaxed);
        self.done.fetch_add(bytes, Relaxed);
    }

    /// Bytes that counted as done have turned out to be useless.
    pub fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Relaxed);
    }

    pub fn now(&self) -> ByteProgress {
        let moved = self.moved.load(Relaxed);
        let elapsed = self.started.elapsed();
        ByteProgress {
            total: self.total.load(Relaxed),
            done: self.done.load(Relaxed),
            resumed: self.resumed.load(Relaxed),
            moved,
            rate: self.rate(elapsed, moved),
            item: self.item.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            items_done: self.items_done.load(Relaxed),
            items_total: self.items_total.load(Relaxed),
            elapsed,
        }
    }

    fn rate(&self, elapsed: Duration, moved: u64) -> u64 {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = samples.back().map_or(Duration::ZERO, |sample| sample.0);
        if elapsed - newest.min(elapsed) >= RATE_WINDOW / RATE_SAMPLES_MAX as u32 {
            samples.push_back((elapsed, moved));
        }
        while samples.len() > RATE_SAMPLES_MAX || samples.get(1).is_some_and(|s| s.0 + RATE_WINDOW < elapsed)
        {
            samples.pop_front();
        }
        let (since, before) = samples.front().copied().unwrap_or_default();
        let seconds = (elapsed - since.min(elapsed)).as_secs_f64();
        if seconds > 0.0 { (moved.saturating_sub(before) as f64 / seconds) as u64 } else { 0 }
    }
}

/// `3.20 GB`, in decimal units as disks and hubs count.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// `4s`, `1m05s`, `2h03m`.
pub fn time_text(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// `3.20 of 31.2 GB (10%), 210 MB/s, 2m13s left, model-00003.safetensors`.
pub fn status_text(now: &ByteProgress) -> String {
    let mut text = match now.total {
        0 => bytes_text(now.done),
        total => format!("{} of {} ({}%)", bytes_text(now.done), bytes_text(total), now.percent()),
    };
    if now.rate > 0 {
        text.push_str(&format!(", {}/s", bytes_text(now.rate)));
    }
    if let Some(left) = now.left() {
        text.push_str(&format!(", {} left", time_text(left)));
    }
    if !now.item.is_empty() {
        text.push_str(&format!(", {}", now.item));
    }
    text
}
