//! Any schedule: random limits and requests, guests who come and go as they like.

use super::*;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0, 77) % below.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.roll(n) == 0
    }
}

fn params(dice: &mut Dice) -> SamplingParams {
    SamplingParams {
        temperature: if dice.one_in(3) { 0.0 } else { 1.0 },
        seed: dice.roll(1 << 30) as u64,
        logprobs: if dice.one_in(2) { Some(dice.roll(3) as u8) } else { None },
        repetition_penalty: if dice.one_in(4) { 1.3 } else { 1.0 },
        top_k: if dice.one_in(4) { 7 } else { 0 },
        // A bias against the stop token makes some answers long.
        logit_bias: if dice.one_in(2) { vec![(STOP, -100.0)] } else { Vec::new() },
        ..SamplingParams::default()
    }
}

fn request(dice: &mut Dice, context: usize) -> GenerateRequest {
    let tenant = TenantId(["a", "b", "c"][dice.roll(3)].into());
    let shared = dice.roll(3) * 70;
    let own = 1 + dice.roll(100);
    let mut prompt: Vec<u32> = (0..shared).map(|at| (at * 7 % 30) as u32 + 2).collect();
    prompt.extend((0..own).map(|_| dice.roll(30) as u32 + 2));
    prompt.truncate(context - 1);
    let most = context - prompt.len();
    let mut request = GenerateRequest::new(RequestId("r".into()), tenant, prompt, params(dice));
    request.n = if dice.one_in(4) { 2 + dice.roll(2) as u32 } else { 1 };
    request.max_tokens =
        Some(dice.roll(most.min(150)) + usize::from(!dice.one_in(10))).map(|max| max.min(most));
    request.prompt_logprobs = if dice.one_in(6) { Some(dice.roll(3) as u8) } else { None };
    request.cache_salt = if dice.one_in(6) { Some("salt".into()) } else { None };
    request
}

/// A request of one of two tenants that begins as most others do, for many pages.
fn alike(dice: &mut Dice, context: usize) -> GenerateRequest {
    let tenant = TenantId(["a", "b"][dice.roll(2)].into());
    let shared = (dice.roll(2) + dice.roll(8)) * PAGE_POSITIONS;
    let own = 1 + dice.roll(6) * dice.roll(PAGE_POSITIONS);
    let mut prompt: Vec<u32> = (0..shared).map(|at| (at * 7 % 30) as u32 + 2).collect();
    prompt.extend((0..own).map(|_| dice.roll(30) as u32 + 2));
    prompt.truncate(context - 1);
    let most = (context - prompt.len()).min(2 + dice.roll(80));
    let mut request = GenerateRequest::new(RequestId("r".into()), tenant, prompt, params(dice));
    request.max_tokens = Some(most);
    request.n = if dice.one_in(6) { 2 } else { 1 };
    request
}

/// One house with random limits, guests who come when they like, leave early, read slowly or not at all for a while.
fn simulate(seed: u64, request: fn(&mut Dice, usize) -> GenerateRequest) -> (u64, u64) {
    let mut dice = Dice(seed << 32);
    let pages = 4 + dice.roll(24);
    let batch_max = 1 + dice.roll(6);
    let rows_max = batch_max + dice.roll(90);
    let limits = EngineLimits {
        batch_max,
        rows_max,
        logits_rows_max: 1 + dice.roll(20),
        events_max: 8 + dice.roll(60),
        prefix_cache: !dice.one_in(5),
        ..EngineLimits::default()
    };
    let mut house = House::new(pages, limits, rows_max);
    let mut left: Vec<usize> = Vec::new();
    for _ in 0..150 {
        if dice.one_in(4) && house.clients.len() < 30 {
            let request = request(&mut dice, house.context);
            house.ask(request);
        }
        house.step();
        for client in 0..house.clients.len() {
            match dice.roll(60) {
                0 if house.clients[client].events.is_some() && dice.one_in(4) => {
                    house.clients[client].events = None;
                    left.push(client);
                }
                0..20 => house.clients[client].take(1 + dice.roll(9)),
                20..30 => house.clients[client].take(usize::MAX),
                _ => {}
            }
        }
    }
    house.finish();
    for client in (0..house.clients.len()).filter(|client| !left.contains(client)) {
        house.check(client);
    }
    assert_eq!(house.core.counters.short_plans, 0);
    (house.core.counters.preemptions, house.core.counters.prefix_hits)
}

#[test]
fn any_schedule_gives_what_each_gives_alone() {
    simulate_all(0..300, request);
}

/// Where most pages are shared, one that loses its pages leaves them to others who wait for the same ones.
#[test]
fn pages_that_are_shared_outlive_who_loses_them() {
    simulate_all(1000..1300, alike);
}

fn simulate_all(seeds: std::ops::Range<u64>, request: fn(&mut Dice, usize) -> GenerateRequest) {
    let (mut preemptions, mut hits) = (0, 0);
    for seed in seeds {
        // The seed of a failure stands in the output.
        let outcome = std::panic::catch_unwind(|| simulate(seed, request));
        let (preempted, hit) = outcome.unwrap_or_else(|panic| {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic)
        });
        preemptions += preempted;
        hits += hit;
    }
    assert!(preemptions > 1000 && hits > 10_000, "{preemptions} preemptions, {hits} hits: too tame");
}
