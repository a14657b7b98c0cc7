//! What operators wish, and what is hot.

use super::*;

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
