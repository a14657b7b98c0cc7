//! The cost model against cases worked out by hand.

use gaterail_cluster::placement::{Mode, Popularity, Seat, Wanted, place};
use gaterail_cluster::predict::{
    Compute, Cut, Drawn, Hop, LayerShape, Rates, Shape, Step, Term, Walked, Where, WorkerRate, choose,
    compare, predict,
};
use gaterail_proto::{ExpertInventory, LayerExperts, LayerId, Placement, WorkerId};

fn shape(layers: usize, experts: u32, top_k: u32) -> Shape {
    let layer = LayerShape {
        hidden: 100,
        experts,
        top_k,
        width: 200,
        units: 4,
        expert_bytes: 1e6,
        gate_bytes: 1e4,
        row_group: None,
    };
    Shape {
        layers: vec![layer; layers],
        trunk_bytes: 5e6,
        trunk_operations_per_row: 1e6,
        head_bytes: 1e6,
        head_operations_per_row: 1e5,
        kv_bytes_per_position: 1e3,
        attention_operations_per_position: 1e2,
    }
}

/// Each reads 1 MB in a millisecond when alone, computes 1e9 operations a second; frames take 10 µs and 1 byte a nanosecond.
fn rates(workers: u64, together: f64) -> Rates {
    let compute =
        Compute { read_bytes_per_second: 1e9, operations_per_second: 1e9, few_rows: None, call_seconds: 0.0 };
    let hop = Hop { seconds: 1e-5, bytes_per_second: 1e9, home_bytes_per_second: 1e9 };
    let worker = |id| WorkerRate { worker: WorkerId(id), compute, cuts: Vec::new(), host: 0, hop };
    Rates {
        router: compute,
        attention: compute,
        walked: Vec::new(),
        own: compute,
        workers: (1..=workers).map(worker).collect(),
        hosts: vec![together],
    }
}

fn placed(shape: &Shape, workers: u64, mode: Mode) -> Placement {
    let (inventory, seats) = (inventory(shape), seats(workers));
    place(&wanted(&inventory, &seats, mode)).unwrap()
}

fn inventory(shape: &Shape) -> ExpertInventory {
    let layers = shape.layers.iter().zip(0..).map(|(at, layer)| LayerExperts {
        layer: LayerId(layer),
        experts: at.experts,
        units: at.units,
        expert_bytes: at.expert_bytes as u64,
    });
    ExpertInventory { layers: layers.collect() }
}

fn seats(workers: u64) -> Vec<Seat> {
    let seat = |id| Seat { worker: WorkerId(id), memory_bytes: u64::MAX >> 20, read_bytes_per_second: 1e9 };
    (1..=workers).map(seat).collect()
}

fn wanted<'a>(inventory: &'a ExpertInventory, seats: &'a [Seat], mode: Mode) -> Wanted<'a> {
    Wanted {
        inventory,
        seats,
        mode,
        copies: 1,
        replica_bytes: 0,
        popularity: None,
        packed: &[],
        current: None,
        beside: false,
        smaller: &[],
    }
}

#[track_caller]
fn near(value: f64, expected: f64, relative: f64) {
    assert!((value / expected - 1.0).abs() <= relative, "{value} is not {expected}");
}

#[test]
fn every_term_where_all_experts_are_hit() {
    // K = E: no chance in it. Two layers of 4 experts of 1 MB, two workers.
    let shape = shape(2, 4, 4);
    let step = Step::decode(1, 500);
    for mode in [Mode::Ep, Mode::Tp] {
        let placement = placed(&shape, 2, mode);
        let one = predict(&shape, &rates(2, 2e9), Where::On(&placement), step, Drawn::Even);
        // 1 MB of head; 500 positions of KV.
        near(one.terms.trunk, 5e-3 + 0.5e-3, 1e-9);
        near(one.terms.ends, 1e-3, 1e-9);
        // 10 kB take longer than 800 operations.
        near(one.terms.gate, 2.0 * 1e-5, 1e-9);
        near(one.terms.experts, 2.0 * 2e-3, 1e-9);
        assert!(one.terms.wait.abs() < 1e-12);
        let (out, home) = (64.0 + 4.0 * 108.0, 64.0 + 400.0);
        near(one.terms.dispatch, 2.0 * (2.0 * out * 1e-9 + 1e-5), 1e-9);
        near(one.terms.combine, 2.0 * (2.0 * home * 1e-9 + 1e-5), 1e-9);
        near(one.bytes_per_row, 2.0 * 2.0 * (out + home), 1e-9);
        assert_eq!(one.hops, 8.0);
        assert!(one.memory.iter().all(|&(_, bytes)| bytes == 4e6), "{:?}", one.memory);
        // A host whose memory gives 1.5 GB/s to two: 4/3 of the time.
        let shared = predict(&shape, &rates(2, 1.5e9), Where::On(&placement), step, Drawn::Even);
        near(shared.terms.experts, 2.0 * 2e-3 * 4.0 / 3.0, 1e-9);
    }
    let local = predict(&shape, &rates(0, 2e9), Where::Local, step, Drawn::Even);
    near(local.terms.experts, 2.0 * 4e-3, 1e-9);
    assert_eq!((local.hops, local.terms.dispatch), (0.0, 0.0));
}

