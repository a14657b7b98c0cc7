//! While a plan is being looked for, life goes on.

use super::*;

/// Two serve, and a third has joined; what could be with it is being looked for.
fn looking() -> Bench {
    let mut bench = Bench::serving(2, 2);
    bench.finding = false;
    assert_eq!(bench.on(Event::Joined(about(3))), []);
    assert_eq!(bench.searches.len(), 1);
    bench
}

#[test]
fn what_is_found_in_time_is_followed() {
    let mut bench = looking();
    assert_eq!(activated(&bench.find()), [(2, 3)]);
    bench.on(Event::Switched { epoch: Epoch(2) });
    assert_eq!(bench.view().workers.len(), 3);
}

#[test]
fn a_death_does_not_wait_for_a_search_and_what_it_finds_is_thrown_away() {
    let mut bench = looking();
    // The copies that are left are served at once.
    assert_eq!(activated(&bench.on(lost(2))), [(2, 1)]);
    // What comes of the search was for others: it is looked for anew, for those who are there.
    let late = bench.find();
    assert_eq!((prepares(&late), activated(&late)), (Vec::new(), Vec::new()));
    bench.on(Event::Switched { epoch: Epoch(2) });
    bench.finding = true;
    let done = bench.find();
    assert_eq!(activated(&done), [(3, 2)], "{done:?}");
}

#[test]
fn heartbeats_are_heard_and_the_silent_found_while_a_search_goes_on() {
    let mut bench = looking();
    let done = bench.pass(Duration::from_secs(3), &[1]);
    assert_eq!(dismissed(&done), [(1, true)], "{done:?}");
    assert!(activated(&done).iter().any(|(_, workers)| *workers == 1), "the other has all: {done:?}");
    assert_eq!(bench.searches.len(), 1, "no second one beside it");
}

#[test]
fn who_wants_to_leave_is_not_let_go_while_it_may_be_needed() {
    let mut bench = Bench::new(Policy { expected: 1, ..Policy::default() });
    bench.finding = false;
    bench.on(Event::Joined(about(1)));
    assert_eq!(dismissed(&bench.on(Event::Leaving { worker: WorkerId(1) })), []);
    bench.finding = true;
    // It is all there is.
    assert_eq!(activated(&bench.find()), [(1, 1)]);
}

/// Three serve in tensor parallel, and a guest comes and goes until two results were thrown away. Searches are found by hand.
fn churned(memory_bytes: u64) -> Bench {
    let mut bench = Bench::new(Policy { expected: 3, mode: Mode::Tp, ..Policy::default() });
    let joins = |id: u64| {
        let mut about = about(id);
        about.machine.memory_bytes = memory_bytes;
        Event::Joined(about)
    };
    (1..=3).for_each(|id| drop(bench.on(joins(id))));
    assert_eq!(bench.view().epoch, Some(Epoch(1)));
    bench.on(Event::Switched { epoch: Epoch(1) });
    bench.finding = false;
    bench.on(joins(4));
    bench.on(lost(4));
    assert_eq!(bench.find(), []);
    bench.on(joins(5));
    assert_eq!(bench.find(), []);
    bench.on(lost(5));
    bench
}

#[test]
fn when_it_is_calm_again_recovery_waits_for_a_search_again() {
    let mut bench = churned(1 << 20);
    while !bench.searches.is_empty() {
        assert_eq!(bench.find(), [], "nothing better is found");
    }
    assert_eq!(bench.on(lost(1)), [], "what could be had at once is not wanted");
    assert_eq!(activated(&bench.find()), [(2, 2)]);
    // Nor is it after all have gone.
    let mut bench = churned(1 << 20);
    (1..=3).for_each(|id| drop(bench.on(lost(id))));
    assert_eq!(prepares(&bench.on(Event::Joined(about(6)))), []);
}
