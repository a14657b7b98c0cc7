//! A roster's answers to what happens, case by case.

use std::time::{Duration, Instant};

use gaterail_cluster::membership::{
    Action, Begun, Event, Machine, Policy, Refused, Roster, RosterView, Wish, WorkerAbout, WorkerState,
};
use gaterail_cluster::placement::{Mode, Popularity};
use gaterail_proto::{Epoch, ExpertInventory, LayerExperts, LayerId, WorkerId};

fn inventory() -> ExpertInventory {
    let layer = |layer| LayerExperts { layer: LayerId(layer), experts: 8, units: 4, expert_bytes: 1000 };
    ExpertInventory { layers: (1..4).map(layer).collect() }
}

fn about(id: u64) -> WorkerAbout {
    let machine = Machine {
        device: "cpu".to_string(),
        threads: 1,
        memory_bytes: 1 << 20,
        read_bytes_per_second: 1e10,
        int8_operations_per_second: 1e11,
        pid: id as u32,
    };
    WorkerAbout { id: WorkerId(id), name: format!("worker-{id}"), machine, host: String::new() }
}

/// A roster, the time, and workers that prepare at once unless they are told not to.
struct Bench {
    roster: Roster,
    now: Instant,
    answering: bool,
}

impl Bench {
    fn new(policy: Policy) -> Bench {
        Bench { roster: Roster::new(policy, inventory()), now: Instant::now(), answering: true }
    }

    /// With so many workers, and all of them in the active plan.
    fn serving(workers: u64, copies: u32) -> Bench {
        let mut bench = Bench::new(Policy { expected: workers as usize, copies, ..Policy::default() });
        let done: Vec<Action> = (1..=workers).flat_map(|id| bench.on(Event::Joined(about(id)))).collect();
        assert_eq!(activated(&done), [(1, workers as usize)]);
        bench.on(Event::Switched { epoch: Epoch(1) });
        bench
    }

    fn view(&self) -> RosterView {
        self.roster.view(self.now)
    }

    /// What is done, without notes.
    fn on(&mut self, event: Event) -> Vec<Action> {
        let actions = self.roster.on(event, self.now);
        self.answered(actions)
    }

    /// Time passes in which all but some are heard.
    fn pass(&mut self, duration: Duration, silent: &[u64]) -> Vec<Action> {
        let (mut done, end) = (Vec::new(), self.now + duration);
        while self.now < end {
            self.now += Duration::from_millis(100);
            for worker in self.roster.view(self.now).workers.iter().map(|worker| worker.about.id) {
                if !silent.contains(&worker.0) {
                    done.extend(self.on(Event::Heard { worker, calls: 0, held_bytes: 0 }));
                }
            }
            let actions = self.roster.tick(self.now);
            done.extend(self.answered(actions));
        }
        done
    }

    fn answered(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let (mut done, mut answers) = (Vec::new(), Vec::new());
        for action in actions {
            if let Action::Prepare { worker, epoch, .. } = action {
                answers.push(Event::Prepared { worker, epoch });
            }
            if !matches!(action, Action::Note(_)) {
                done.push(action);
            }
        }
        if self.answering {
            answers.into_iter().for_each(|answer| done.extend(self.on(answer)));
        }
        done
    }
}

fn lost(worker: u64) -> Event {
    Event::Lost { worker: WorkerId(worker), why: "killed".to_string() }
}

fn prepares(actions: &[Action]) -> Vec<(u64, u64, usize)> {
    let prepares = actions.iter().filter_map(|action| match action {
        Action::Prepare { worker, epoch, shard } => Some((worker.0, epoch.0, shard.slices.len())),
        _ => None,
    });
    prepares.collect()
}

fn dismissed(actions: &[Action]) -> Vec<(u64, bool)> {
    let dismissals = actions.iter().filter_map(|action| match action {
        Action::Dismiss { worker, again, .. } => Some((worker.0, *again)),
        _ => None,
    });
    dismissals.collect()
}

fn activated(actions: &[Action]) -> Vec<(u64, usize)> {
    let activations = actions.iter().filter_map(|action| match action {
        Action::Activate { epoch, placement } => {
            placement.check(&inventory()).unwrap();
            Some((epoch.0, placement.workers.len()))
        }
        _ => None,
    });
    activations.collect()
}

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

