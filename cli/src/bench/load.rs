//! Sends a load and gathers what became of it. A closed loop is so many threads that take the next request each; an open
//! one has a thread for each request that is under way. It is handed out when it is due, whether or not the others have ended:
//! to a thread that has ended its last one, or else to a new one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
        let due_now = Turns::default();
        for (index, asked) in self.load.requests.iter().enumerate() {
            let due = Duration::from_secs_f64(asked.due.unwrap_or_default());
            thread::sleep(due.saturating_sub(self.begun.elapsed()));
            if self.is_over() {
                break;
            }
            let under_way = self.under_way.fetch_add(1, Relaxed);
            if under_way >= UNDER_WAY_MAX {
                self.under_way.fetch_sub(1, Relaxed);
                let _ = records.send(self.not_sent(index, under_way));
                continue;
            }
            let (run, records) = (self.clone(), records.clone());
            due_now.hand_out(index, move |index| {
                let _ = records.send(run.one(index));
                run.under_way.fetch_sub(1, Relaxed);
            });
        }
        due_now.end();
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

/// Threads that each take a request when it is due. One whose request has ended waits for another: at a thousand refusals a
/// second, making threads would cost this machine as much as the refusals.
#[derive(Clone, Default)]
struct Turns(Arc<(Mutex<Waiting>, Condvar)>);

#[derive(Default)]
struct Waiting {
    /// Requests that are due, and that no thread has yet.
    due: VecDeque<usize>,
    /// Threads that wait for one.
    threads: usize,
    over: bool,
}

impl Turns {
    /// Never waits for a thread that is busy.
    fn hand_out(&self, index: usize, work: impl Fn(usize) + Send + 'static) {
        let (waiting, came) = &*self.0;
        let mut now = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        now.due.push_back(index);
        if now.threads >= now.due.len() {
            came.notify_one();
            return;
        }
        drop(now);
        let turns = Turns(self.0.clone());
        start(move || {
            while let Some(index) = turns.next() {
                work(index);
            }
        });
    }

    /// The next request that is due; `None` when there will be none.
    fn next(&self) -> Option<usize> {
        let (waiting, came) = &*self.0;
        let mut now = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        now.threads += 1;
        let mut now = came
            .wait_while(now, |now| now.due.is_empty() && !now.over)
            .unwrap_or_else(PoisonError::into_inner);
        now.threads -= 1;
        now.due.pop_front()
    }

    /// No more requests: threads end with what they have.
    fn end(&self) {
        let (waiting, came) = &*self.0;
        waiting.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        came.notify_all();
    }
}
