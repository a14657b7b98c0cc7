//! What each tenant gets.

use super::*;

#[test]
fn a_quiet_tenant_does_not_wait_for_a_noisy_one() {
    let mut steps = Vec::new();
    for noise in [0, 40] {
        let limits = EngineLimits { batch_max: 4, rows_max: 64, ..EngineLimits::default() };
        let mut house = House::new(200, limits, 64);
        for _ in 0..noise {
            house.ask(plain("noisy", 1000, 100));
        }
        (0..50).for_each(|_| {
            house.step();
        });
        let quiet = house.ask(plain("quiet", 40, 10));
        let begun = house.core.counters.steps;
        while house.clients[quiet].events.is_some() {
            house.step();
            house.clients[quiet].take(usize::MAX);
            house.clients[..quiet].iter_mut().for_each(|client| client.take(usize::MAX));
        }
        steps.push(house.core.counters.steps - begun);
        house.check(quiet);
    }
    // Alone: one step reads the prompt and samples, nine more sample.
    assert_eq!(steps[0], 10);
    assert!(steps[1] <= 2 * steps[0], "{steps:?}");
}

#[test]
fn two_tenants_get_as_much_whatever_they_ask_for() {
    let limits = EngineLimits { batch_max: 4, rows_max: 64, ..EngineLimits::default() };
    let mut house = House::new(400, limits, 64);
    (0..60).for_each(|_| _ = house.ask(plain("long", 900, 100)));
    (0..900).for_each(|_| _ = house.ask(plain("short", 30, 20)));
    for _ in 0..1200 {
        house.step();
        house.clients.iter_mut().for_each(|client| client.take(usize::MAX));
    }
    let counters = house.core.fair.counters();
    let (most, least) = (counters[0].max(counters[1]), counters[0].min(counters[1]));
    assert!(most - least < 2500 && least > 5_000, "{counters:?}");
}