#[test]
fn many_rows_are_bound_by_operations() {
    let shape = shape(2, 4, 2);
    let placement = placed(&shape, 2, Mode::Tp);
    let one = predict(&shape, &rates(2, 2e9), Where::On(&placement), Step::prefill(1000), Drawn::Even);
    // 1000 rows, 2 experts each, half of 6 * 100 * 200 operations on each worker; in the last layer the last row alone, which reads
    // half of 2 experts on each.
    near(one.terms.experts, 1000.0 * 2.0 * 0.5 * 120_000.0 / 1e9 + 1e-3, 1e-9);
    near(one.terms.gate, 1000.0 * 800.0 / 1e9 + 1e-5, 1e-9);
    // The head is for one row; 1000 rows see 500 positions each, which are more operations than bytes.
    near(one.terms.trunk, 1.0 + 1000.0 * 500.0 * 1e2 / 1e9, 1e-9);
    near(one.terms.ends, 1e-3, 1e-9);
    near(one.rows_per_second(), 1000.0 / one.terms.total(), 1e-12);
}

#[test]
fn the_slowest_worker_of_a_draw() {
    // Two rows, one of 4 experts each, two workers with two each. Of the 16 pairs of experts 4 are the same one, 4 are two of
    // one worker, 8 are on two workers: the slowest reads 1, 2, and 1 experts, 1.25 on average. Distinct are 1.75 on average.
    let shape = shape(400, 4, 1);
    let placement = placed(&shape, 2, Mode::Ep);
    let one = predict(&shape, &rates(2, 2e9), Where::On(&placement), Step::decode(2, 0), Drawn::Even);
    near(one.terms.experts + one.terms.wait, 400.0 * 1.25e-3, 0.01);
    near(one.terms.experts, 400.0 * 1.75e-3 / 2.0, 0.01);
    near(one.imbalance, 1.25 / 0.875, 0.01);
    // Tensor parallel: both have half of 1.75.
    let cut = predict(
        &shape,
        &rates(2, 2e9),
        Where::On(&placed(&shape, 2, Mode::Tp)),
        Step::decode(2, 0),
        Drawn::Even,
    );
    near(cut.terms.experts, 400.0 * 1.75e-3 / 2.0, 0.01);
    assert!(cut.terms.wait.abs() < 1e-9);
    // One worker has a call in half of the cases of a row of two, none in the other half: 1.5 workers are asked.
    near(one.hops, 400.0 * 2.0 * 1.5, 0.01);

    let verdict = compare(&one, &cut);
    assert!(!verdict.first_wins);
    assert_eq!(verdict.because.0, Term::Wait);
    near(verdict.because.1, one.terms.wait - cut.terms.wait, 1e-9);
    near(verdict.factor, one.terms.total() / cut.terms.total(), 1e-12);
}

#[test]
fn hot_experts_are_slower_and_their_replicas_help() {
    let shape = shape(8, 16, 2);
    let (inventory, seats) = (inventory(&shape), seats(4));
    let hits = Popularity((0..128).map(|at| if at % 4 == 0 { 10.0 } else { 1.0 }).collect());
    let plain = wanted(&inventory, &seats, Mode::Ep);
    let unaware = place(&plain).unwrap();
    let aware = place(&Wanted { popularity: Some(&hits), replica_bytes: 64_000_000, ..plain }).unwrap();
    let (rates, step) = (rates(4, 4e9), Step::decode(4, 0));
    let slow = predict(&shape, &rates, Where::On(&unaware), step, Drawn::Popular(&hits));
    let fast = predict(&shape, &rates, Where::On(&aware), step, Drawn::Popular(&hits));
    assert!(fast.imbalance < 0.9 * slow.imbalance, "{} {}", fast.imbalance, slow.imbalance);
}

