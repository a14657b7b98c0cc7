//! Ends that are not the answer's: clients that are gone or do not read, deadlines, steps and logits that fail.

use super::*;

#[test]
fn a_client_that_is_gone_is_gone_with_the_next_step() {
    let limits = EngineLimits { batch_max: 8, ..EngineLimits::default() };
    let mut house = House::new(64, limits, 512);
    for at in 0..1000 {
        let client = house.ask(GenerateRequest { n: 1 + at % 3, ..plain("a", 10 + at as usize % 200, 50) });
        (0..at % 7).for_each(|_| _ = house.step());
        house.clients[client].events = None;
        house.step();
        assert_eq!(house.core.pages.available(), house.core.pages.total(), "client {at}");
        assert!(house.core.is_empty());
    }
    assert_eq!(house.core.counters.cancelled, 1000);
}

#[test]
fn a_client_that_does_not_read_stalls_nobody_and_is_ended() {
    let limits = EngineLimits {
        batch_max: 2,
        events_max: 16,
        stall_max: Duration::from_millis(600),
        ..EngineLimits::default()
    };
    let mut house = House::new(16, limits, 512);
    let slow: Vec<usize> = (0..3).map(|_| house.ask(plain("a", 100, 400))).collect();
    (0..40).for_each(|_| _ = house.step());
    let quick = house.ask(plain("a", 50, 20));
    (0..40).for_each(|_| {
        house.step();
        house.clients[quick].take(usize::MAX);
    });
    house.check(quick);
    // One of them begins to read again: nothing is lost, though its place was given away.
    for _ in 0..500 {
        house.step();
        house.clients[slow[0]].take(usize::MAX);
    }
    house.check(slow[0]);
    (0..600).for_each(|_| _ = house.step());
    slow[1..].iter().for_each(|&client| house.clients[client].take(usize::MAX));
    let stalled = Some(Failure::Stalled { after: Duration::from_millis(600) });
    assert!(slow[1..].iter().all(|&client| house.clients[client].failure == stalled));
    house.finish();
}

#[test]
fn a_step_that_fails_takes_its_requests_along_and_nobody_else() {
    let limits = EngineLimits { batch_max: 1, ..EngineLimits::default() };
    let mut house = House::new(16, limits, 512);
    let first = house.ask(plain("a", 100, 20));
    let second = house.ask(plain("a", 100, 20));
    house.core.parts.runner.failing = vec![3];
    house.finish();
    let failure = house.clients[first].failure.clone().unwrap().to_string();
    assert!(failure.contains("told to fail"), "{failure}");
    house.check(second);
    assert_eq!((house.core.counters.failed, house.core.counters.failed_steps), (1, 1));
}

#[test]
fn logits_that_are_no_numbers_fail_their_own_request_only() {
    let mut house = House::new(32, EngineLimits::default(), 512);
    let mut poisoned = plain("a", 100, 20);
    *poisoned.prompt.last_mut().unwrap() = POISON;
    let good = house.ask(plain("a", 90, 30));
    let bad = house.ask(GenerateRequest { n: 3, ..poisoned });
    house.finish();
    house.check(good);
    assert!(matches!(house.clients[bad].failure, Some(Failure::Sampler(_))));
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let limits = EngineLimits { batch_max: 1, ..EngineLimits::default() };
    let mut house = House::new(32, limits, 512);
    let deadline = Some(house.now + Duration::from_millis(10));
    let runs = house.ask(GenerateRequest { deadline, ..plain("a", 90, 300) });
    let waits = house.ask(GenerateRequest { deadline, ..plain("a", 90, 300) });
    let patient = house.ask(plain("a", 90, 30));
    house.finish();
    assert_eq!(house.clients[runs].failure, Some(Failure::Deadline));
    assert_eq!(house.clients[waits].failure, Some(Failure::Deadline));
    assert!(house.clients[runs].answer.choices[&0].0.len() > 5);
    house.check(patient);
}
