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

/// A request for four choices, some of whose prompts end with a page.
fn choices(prompt: usize, max_tokens: usize) -> GenerateRequest {
    GenerateRequest { n: 4, ..plain("a", prompt, max_tokens) }
}

#[test]
fn four_choices_cost_one_prompt() {
    for prompt in [1, 40, 64, 65, 100, 127, 128, 300] {
        let cases = [(16, 512), (16, 17), (2, 100), (1, 512)].map(|at| [(at, true), (at, false)]);
        for ((batch_max, rows_max), prefix_cache) in cases.into_iter().flatten() {
            let limits = EngineLimits { batch_max, rows_max, prefix_cache, ..EngineLimits::default() };
            let mut house = House::new(64, limits, 512);
            let client = house.ask(choices(prompt, 90));
            house.finish();
            house.check(client);
            let what =
                format!("{prompt} tokens, {batch_max} at once, {rows_max} rows, a cache: {prefix_cache}");
            assert_eq!(house.core.counters.prompt_tokens, prompt as u64, "{what}");
            // Of each answer all tokens are computed but the last.
            assert_eq!(house.core.parts.runner.rows, prompt as u64 + 4 * 89, "{what}");
            // Nothing is kept for whoever might still want the prompt's end.
            assert_eq!(house.core.pages.idle(), known_pages(&house), "{what}");
        }
    }
}

/// Full pages that can be found: all that may be kept when nobody is there.
fn known_pages(house: &House) -> usize {
    let request = &house.clients[0].request;
    let mut found = std::collections::BTreeSet::new();
    for choice in 0..request.n {
        let said = &house.clients[0].answer.choices[&choice].0;
        let tokens: Vec<u32> = request.prompt.iter().copied().chain(said.iter().map(|said| said.0)).collect();
        let salt = crate::kv::Salt { tenant: request.tenant.clone(), extra: None };
        found.extend(house.core.pages.find(&salt, &tokens).pages);
    }
    found.len()
}

#[test]
fn a_choice_that_is_preempted_shares_its_prompt_again() {
    // Four answers of six pages each do not fit beside each other.
    let mut house = House::new(12, EngineLimits::default(), 512);
    house.core.parts.runner.below.0 = 100;
    let client = house.ask(choices(100, 300));
    house.finish();
    house.check(client);
    let preemptions = house.core.counters.preemptions;
    assert!(preemptions > 0 && house.core.counters.short_plans == 0, "{preemptions} preemptions");
    // No row of the prompt is computed twice.
    assert_eq!(house.core.parts.runner.below, (100, 100));
}

#[test]
fn all_choices_begin_with_the_prompts_last_logits() {
    let limits = EngineLimits { batch_max: 1, ..EngineLimits::default() };
    let mut house = House::new(16, limits, 512);
    let one = house.ask(choices(70, 1));
    house.finish();
    house.check(one);
    assert_eq!((house.core.parts.runner.rows, house.core.parts.runner.steps), (70, 1));
    let none = house.ask(choices(70, 0));
    house.finish();
    house.check(none);
    // Log-probabilities of the prompt are read once, too.
    let logprobs = house.ask(GenerateRequest { prompt_logprobs: Some(2), ..choices(129, 30) });
    let before = house.core.parts.runner.rows;
    house.finish();
    house.check(logprobs);
    assert_eq!(house.core.parts.runner.rows - before, 129 + 4 * 29);
}
