//! Sends a load and gathers what became of it. A closed loop is so many threads that take the next request each; an open
//! one is a thread for each request, started when the request is due, whether or not the others have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::dialect::Dialect;
use super::request::{Asked, Record, perform};
use crate::endpoint::{Endpoint, Failure};

/// Most requests that are under way at once.
pub const UNDER_WAY_MAX: usize = 4096;
const STACK_BYTES: usize = 512 << 10;
/// How often the gatherer looks at the clock and at Ctrl-C.
const TICK: Duration = Duration::from_millis(100);

/// What is sent, and where.
pub struct Load {
    pub endpoint: Endpoint,
    pub dialect: Dialect,
    pub requests: Vec<Asked>,
    /// How many are under way at any time; without it each goes at its own time.
    pub concurrency: Option<usize>,
    /// No request starts later than that.
    pub until: Option<Duration>,
}

pub struct Measured {
    /// In the order of the load.
    pub records: Vec<Record>,
    /// From the start to the end of the last request, in seconds.
    pub duration: f64,
    /// Ctrl-C ended it.
    pub interrupted: bool,
}

/// What the threads of a run share.
struct Run {
    load: Load,
    begun: Instant,
    next: AtomicUsize,
    under_way: AtomicUsize,
    over: AtomicBool,
}

/// Runs the load to its end, or until `stop`. `show` is told how many have ended.
pub fn run(load: Load, stop: &AtomicBool, mut show: impl FnMut(usize)) -> Measured {
    let run = Arc::new(Run {
        begun: Instant::now(),
        next: AtomicUsize::new(0),
        under_way: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        load,
    });
    let (sender, receiver) = channel();
    match run.load.concurrency {
        Some(concurrency) => {
            for _ in 0..concurrency.min(run.load.requests.len()) {
                let (run, sender) = (run.clone(), sender.clone());
                start(move || run.take_in_turn(&sender));
            }
            drop(sender);
        }
        None => {
            let run = run.clone();
            start(move || run.send_when_due(&sender));
        }
    }
    let mut records = gather(&receiver, stop, &mut show);
    run.over.store(true, Relaxed);
    records.sort_by_key(|record| record.index);
    let duration = records.iter().map(|record| record.end).fold(0.0, f64::max);
    Measured { records, duration, interrupted: stop.load(Relaxed) }
}

fn gather(receiver: &Receiver<Record>, stop: &AtomicBool, show: &mut impl FnMut(usize)) -> Vec<Record> {
    let mut records = Vec::new();
    while !stop.load(Relaxed) {
        match receiver.recv_timeout(TICK) {
            Ok(record) => records.push(record),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        show(records.len());
    }
    records
}

fn start(work: impl FnOnce() + Send + 'static) {
    // A system without room for a thread cannot measure anything.
    thread::Builder::new().stack_size(STACK_BYTES).spawn(work).expect("a thread");
}

impl Run {
    fn take_in_turn(&self, records: &Sender<Record>) {
        loop {
            let index = self.next.fetch_add(1, Relaxed);
            if index >= self.load.requests.len() || self.is_over() {
                return;
            }
            if records.send(self.one(index)).is_err() {
                return;
            }
        }
    }

    fn send_when_due(self: Arc<Run>, records: &Sender<Record>) {
        for (index, asked) in self.load.requests.iter().enumerate() {
            let due = Duration::from_secs_f64(asked.due.unwrap_or_default());
            thread::sleep(due.saturating_sub(self.begun.elapsed()));
            if self.is_over() {
                return;
            }
            let under_way = self.under_way.fetch_add(1, Relaxed);
            if under_way >= UNDER_WAY_MAX {
                self.under_way.fetch_sub(1, Relaxed);
                let _ = records.send(self.not_sent(index, under_way));
                continue;
            }
            let (run, records) = (self.clone(), records.clone());
            start(move || {
                let _ = records.send(run.one(index));
                run.under_way.fetch_sub(1, Relaxed);
            });
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Relaxed) || self.load.until.is_some_and(|until| self.begun.elapsed() >= until)
    }

    fn one(&self, index: usize) -> Record {
        let asked = &self.load.requests[index];
        // Made before the clock starts.
        let body = self.load.dialect.body(&asked.prompt.text, asked.output);
        let now = Instant::now();
        let result = perform(&self.load.endpoint, &self.load.dialect, asked, body, now);
        let start = (now - self.begun).as_secs_f64();
        // An answer ends with its last part; what the connection still says behind it is not the answer's.
        let end = match &result {
            Ok(answer) => start + answer.e2el,
            Err(_) => self.begun.elapsed().as_secs_f64(),
        };
        let late = asked.due.map_or(0.0, |due| (start - due).max(0.0));
        Record { index, start, late, prompt_tokens: asked.prompt.tokens, result, end }
    }

    fn not_sent(&self, index: usize, under_way: usize) -> Record {
        let now = self.begun.elapsed().as_secs_f64();
        let prompt_tokens = self.load.requests[index].prompt.tokens;
        let result = Err(Failure::NotSent(under_way));
        Record { index, start: now, late: 0.0, prompt_tokens, result, end: now }
    }
}
