//! Who joins: the first plan, newcomers, equal parts for who is alike.

use super::*;

#[test]
fn the_first_plan_waits_for_those_who_are_expected() {
    let mut bench = Bench::new(Policy { expected: 2, ..Policy::default() });
    assert_eq!(bench.on(Event::Joined(about(1))), []);
    let done = bench.on(Event::Joined(about(2)));
    assert_eq!(activated(&done), [(1, 2)]);
    assert!(bench.view().serving);
    assert_eq!(bench.on(Event::Switched { epoch: Epoch(1) }), [Action::Retire { before: Epoch(1) }]);
}

/// Experts of two workers whose measured rates differ by three to one, the first slower.
fn held_by_uneven(change: impl Fn(&mut WorkerAbout)) -> Vec<usize> {
    let mut bench = Bench::new(Policy { expected: 2, ..Policy::default() });
    bench.answering = false;
    let mut join = |id, rate| {
        let mut about = WorkerAbout { host: "a".to_string(), ..about(id) };
        about.machine.read_bytes_per_second = rate;
        change(&mut about);
        bench.on(Event::Joined(about))
    };
    join(1, 1e9);
    let held = prepares(&join(2, 3e9)).into_iter().map(|(_, _, experts)| experts).collect::<Vec<_>>();
    let speed = |id| bench.roster.speed(WorkerId(id)).unwrap();
    assert_eq!(speed(1) == speed(2), held[0] == held[1], "the work follows what is held");
    held
}

#[test]
fn processes_of_one_host_and_device_get_equal_parts() {
    assert_eq!(held_by_uneven(|_| {}), [12, 12]);
    // Nobody knows whether they are alike, or they are not.
    assert_eq!(held_by_uneven(|about| about.host.clear()), [6, 18]);
    assert_eq!(held_by_uneven(|about| about.host = about.name.clone()), [6, 18]);
    assert_eq!(held_by_uneven(|about| about.machine.device = about.name.clone()), [6, 18]);
    assert_eq!(held_by_uneven(|about| about.machine.threads = about.id.0 as u32), [6, 18]);
}

#[test]
fn those_who_are_there_begin_when_the_wait_is_over() {
    let mut bench = Bench::new(Policy { expected: 2, ..Policy::default() });
    bench.on(Event::Joined(about(1)));
    bench.now += Duration::from_secs(31);
    let heard = Event::Heard { worker: WorkerId(1), calls: 0, held_bytes: 0 };
    assert_eq!(activated(&bench.on(heard)), [(1, 1)]);
}

#[test]
fn a_newcomer_is_planned_in_without_a_stall() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    let asked = prepares(&bench.on(Event::Joined(about(3))));
    assert_eq!(asked, [(1, 2, 8), (2, 2, 8), (3, 2, 8)]);
    for (worker, epoch, _) in asked {
        assert!(bench.view().serving, "while others prepare");
        assert_eq!(bench.view().epoch, Some(Epoch(1)));
        // An answer to another epoch is none.
        bench.on(Event::Prepared { worker: WorkerId(worker), epoch: Epoch(epoch + 1) });
        assert_eq!(bench.view().epoch, Some(Epoch(1)));
        bench.on(Event::Prepared { worker: WorkerId(worker), epoch: Epoch(epoch) });
    }
    assert_eq!(bench.view().epoch, Some(Epoch(2)));
    assert_eq!(bench.on(Event::Switched { epoch: Epoch(1) }), []);
    assert_eq!(bench.on(Event::Switched { epoch: Epoch(2) }), [Action::Retire { before: Epoch(2) }]);
}

#[test]
fn nobody_says_that_the_engine_switched() {
    let mut bench = Bench::serving(2, 1);
    bench.on(Event::Joined(about(3)));
    let done = bench.pass(Duration::from_secs(3), &[]);
    assert_eq!(done, [Action::Retire { before: Epoch(2) }]);
}

#[test]
fn who_wants_to_leave_serves_until_the_others_do_without() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    let asked = bench.on(Event::Leaving { worker: WorkerId(1) });
    assert_eq!(prepares(&asked), [(2, 2, 24)]);
    let done = bench.on(Event::Prepared { worker: WorkerId(2), epoch: Epoch(2) });
    assert_eq!((activated(&done), dismissed(&done)), (vec![(2, 1)], vec![]));
    let done = bench.on(Event::Switched { epoch: Epoch(2) });
    assert_eq!(dismissed(&done), [(1, false)]);
}
