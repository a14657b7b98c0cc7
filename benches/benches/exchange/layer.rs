//! A layer of a step whose processes share both cores: the router's pool computes on both, then two workers do, one on each,
//! then the router again. What the layer takes beyond the work itself is what the exchange costs.

use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{Channel, FrameBody, Waiting};
use gaterail_kernels::Pool;

use super::sides::{Work, bind, call, over_shared_memory, soon};

/// Microseconds of the router's part and of a worker's.
const LAYERS: [(f64, u32); 3] = [(20.0, 30), (60.0, 150), (60.0, 600)];
const BYTES: usize = 8 << 10;

pub fn table(cores: &[usize], layers: usize) {
    if cores.len() < 2 {
        return println!("\na layer over two workers needs two cores");
    }
    println!(
        "\n{layers} layers; the router's pool on two cores, then a worker on each; microseconds beyond the work"
    );
    println!("{:44}{:>9}{:>9}{:>11}{:>9}", "", "work", "median", "p99", "a layer");
    let spinning = Waiting { spin: Duration::from_millis(10), yields: Waiting::YIELDS };
    for (name, waiting) in [
        ("offering cores", Waiting::default()),
        ("asleep", Waiting::asleep()),
        ("spinning (wrong here)", spinning),
    ] {
        let run = move |cores: Vec<usize>| {
            bind(cores[0]);
            let work = Work::measured();
            let pool = pool_on(&cores);
            for (router, worker) in LAYERS {
                line(name, waiting, &pool, work, router, worker, &cores, layers);
            }
        };
        let cores = cores.to_vec();
        std::thread::spawn(move || run(cores)).join().expect("the router's thread");
    }
}

/// Two threads, the caller's included, on the two cores.
fn pool_on(cores: &[usize]) -> Pool {
    // The pool binds its threads to the cores its maker may use.
    let mut both = rustix::thread::CpuSet::new();
    cores[..2].iter().for_each(|&core| both.set(core));
    rustix::thread::sched_setaffinity(None, &both).expect("cores that may be used");
    Pool::new(2, true).expect("a thread")
}

#[allow(clippy::too_many_arguments)] // A line of a table.
fn line(
    name: &str,
    waiting: Waiting,
    pool: &Pool,
    work: Work,
    router_us: f64,
    worker_us: u32,
    cores: &[usize],
    layers: usize,
) {
    let (mut ends, workers): (Vec<_>, Vec<_>) =
        cores[..2].iter().map(|&core| over_shared_memory(waiting, core, work.turns_a_microsecond)).unzip();
    let (sent, mut came) = (vec![1; BYTES], FrameBody::default());
    let mut layer = || {
        let start = Instant::now();
        pool.run(2, &|_| work.microseconds(router_us));
        for end in &mut ends {
            end.send(&call(BYTES, worker_us), &[&sent], soon()).expect("a call");
        }
        for end in &mut ends {
            end.receive(&mut came, soon()).expect("an answer");
        }
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..layers / 10).for_each(|_| drop(layer()));
    let mut times: Vec<f64> = (0..layers).map(|_| layer()).collect();
    times.sort_by(f64::total_cmp);
    let work = router_us + f64::from(worker_us);
    let (median, p99) = (times[layers / 2], times[layers * 99 / 100]);
    println!("{name:44}{work:9.0}{:9.1}{:11.1}{median:9.1}", median - work, p99 - work);
    drop(ends);
    workers.into_iter().for_each(super::sides::Side::end);
}
