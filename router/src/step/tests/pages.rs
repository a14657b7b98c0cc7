//! Pages that several hold, that are short, that are known.

use super::*;

/// V's prompt is what X waits for. W of another tenant takes V's pages, and X must not count them as free beside.
#[test]
fn pages_of_who_goes_are_not_counted_twice() {
    let pages = |count: usize| count * PAGE_POSITIONS;
    let mut house = House::new(86, EngineLimits::default(), 512);
    house.ask(plain("a", pages(41) - 40, 30));
    let v = plain("a", pages(31), 30);
    house.ask(v.clone());
    while house.core.running.len() < 2 || house.core.sequences.values().any(|of| of.pending() > 1) {
        house.step();
    }
    house.ask(longer(&v, pages(22)));
    house.step();
    assert_eq!((house.core.running.len(), house.core.pages.available()), (2, 13));
    house.ask(plain("b", pages(14) - 40, 10));
    house.finish();
    (0..4).for_each(|client| house.check(client));
    assert_eq!((house.core.counters.preemptions, house.core.counters.short_plans), (1, 0));
}

/// The same within one tenant: V's client does not read, and X has V's prompt.
#[test]
fn pages_of_who_does_not_read_are_not_counted_twice() {
    let pages = |count: usize| count * PAGE_POSITIONS;
    let limits = EngineLimits { events_max: 16, ..EngineLimits::default() };
    let mut house = House::new(60, limits, 512);
    let reads = house.ask(plain("a", 100, 200));
    let v = plain("a", pages(31), 30);
    house.ask(v.clone());
    for _ in 0..60 {
        house.step();
        house.clients[reads].take(usize::MAX);
    }
    assert!(house.core.requests[&1].paused.is_some());
    house.ask(longer(&v, pages(27) - 40));
    house.finish();
    (0..3).for_each(|client| house.check(client));
    assert_eq!(house.core.counters.short_plans, 0);
}

/// A plan that is wrong costs somebody its pages, and nobody the engine.
#[test]
fn a_plan_without_pages_puts_them_back() {
    let mut house = House::new(16, EngineLimits::default(), 512);
    house.ask(plain("a", 9 * PAGE_POSITIONS, 70));
    house.step();
    house.ask(plain("a", 9 * PAGE_POSITIONS + 1, 70));
    let seen = house.core.view();
    let share = |who, rows| Share { who, rows };
    let plan = Plan {
        preempt: Vec::new(),
        admit: vec![0],
        rows: vec![share(Who::Running(0), 1), share(Who::Waiting(0), 100)],
    };
    let ran = house.core.apply(&plan, seen, house.now);
    house.core.audit().unwrap();
    assert_eq!((ran.len(), house.core.counters.short_plans, house.core.running.len()), (1, 1, 1));
    // What the batch says was not run: the sequence still is where it was.
    house.finish();
    (0..2).for_each(|client| house.check(client));
}

#[test]
fn a_prompt_that_is_known_costs_its_last_token_only() {
    let mut house = House::new(32, EngineLimits::default(), 512);
    house.ask(plain("a", 129, 1));
    house.finish();
    let computed = house.core.counters.prompt_tokens;
    assert_eq!(computed, 129);
    house.ask(plain("a", 129, 1));
    house.finish();
    assert_eq!(house.core.counters.prompt_tokens - computed, 1);
    assert_eq!(house.core.counters.prefix_hits, 128);
    // Another tenant finds nothing.
    house.ask(plain("b", 129, 1));
    house.finish();
    assert_eq!(house.core.counters.prompt_tokens - computed, 130);
    // Nor does another salt of the same one; the same salt does.
    let salted = |salt: &str| GenerateRequest { cache_salt: Some(salt.into()), ..plain("a", 129, 1) };
    for (salt, computed_then) in [("one", 129 + 130), ("two", 2 * 129 + 130), ("one", 2 * 129 + 131)] {
        house.ask(salted(salt));
        house.finish();
        assert_eq!(house.core.counters.prompt_tokens - computed, computed_then, "{salt}");
    }
    (0..6).for_each(|client| house.check(client));
}
