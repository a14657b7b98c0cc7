//! Who dies, is silent or stuck, and what the others do without.

use super::*;

#[test]
fn a_death_with_copies_left_loads_nothing_and_then_restores_them() {
    let mut bench = Bench::serving(3, 2);
    let done = bench.on(lost(2));
    // First what is left: 24 experts have 48 copies on three, 16 each; the survivors keep their 16.
    assert_eq!(prepares(&done), [(1, 2, 16), (3, 2, 16)]);
    assert_eq!(activated(&done), [(2, 2)]);
    // Then two copies of all again, on both.
    let done = bench.on(Event::Switched { epoch: Epoch(2) });
    assert_eq!(prepares(&done), [(1, 3, 24), (3, 3, 24)]);
    assert_eq!(activated(&done), [(3, 2)]);
    assert_eq!(bench.view().copies, 2);
}

#[test]
fn a_death_without_copies_loads_what_is_missing() {
    let mut bench = Bench::serving(3, 1);
    let done = bench.on(lost(1));
    assert_eq!(prepares(&done), [(2, 2, 12), (3, 2, 12)]);
    assert_eq!(activated(&done), [(2, 2)]);
}

#[test]
fn fewer_workers_than_copies_are_not_none() {
    let mut bench = Bench::serving(2, 2);
    assert_eq!(activated(&bench.on(lost(2))), [(2, 1)]);
    let view = bench.view();
    assert_eq!((view.serving, view.copies, view.copies_wanted), (true, 1, 2));
    bench.on(Event::Switched { epoch: Epoch(2) });
    bench.on(Event::Joined(about(3)));
    assert_eq!(bench.view().copies, 2);
}

#[test]
fn silence_is_death() {
    let mut bench = Bench::serving(2, 1);
    assert_eq!(bench.pass(Duration::from_millis(800), &[2]), []);
    let done = bench.pass(Duration::from_millis(100), &[2]);
    assert_eq!((dismissed(&done), activated(&done)), (vec![(2, true)], vec![(2, 1)]));
}

#[test]
fn a_router_that_slept_blames_nobody() {
    let mut bench = Bench::serving(2, 1);
    bench.pass(Duration::from_millis(500), &[]);
    bench.now += Duration::from_secs(20);
    let actions = bench.roster.tick(bench.now);
    assert_eq!(bench.answered(actions), []);
    // Silence counts from now on.
    assert_eq!(bench.pass(Duration::from_millis(800), &[1]), []);
    assert_eq!(dismissed(&bench.pass(Duration::from_millis(200), &[1])), [(1, true)]);
}

#[test]
fn deaths_one_after_another_leave_nothing_behind() {
    let mut bench = Bench::serving(8, 1);
    let mut held = vec![Epoch(1)];
    for worker in 1..8 {
        let done = bench.on(lost(worker));
        holding(&mut held, &done);
        let done = bench.pass(Duration::from_millis(900), &[]);
        holding(&mut held, &done);
        assert!(held.len() <= 4, "{held:?} are held");
    }
}

#[test]
fn who_is_waited_for_and_does_not_move_is_stuck() {
    let mut bench = Bench::serving(2, 1);
    let worker = WorkerId(2);
    let waiting = |waiting| Event::Waiting { worker, waiting };
    bench.on(waiting(true));
    bench.pass(Duration::from_millis(9_900), &[]);
    // A call is done: the wait begins anew, and may be four times as long on top.
    bench.on(Event::Heard { worker, calls: 1, held_bytes: 0 });
    assert_eq!(bench.pass(Duration::from_millis(9_900), &[]), []);
    bench.on(waiting(false));
    assert_eq!(bench.pass(Duration::from_secs(60), &[]), []);
    bench.on(waiting(true));
    assert_eq!(bench.pass(Duration::from_millis(49_500), &[]), []);
    let done = bench.pass(Duration::from_millis(200), &[]);
    assert_eq!(dismissed(&done), [(2, true)]);
    assert_eq!(activated(&done), [(2, 1)]);
}

#[test]
fn all_are_gone_and_one_comes_back() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    bench.on(lost(1));
    assert_eq!(bench.on(lost(2)), []);
    let view = bench.view();
    assert_eq!((view.serving, view.epoch), (false, Some(Epoch(1))));
    bench.answering = true;
    assert_eq!(activated(&bench.on(Event::Joined(about(3)))), [(3, 1)]);
}

#[test]
fn a_death_while_others_prepare_begins_anew() {
    let mut bench = Bench::serving(3, 1);
    bench.answering = false;
    assert_eq!(prepares(&bench.on(lost(1))), [(2, 2, 12), (3, 2, 12)]);
    bench.on(Event::Prepared { worker: WorkerId(2), epoch: Epoch(2) });
    assert_eq!(prepares(&bench.on(lost(3))), [(2, 3, 24)]);
    assert_eq!(bench.on(Event::Prepared { worker: WorkerId(3), epoch: Epoch(2) }), []);
    let done = bench.on(Event::Prepared { worker: WorkerId(2), epoch: Epoch(3) });
    assert_eq!(activated(&done), [(3, 1)]);
}

#[test]
fn a_router_that_is_late_again_and_again_finds_the_dead_all_the_same() {
    let mut bench = Bench::serving(2, 1);
    let mut waited = Duration::ZERO;
    loop {
        // Longer than half of what silence may last.
        bench.now += Duration::from_millis(700);
        waited += Duration::from_millis(700);
        bench.on(Event::Heard { worker: WorkerId(1), calls: 0, held_bytes: 0 });
        let actions = bench.roster.tick(bench.now);
        if dismissed(&bench.answered(actions)) == [(2, true)] {
            break;
        }
        assert!(waited < Duration::from_secs(15), "worker 2 was never missed");
    }
    assert!(
        waited > Duration::from_secs(5),
        "what is the router's fault is forgiven for a while: {waited:?}"
    );
}
