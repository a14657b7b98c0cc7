//! What travelling costs, over every exchange: a call and its answer with bodies of 64 bytes and 16 KB, and throughput with
//! bodies of 4 MB. Router and worker are two processes (threads, for the local one), on one core or on two. Then what two
//! workers cost a layer whose processes share both cores.
//!
//! A hop is half of what a call and its answer take.
//! `cargo bench -p gaterail-benches --bench exchange -- [calls] [local|shared|gRPC|layer]`

#[path = "../../../tests/src/ends.rs"]
mod exchange_ends;
mod grpc;
mod layer;
mod sides;

use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{Channel, FrameBody, Waiting, local_pair};

use sides::{BODY_MAX, Side, answer, bind, call, on_core, over_shared_memory, soon};

/// Bytes of a body.
const SMALL: [usize; 2] = [64, 16 << 10];
const LARGE: usize = 4 << 20;

fn main() {
    if sides::worker_was_asked() {
        return;
    }
    // `cargo bench` passes `--bench` as well.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let calls = args.iter().find_map(|text| text.parse().ok()).unwrap_or(20_000);
    let only = args.iter().find(|text| text.parse::<usize>().is_err());
    let wanted = |name: &str| only.is_none_or(|only| name.starts_with(only.as_str()));
    let cores = sides::cores();
    if only.is_none_or(|only| only != "layer") {
        hops_of_all(&cores, calls, wanted);
    }
    if wanted("layer") {
        layer::table(&cores, calls / 10);
    }
}

fn hops_of_all(cores: &[usize], calls: usize, wanted: impl Fn(&str) -> bool) {
    println!(
        "{calls} calls; microseconds a hop, median and 99th percentile; GB/s with bodies of 4 MB, one way"
    );
    println!("{:44}{:>9}{:>9}{:>11}{:>9}{:>8}", "", "64 B", "p99", "16 KB", "p99", "GB/s");
    let two = *cores.get(1).unwrap_or(&cores[0]);
    for (name, core) in [("local, one core", cores[0]), ("local, two cores", two)] {
        if !wanted(name) {
            continue;
        }
        let (mut router, mut worker) = local_pair(BODY_MAX);
        let worker = on_core(core, move || answer(&mut worker));
        on_core(cores[0], move || line(name, &mut router, calls)).join().expect("the router's thread");
        worker.join().expect("the worker's thread");
    }
    let spinning = Waiting { spin: Duration::from_millis(10), ..Waiting::default() };
    let always = Waiting { away: Duration::from_secs(1), ..Waiting::default() };
    for (name, core, waiting) in [
        ("shared memory, one core, offering it", cores[0], Waiting::default()),
        ("shared memory, one core, always offering it", cores[0], always),
        ("shared memory, one core, asleep", cores[0], Waiting::asleep()),
        ("shared memory, two cores, spinning", two, spinning),
        ("shared memory, two cores, offering them", two, Waiting::default()),
        ("shared memory, two cores, asleep", two, Waiting::asleep()),
    ] {
        if !wanted(name) {
            continue;
        }
        let (router, worker) = over_shared_memory(waiting, core, 0.0);
        both(name, cores[0], Box::new(router), worker, calls);
    }
    for (name, router_core, core) in
        [("gRPC, one core", cores[0], cores[0]), ("gRPC, two cores", cores[0], two)]
    {
        if !wanted(name) {
            continue;
        }
        let (router, worker) = grpc::over_grpc(router_core, core);
        both(name, router_core, Box::new(router), worker, calls / 4);
    }
}

/// A line of the table, from a thread on the router's core.
fn both(name: &'static str, core: usize, mut router: Box<dyn Channel>, worker: Side, calls: usize) {
    let run = move || {
        bind(core);
        line(name, &mut *router, calls);
    };
    std::thread::spawn(run).join().expect("the router's thread");
    worker.end();
}

fn line(name: &str, router: &mut dyn Channel, calls: usize) {
    let mut cells = Vec::new();
    for bytes in SMALL {
        let mut hops = hops(router, bytes, calls);
        hops.sort_by(f64::total_cmp);
        cells.extend([hops[hops.len() / 2], hops[hops.len() * 99 / 100]]);
    }
    let throughput = throughput(router);
    println!("{name:44}{:9.2}{:9.2}{:11.2}{:9.2}{throughput:8.1}", cells[0], cells[1], cells[2], cells[3]);
}

/// Microseconds of half a round.
fn hops(router: &mut dyn Channel, bytes: usize, calls: usize) -> Vec<f64> {
    let (sent, mut came) = (vec![1; bytes], FrameBody::default());
    let mut once = || {
        let start = Instant::now();
        router.send(&call(bytes, 0), &[&sent], soon()).expect("a call");
        router.receive(&mut came, soon()).expect("an answer");
        start.elapsed().as_secs_f64() * 1e6 / 2.0
    };
    for _ in 0..calls / 10 {
        once();
    }
    (0..calls).map(|_| once()).collect()
}

/// Gigabytes a second, with two calls on their way and answers without a body.
fn throughput(router: &mut dyn Channel) -> f64 {
    let (sent, mut came) = (vec![1; LARGE], FrameBody::default());
    let send = |router: &mut dyn Channel| router.send(&call(0, 0), &[&sent], soon()).expect("a call");
    let mut rate = 0f64;
    for _ in 0..3 {
        let start = Instant::now();
        let rounds = 24;
        send(router);
        for round in 0..rounds {
            if round + 1 < rounds {
                send(router);
            }
            router.receive(&mut came, soon()).expect("an answer");
        }
        rate = rate.max((rounds * LARGE) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    rate
}
