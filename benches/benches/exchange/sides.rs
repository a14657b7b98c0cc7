//! The two sides: the router's is this process, a worker's is this program once more.

use std::process::{Child, Command};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{
    Channel, FrameBody, FrameKind, Header, RowForm, SharedEnd, SharedOffer, Waiting, create_shared,
    open_shared,
};
use gaterail_proto::{Epoch, LayerId, RouterId};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

pub const BODY_MAX: u64 = 8 << 20;
const ASKED: &str = "GATERAIL_BENCH_WORKER";

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(300)
}

/// The cores this process may use.
pub fn cores() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("this thread's cores");
    (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect()
}

/// Binds this thread.
pub fn bind(core: usize) {
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).expect("a core that may be used");
}

pub fn on_core(core: usize, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        bind(core);
        work();
    })
}

/// A call whose answer has `answer` bytes, after as much work as takes `microseconds`.
pub fn call(answer: usize, microseconds: u32) -> Header {
    Header {
        kind: FrameKind::Call,
        form: RowForm::F32,
        router: RouterId(1),
        epoch: Epoch(1),
        call: 0,
        layer: LayerId(0),
        rows: microseconds,
        width: answer as u32,
        top_k: 0,
        body_bytes: 0,
        computed_ns: 0,
    }
}

/// Answers until the connection ends.
pub fn answer(channel: &mut dyn Channel) {
    answer_with(channel, &Work::default());
}

fn answer_with(channel: &mut dyn Channel, work: &Work) {
    let mut body = FrameBody::default();
    let reply = vec![2; BODY_MAX as usize];
    while let Ok(header) = channel.receive(&mut body, soon()) {
        work.microseconds(f64::from(header.rows));
        let answer = Header { kind: FrameKind::Reply, ..header };
        if channel.send(&answer, &[&reply[..header.width as usize]], soon()).is_err() {
            return;
        }
    }
}

/// Work that takes a core a known time while it has the core to itself.
#[derive(Clone, Copy, Default)]
pub struct Work {
    pub turns_a_microsecond: f64,
}

impl Work {
    /// From the fastest of many tries.
    pub fn measured() -> Work {
        let turns = 20_000;
        let try_once = |_| {
            let start = Instant::now();
            turn(turns);
            start.elapsed().as_secs_f64() * 1e6
        };
        let best = (0..300).map(try_once).fold(f64::INFINITY, f64::min);
        Work { turns_a_microsecond: turns as f64 / best }
    }

    pub fn microseconds(self, microseconds: f64) {
        turn((microseconds * self.turns_a_microsecond) as u64);
    }
}

fn turn(turns: u64) {
    let mut state = 1u64;
    for _ in 0..turns {
        state = std::hint::black_box(state.wrapping_mul(6364136223846793005).wrapping_add(1));
    }
}

/// A worker's process.
pub struct Side(Child);

impl Side {
    /// Waits for it; its channel has ended.
    pub fn end(mut self) {
        self.0.wait().expect("the worker's end");
    }
}

/// Starts a worker that reads its task from the environment.
pub fn start_worker(task: String) -> Side {
    let program = std::env::current_exe().expect("this program");
    Side(Command::new(program).env(ASKED, task).spawn().expect("this program once more"))
}

/// The router's end of memory shared with a worker on a core, which answers with `Work` of that speed.
pub fn over_shared_memory(waiting: Waiting, core: usize, turns_a_microsecond: f64) -> (SharedEnd, Side) {
    let (offer, router) = create_shared(BODY_MAX, 1, waiting).expect("memory to share");
    let SharedOffer { pid, fd, bytes, nonce } = offer;
    let [spin, yields, away] = [waiting.spin, waiting.yields, waiting.away].map(|wait| wait.as_micros());
    let task =
        format!("shared {core} {spin} {yields} {away} {pid} {fd} {bytes} {nonce} {turns_a_microsecond}");
    (router, start_worker(task))
}

/// In a worker's process: does what it was asked to do.
pub fn worker_was_asked() -> bool {
    let Ok(task) = std::env::var(ASKED) else { return false };
    let words: Vec<&str> = task.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    if words[0] == "grpc" {
        super::grpc::work(words[1], number(2) as usize);
        return true;
    }
    bind(number(1) as usize);
    let time = |at: usize| Duration::from_micros(number(at));
    let waiting = Waiting { spin: time(2), yields: time(3), away: time(4) };
    let offer =
        SharedOffer { pid: number(5) as u32, fd: number(6) as u32, bytes: number(7), nonce: number(8) };
    let mut end = open_shared(&offer, BODY_MAX, waiting).expect("the router's memory");
    let work = Work { turns_a_microsecond: words[9].parse().expect("a number") };
    answer_with(&mut end, &work);
    true
}