/// Epochs that workers hold after more was done.
fn holding(held: &mut Vec<Epoch>, done: &[Action]) {
    for action in done {
        match action {
            Action::Activate { epoch, .. } => held.push(*epoch),
            Action::Retire { before } => held.retain(|epoch| epoch >= before),
            _ => {}
        }
    }
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

/// Hits of the inventory's experts, where some of a layer are hot.
fn hits(hot: impl Fn(u32) -> f64) -> Event {
    Event::Popularity(Popularity(inventory().slices().map(|slice| hot(slice.expert.0)).collect()))
}

#[test]
fn copies_follow_what_is_hot_if_that_is_worth_it_and_not_too_often() {
    let (every, policy) = (Duration::from_secs(30), Policy::default());
    let policy = Policy { expected: 2, replica_bytes: 6000, rebalance_every: every, ..policy };
    let mut bench = Bench::new(policy);
    bench.on(Event::Joined(about(1)));
    assert_eq!(activated(&bench.on(Event::Joined(about(2)))), [(1, 2)]);
    bench.on(Event::Switched { epoch: Epoch(1) });
    // All alike, or nearly: nothing moves.
    assert_eq!(bench.on(hits(|_| 100.0)), []);
    assert_eq!(bench.pass(every, &[]), []);
    assert_eq!(bench.on(hits(|expert| if expert == 3 { 104.0 } else { 100.0 })), []);
    assert_eq!(bench.pass(every, &[]), []);
    let hot = |which: u32| move |expert| if expert == which { 700.0 } else { 100.0 };
    assert_eq!(activated(&bench.on(hits(hot(3)))), [(2, 2)]);
    bench.on(Event::Switched { epoch: Epoch(2) });
    let view = bench.view();
    assert!((3..=6).contains(&view.replicas) && view.replica_bytes <= 6000, "{view:?}");
    assert!(view.imbalance.unwrap() < 1.3, "{view:?}");
    // What is hot changes every second: plans do not.
    let mut plans = 0;
    for second in 0..120 {
        let done = bench.on(hits(hot(second % 2 * 4 + 1)));
        let more = bench.pass(Duration::from_secs(1), &[]);
        for (epoch, _) in activated(&done).into_iter().chain(activated(&more)) {
            plans += 1;
            bench.on(Event::Switched { epoch: Epoch(epoch) });
        }
    }
    assert!((1..=4).contains(&plans), "{plans} plans in 120 s");
    // Without memory for copies nobody cares.
    let mut bench = Bench::serving(2, 1);
    assert_eq!(bench.on(hits(hot(3))), []);
    assert!(bench.view().imbalance.unwrap() > 1.2);
}

/// A wish, considered, checked and followed.
fn asked(roster: &mut Roster, wish: Wish, now: Instant) -> Result<Begun, Refused> {
    let fitting = roster.consider(wish)?.check()?;
    roster.rebalance(fitting, now).0
}

#[test]
fn a_wish_is_for_those_who_were_there_when_it_was_checked() {
    let mut bench = Bench::new(Policy::default());
    assert_eq!(asked(&mut bench.roster, tp(), bench.now), Err(Refused::Nobody));
    let mut bench = Bench::serving(3, 1);
    let fitting = bench.roster.consider(tp()).unwrap().check().unwrap();
    bench.on(lost(3));
    assert_eq!(bench.roster.rebalance(fitting, bench.now).0, Err(Refused::Changed));
    assert_eq!(bench.view().mode, "ep");
}

fn tp() -> Wish {
    Wish { mode: Some(Mode::Tp), ..Wish::default() }
}

#[test]
fn a_wish_that_a_serving_worker_cannot_load_is_withdrawn() {
    let mut bench = Bench::serving(2, 1);
    bench.answering = false;
    assert_eq!(prepares(&bench.on(Event::Rebalance(tp()))).len(), 2);
    let failed = Event::PrepareFailed { worker: WorkerId(1), epoch: Epoch(2), detail: "no room".to_string() };
    bench.on(failed);
    assert_eq!(bench.view().mode, "ep", "as before the wish");
    assert_eq!(bench.view().workers[0].failures, 1);
    bench.answering = true;
    // Nobody is in the way of who comes.
    let mut done = bench.on(Event::Joined(about(3)));
    done.extend(bench.pass(Duration::from_secs(4), &[]));
    assert_eq!(activated(&done).last().map(|at| at.1), Some(3), "{done:?}");
    assert_eq!(bench.view().mode, "ep");
    assert!(prepares(&done).iter().all(|(_, _, experts)| *experts < 24), "nobody holds a part of all");
    // The wish has not been forgotten for ever: the next one is followed at once, though another has just failed.
    bench.answering = false;
    bench.on(Event::Switched { epoch: bench.view().epoch.unwrap() });
    let wish = Event::Rebalance(tp());
    let asked = prepares(&bench.on(wish.clone()));
    let (worker, epoch) = (WorkerId(1), Epoch(asked[0].1));
    bench.on(Event::PrepareFailed { worker, epoch, detail: "no room".to_string() });
    assert_eq!(prepares(&bench.on(wish)).len(), 3);
}

#[test]
fn a_later_wish_is_not_withdrawn_with_an_earlier_one() {
    let mut bench = Bench::serving(3, 1);
    bench.answering = false;
    bench.on(Event::Rebalance(tp()));
    bench.on(Event::Rebalance(Wish { mode: Some(Mode::Ep), copies: Some(2), ..Wish::default() }));
    let (worker, epoch) = (WorkerId(1), Epoch(2));
    bench.on(Event::PrepareFailed { worker, epoch, detail: "no room".to_string() });
    assert_eq!((bench.view().mode, bench.view().copies_wanted), ("ep".to_string(), 2));
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

#[test]
fn what_does_not_fit_is_explained_by_others_and_keeps_nobody() {
    let small =
        |id| WorkerAbout { machine: Machine { memory_bytes: 13_000, ..about(id).machine }, ..about(id) };
    let mut bench = Bench::new(Policy { expected: 2, copies: 2, ..Policy::default() });
    bench.on(Event::Joined(small(1)));
    let done = bench.on(Event::Joined(small(2)));
    let explain = done.iter().find_map(|action| match action {
        Action::Explain(case) => Some(case),
        _ => None,
    });
    let misfit = explain.expect("two copies do not fit").misfit().expect("why");
    assert!(misfit.to_string().contains("--expert-copies 1"), "{misfit}");
    assert_eq!(activated(&done), [(1, 2)], "with one copy");
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

#[test]
fn a_wish_that_does_not_fit_is_answered_with_what_does() {
    let mut bench = Bench::serving(2, 1);
    let now = bench.now;
    let mut ask = |wish: Wish| asked(&mut bench.roster, wish, now);
    let refused = ask(Wish { copies: Some(3), ..Wish::default() }).expect_err("two workers");
    assert!(refused.to_string().contains("--expert-copies 2"), "{refused}");
    let mode = Mode::Mixed { ep: 2, tp: 2 };
    let refused = ask(Wish { mode: Some(mode), ..Wish::default() }).expect_err("two workers");
    assert_eq!(refused, Refused::Workers { mode, wanted: 4, there: 2 });
    assert_eq!(
        ask(Wish { mode: Some(Mode::Tp), ..Wish::default() }),
        Ok(Begun { epoch: Some(Epoch(2)), planned: Epoch(1) })
    );
    // That plan is not the next wish's.
    assert_eq!(
        ask(Wish { mode: Some(Mode::Ep), ..Wish::default() }),
        Ok(Begun { epoch: None, planned: Epoch(2) })
    );
    // Enough for all once, and not for what is new beside it.
    let small =
        |id| WorkerAbout { machine: Machine { memory_bytes: 13_000, ..about(id).machine }, ..about(id) };
    let mut bench = Bench::new(Policy { expected: 2, mode: Mode::Tp, ..Policy::default() });
    bench.on(Event::Joined(small(1)));
    assert_eq!(activated(&bench.on(Event::Joined(small(2)))), [(1, 2)]);
    bench.on(Event::Switched { epoch: Epoch(1) });
    let now = bench.now;
    let refused = asked(&mut bench.roster, Wish { mode: Some(Mode::Ep), ..Wish::default() }, now);
    assert!(matches!(refused, Err(Refused::Beside(_))), "{refused:?}");
    assert_eq!(bench.view().mode, "tp");
}

#[test]
fn another_mode_is_prepared_beside_and_refused_if_it_does_not_fit() {
    let mut bench = Bench::serving(2, 1);
    let rebalance = |mode, copies| Event::Rebalance(Wish { mode, copies, ..Wish::default() });
    let done = bench.on(rebalance(Some(Mode::Tp), None));
    assert_eq!(prepares(&done), [(1, 2, 24), (2, 2, 24)]);
    assert_eq!(activated(&done), [(2, 2)]);
    assert_eq!(bench.on(rebalance(None, Some(3))), []);
    assert_eq!(bench.view().copies_wanted, 1);
}