#[test]
fn auto_takes_what_is_fastest() {
    // Two workers: cutting avoids waiting for the slower one, for the same two frames.
    let cut = shape(16, 64, 2);
    let (stock, two) = (inventory(&cut), seats(2));
    let steps = [(Step::decode(1, 100), 1.0)];
    let found = choose(&wanted(&stock, &two, Mode::Ep), &cut, &rates(2, 2e9), &steps);
    assert_eq!(found[0].0, Mode::Tp);
    // Eight, slow links and small experts: a frame to each costs more than it brings.
    let mut small = shape(16, 64, 1);
    small.layers.iter_mut().for_each(|at| at.expert_bytes = 1000.0);
    let mut slow = rates(8, 8e9);
    let link = Hop { bytes_per_second: 1e7, home_bytes_per_second: 1e7, ..slow.workers[0].hop };
    slow.workers.iter_mut().for_each(|at| at.hop = link);
    let (stock, eight) = (inventory(&small), seats(8));
    let found = choose(&wanted(&stock, &eight, Mode::Ep), &small, &slow, &steps);
    assert_eq!(found[0].0, Mode::Ep);
    assert_eq!(found.len(), 4, "ep, tp, ep:2,tp:4 and ep:4,tp:2");
}

#[test]
fn what_was_walked_counts_more_than_rates() {
    let shape = shape(2, 4, 4);
    let mut rates = rates(1, 1e9);
    let step = Step::decode(2, 500);
    rates.walked = vec![Walked { step, trunk: 3.0, gate: 0.5, ends: 0.25, sampling: 0.125 }];
    let known = predict(&shape, &rates, Where::Local, step, Drawn::Even).terms;
    assert_eq!((known.trunk, known.gate, known.ends, known.sampling), (3.0, 0.5, 0.25, 0.125));
    let other = predict(&shape, &rates, Where::Local, Step::decode(3, 500), Drawn::Even).terms;
    // What was not walked takes as many times as long as a walked step as the rates say.
    let lane = |step| {
        predict(&shape, &Rates { walked: Vec::new(), ..rates.clone() }, Where::Local, step, Drawn::Even).terms
    };
    let times = lane(Step::decode(3, 500)).trunk / lane(step).trunk;
    assert!((other.trunk - 3.0 * times).abs() < 1e-12 && other.sampling == 0.125 * 1.5, "{other:?}");
    rates.walked.push(Walked { step: Step::prefill(500), trunk: 100.0, ..rates.walked[0] });
    let near = predict(&shape, &rates, Where::Local, Step::prefill(400), Drawn::Even).terms;
    assert!(near.trunk > 50.0, "{near:?}");
}

/// A worker reaches less beside another, and with cut experts; who is done first leaves the other alone.
#[test]
fn cuts_are_measured_alone_and_beside_each_other() {
    let shape = shape(1, 4, 4);
    let rate = |operations_per_second| Compute {
        read_bytes_per_second: 1e9,
        operations_per_second,
        few_rows: None,
        call_seconds: 0.0,
    };
    let mut rates = rates(2, 2e9);
    let cut = |part, alone, beside| Cut { part, alone: rate(alone), beside: rate(beside) };
    rates.workers.iter_mut().for_each(|worker| worker.cuts = vec![cut(1.0, 1e9, 8e8), cut(0.5, 5e8, 2.5e8)]);
    let experts = |mode| {
        let placement = placed(&shape, 2, mode);
        predict(&shape, &rates, Where::On(&placement), Step::decode(1, 1), Drawn::Even).terms
    };
    // 4 experts of 120,000 operations: two whole ones each, or four halves each, all the time beside the other.
    near(experts(Mode::Ep).experts, 240_000.0 / 8e8, 1e-9);
    near(experts(Mode::Tp).experts, 240_000.0 / 2.5e8, 1e-9);
    assert!(experts(Mode::Tp).wait.abs() < 1e-12);
}
