//! Who cannot load what it should.

use super::*;

#[test]
fn a_newcomer_that_cannot_prepare_is_sent_away() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    bench.on(Event::Joined(about(3)));
    let (worker, epoch) = (WorkerId(3), Epoch(2));
    let done = bench.on(Event::PrepareFailed { worker, epoch, detail: "no such file".to_string() });
    assert_eq!(dismissed(&done), [(3, true)]);
    // What the others loaded for it goes with the next epoch, which changes nothing else.
    assert_eq!(prepares(&done), [(1, 3, 12), (2, 3, 12)]);
    assert!(bench.view().serving);
}

#[test]
fn who_cannot_prepare_is_asked_less_and_less_often_and_the_others_serve() {
    let mut bench = Bench::serving(2, 1);
    let mut tried = Vec::new();
    for tenth in 0..1200 {
        bench.answering = false;
        // It comes back at once, as workers do.
        let there = bench.view().workers.iter().any(|at| at.about.id == WorkerId(3));
        let mut done = if there { Vec::new() } else { bench.on(Event::Joined(about(3))) };
        bench.now += Duration::from_millis(100);
        for worker in bench.view().workers.iter().map(|worker| worker.about.id) {
            done.extend(bench.on(Event::Heard { worker, calls: 0, held_bytes: 0 }));
        }
        let actions = bench.roster.tick(bench.now);
        done.extend(bench.answered(actions));
        let mut asked = prepares(&done);
        // The others prepare what they should; it does not.
        while let Some((worker, epoch, _)) = asked.pop() {
            let (worker, epoch) = (WorkerId(worker), Epoch(epoch));
            let event = match worker.0 {
                3 => {
                    tried.push(tenth);
                    Event::PrepareFailed { worker, epoch, detail: "no room".to_string() }
                }
                _ => Event::Prepared { worker, epoch },
            };
            let more = bench.on(event);
            asked.extend(prepares(&more));
            for (epoch, _) in activated(&more) {
                asked.extend(prepares(&bench.on(Event::Switched { epoch: Epoch(epoch) })));
            }
        }
        assert!(bench.view().serving, "the others do without it");
    }
    let waits: Vec<u32> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((4..=8).contains(&tried.len()), "{tried:?}");
    assert!(
        waits.windows(2).all(|pair| pair[1] + 1 >= pair[0]) && waits[waits.len() - 1] >= 300,
        "{waits:?}"
    );
    let view = bench.view();
    let shown = view.workers.iter().find(|at| at.about.id == WorkerId(3)).expect("it is there");
    assert_eq!((shown.state, shown.failures as usize), (WorkerState::LeftOut, tried.len()));
    // What it lacked is there: it prepares, and is forgiven.
    bench.answering = true;
    let done = bench.pass(Duration::from_secs(40), &[]);
    assert_eq!(activated(&done).last().map(|(_, workers)| *workers), Some(3));
    assert!(bench.view().workers.iter().all(|at| at.failures == 0));
}

#[test]
fn a_worker_that_serves_and_cannot_prepare_goes_on_serving() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    bench.on(Event::Joined(about(3)));
    let (worker, epoch) = (WorkerId(1), Epoch(2));
    let done = bench.on(Event::PrepareFailed { worker, epoch, detail: "busy".to_string() });
    assert_eq!(done, []);
    bench.answering = true;
    let done = bench.pass(Duration::from_secs(1), &[]);
    assert_eq!(done, [], "not at once");
    assert_eq!(activated(&bench.pass(Duration::from_secs(2), &[])), [(3, 3)]);
}

#[test]
fn who_prepares_without_getting_on_has_failed() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    bench.on(Event::Joined(about(3)));
    let (one, two, epoch) = (WorkerId(1), WorkerId(2), Epoch(2));
    bench.on(Event::Prepared { worker: one, epoch });
    bench.on(Event::Prepared { worker: two, epoch });
    for bytes in 0..3 {
        assert_eq!(bench.pass(Duration::from_secs(50), &[]), []);
        bench.on(Event::Loading { worker: WorkerId(3), epoch, bytes, total: 9 });
    }
    assert_eq!(dismissed(&bench.pass(Duration::from_secs(61), &[])), [(3, true)]);
}

#[test]
fn who_joins_and_cannot_prepare_again_and_again_leaves_nothing_behind() {
    let mut bench = Bench::serving(2, 1);
    let mut held = vec![Epoch(1)];
    let mut tried = 0;
    for round in 0..50 {
        bench.answering = false;
        // Another process each time: nobody knows that it has failed before.
        let id = 3 + round;
        let mut done = bench.on(Event::Joined(about(id)));
        bench.answering = true;
        if let Some(&(_, epoch, _)) = prepares(&done).first() {
            tried += 1;
            let (worker, epoch) = (WorkerId(id), Epoch(epoch));
            done.extend(bench.on(Event::PrepareFailed { worker, epoch, detail: "no such file".to_string() }));
        } else {
            bench.on(lost(id));
        }
        // Nobody says that the engine switched: it has nothing to compute.
        done.extend(bench.pass(Duration::from_millis(500), &[]));
        holding(&mut held, &done);
        assert!(held.len() <= 2, "round {round}: {held:?} are held");
    }
    assert!(tried >= 10, "{tried} attempts");
}

#[test]
fn a_serving_worker_that_can_load_nothing_more_keeps_nobody_out() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    let mut asked = prepares(&bench.on(Event::Joined(about(3))));
    let mut failures = 0;
    for _ in 0..300 {
        while let Some((worker, epoch, experts)) = asked.pop() {
            let (worker, epoch) = (WorkerId(worker), Epoch(epoch));
            // It holds its 12 experts, and nothing else.
            let event = match worker.0 == 1 && experts != 12 {
                true => Event::PrepareFailed { worker, epoch, detail: "no room".to_string() },
                false => Event::Prepared { worker, epoch },
            };
            failures += u32::from(matches!(event, Event::PrepareFailed { .. }));
            let done = bench.on(event);
            asked.extend(prepares(&done));
            for (epoch, workers) in activated(&done) {
                if epoch > 1 {
                    assert_eq!((workers, failures), (2, 2), "without the one that failed twice");
                    assert!(
                        bench.view().workers.iter().any(|at| at.about.id == WorkerId(3) && at.experts > 0)
                    );
                    return;
                }
            }
        }
        asked.extend(prepares(&bench.pass(Duration::from_millis(100), &[])));
    }
    panic!("the newcomer is never taken in: {:?}", bench.view());
}

#[test]
fn who_dies_of_loading_is_left_out_whatever_process_it_is() {
    let mut bench = Bench::serving(2, 1);
    let mut tried = 0;
    for tenth in 0..1200u64 {
        bench.answering = false;
        let named = WorkerAbout { name: "killed".to_string(), host: "a".to_string(), ..about(100 + tenth) };
        let mut done = bench.on(Event::Joined(named));
        bench.answering = true;
        let asked = prepares(&done).iter().any(|(worker, ..)| *worker == 100 + tenth);
        tried += u32::from(asked);
        done.extend(bench.on(lost(100 + tenth)));
        done.extend(bench.pass(Duration::from_millis(100), &[]));
        for (epoch, _) in activated(&done) {
            bench.on(Event::Switched { epoch: Epoch(epoch) });
        }
        assert!(bench.view().serving, "the others do without it");
    }
    assert!((4..=10).contains(&tried), "asked {tried} times in two minutes");
}
