//! Sequences in any company, on any schedule, give what each gives alone.
//!
//! The model is a twin whose logits are a hash of all that KV holds for the row's positions: a page that was shared, taken
//! or kept wrongly shows in the next token. What a request gives alone is computed beside it, without pages or steps.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gaterail_kernels::KernelError;
use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_model::sampler::{
    FinishReason, SamplingParams, Step, StopCause, TokenCounts, logprob_of, sample,
};
use gaterail_model::walk::{Batch, StepError};
use tokio::sync::mpsc;

use super::*;
use crate::admission::{admit, choice_seed};
use crate::api::*;
use crate::engine::EngineParts;
use crate::model::Model;
use crate::schedule::{Plan, Share, Who};
use crate::sequence::events_room;

const VOCAB: usize = 40;
const STOP: u32 = 1;
/// A token whose rows have NaN logits.
const POISON: u32 = 39;

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// What KV stores for a token behind `before`.
fn stored(before: u64, token: u32) -> u64 {
    mix(before, u64::from(token) + 1)
}

fn logits_of(history: impl Iterator<Item = u64>, token: u32) -> Vec<f32> {
    let seen = history.fold(3, mix);
    let logit = |v: usize| (mix(seen, v as u64) >> 40) as f32 / (1 << 21) as f32 - 4.0;
    let value = |v: usize| match (token, v as u32) {
        (POISON, _) => f32::NAN,
        (_, POISON) => f32::NEG_INFINITY,
        _ => logit(v),
    };
    (0..VOCAB).map(value).collect()
}

/// A model of hashes.
struct Twin {
    kv: Vec<u64>,
    rows_max: usize,
    logits: Vec<f32>,
    /// Steps that fail, by number.
    failing: Vec<u64>,
    steps: u64,
}

impl Model for Twin {
    fn architecture(&self) -> &str {
        "Twin"
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn context(&self) -> usize {
        1 << 20
    }

    fn pages(&self) -> usize {
        self.kv.len() / PAGE_POSITIONS
    }

    fn rows_max(&self) -> usize {
        self.rows_max
    }

    fn step(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        self.steps += 1;
        assert!(batch.rows.len() <= self.rows_max);
        self.logits.clear();
        let slot = |table: &[u32], position: usize| {
            table[position / PAGE_POSITIONS] as usize * PAGE_POSITIONS + position % PAGE_POSITIONS
        };
        for (index, row) in batch.rows.iter().enumerate() {
            let (table, position) = (&batch.tables[row.sequence as usize], row.position as usize);
            let before = if position == 0 { 0 } else { self.kv[slot(table, position - 1)] };
            self.kv[slot(table, position)] = stored(before, row.token);
            if batch.logits.contains(&(index as u32)) {
                let history = (0..=position).map(|position| self.kv[slot(table, position)]);
                self.logits.extend(logits_of(history, row.token));
            }
        }
        if self.failing.contains(&self.steps) {
            return Err(KernelError::Device { op: "twin", detail: "it was told to fail".to_string() }.into());
        }
        Ok(&mut self.logits)
    }
}

/// A token, the bits of its log-probability, and how many alternatives came with it.
type Heard = (u32, Option<u32>, usize);

/// What a request gives alone: its choices' tokens with log-probabilities, and those of its prompt.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    prompt: Vec<PromptLogprob>,
    choices: BTreeMap<u32, (Vec<Heard>, Option<FinishReason>)>,
}

fn alone(request: &GenerateRequest, context: usize) -> Answer {
    let mut answer = Answer::default();
    let history = |tokens: &[u32]| {
        let mut kv = Vec::new();
        tokens.iter().for_each(|&token| kv.push(stored(kv.last().copied().unwrap_or(0), token)));
        kv
    };
    if let Some(count) = request.prompt_logprobs {
        for next in 1..request.prompt.len() {
            let kv = history(&request.prompt[..next]);
            let logits = logits_of(kv.into_iter(), request.prompt[next - 1]);
            let token = request.prompt[next];
            let (logprob, top) = logprob_of(&logits, token, count).unwrap();
            answer.prompt.push(PromptLogprob { token, logprob, top });
        }
    }
    let most = request.max_tokens.unwrap_or(context - request.prompt.len());
    for choice in 0..request.n {
        let seed = choice_seed(request.params.seed, choice);
        let params = SamplingParams { seed, ..request.params.clone() };
        let (mut tokens, mut said, mut reason) = (request.prompt.clone(), Vec::new(), None);
        let mut counts = TokenCounts::new(&request.prompt);
        while reason.is_none() && said.len() < most {
            let mut logits = logits_of(history(&tokens).into_iter(), tokens[tokens.len() - 1]);
            let step = Step {
                counts: &counts,
                position: tokens.len() as u64,
                generated: said.len(),
                stop_ids: &[STOP],
            };
            let sampled = sample(&mut logits, &params, &step).unwrap();
            said.push((sampled.token, sampled.logprob.map(f32::to_bits), sampled.top.len()));
            counts.push(sampled.token);
            tokens.push(sampled.token);
            if sampled.token == STOP && !params.ignore_eos && said.len() >= params.min_tokens {
                reason = Some(FinishReason::Stop(StopCause::Token(STOP)));
            }
        }
        answer.choices.insert(choice, (said, reason.or(Some(FinishReason::Length))));
    }
    answer
}

/// What came of a request.
struct Client {
    request: GenerateRequest,
    events: Option<mpsc::Receiver<Event>>,
    answer: Answer,
    failure: Option<Failure>,
    started: usize,
}

impl Client {
    fn take(&mut self, most: usize) {
        let Some(events) = &mut self.events else { return };
        for _ in 0..most {
            match events.try_recv() {
                Ok(Event::Started { .. }) => self.started += 1,
                Ok(Event::Prompt { start, logprobs }) => {
                    assert_eq!(start, self.answer.prompt.len() + 1);
                    self.answer.prompt.extend(logprobs);
                }
                Ok(Event::Token(piece)) => {
                    let said = &mut self.answer.choices.entry(piece.choice).or_default().0;
                    said.push((piece.token, piece.logprob.map(f32::to_bits), piece.top.len()));
                }
                Ok(Event::Finished { choice, reason, usage, .. }) => {
                    let said = self.answer.choices.entry(choice).or_default();
                    assert_eq!(usage.generated_tokens, said.0.len());
                    assert_eq!(said.1.replace(reason), None);
                }
                Ok(Event::Failed(failure)) => self.failure = Some(failure),
                Err(mpsc::error::TryRecvError::Empty) => return,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.events = None;
                    return;
                }
            }
        }
    }
}

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

struct House {
    core: Core<Twin>,
    clients: Vec<Client>,
    context: usize,
    now: Instant,
}

impl House {
    fn new(pages: usize, limits: EngineLimits, rows_max: usize) -> House {
        let kv = vec![0; pages * PAGE_POSITIONS];
        let runner = Twin { kv, rows_max, logits: Vec::new(), failing: Vec::new(), steps: 0 };
        let parts = EngineParts { runner, tokenizer: None, stop_ids: vec![STOP] };
        let core = Core::new(parts, limits);
        House { core, clients: Vec::new(), context: pages * PAGE_POSITIONS, now: Instant::now() }
    }

    fn ask(&mut self, request: GenerateRequest) -> usize {
        let card = ModelCard {
            architecture: String::new(),
            vocab: VOCAB,
            context: self.context,
            kv_positions: self.context,
            stop_ids: vec![STOP],
        };
        let admitted = admit(request.clone(), &card, &self.core.limits, None).unwrap();
        let (events, receiver) = mpsc::channel(events_room(self.core.limits.events_max, request.n));
        self.core.accept(admitted, self.now, events);
        let (answer, failure) = (Answer::default(), None);
        self.clients.push(Client { request, events: Some(receiver), answer, failure, started: 0 });
        self.clients.len() - 1
    }

    fn step(&mut self) -> Outcome {
        self.now += Duration::from_millis(1);
        let outcome = self.core.step(self.now);
        self.core.audit().unwrap();
        outcome
    }

    fn finish(&mut self) {
        for round in 0.. {
            let outcome = self.step();
            self.clients.iter_mut().for_each(|client| client.take(usize::MAX));
            if outcome == Outcome::Empty {
                break;
            }
            assert!(round < 20_000, "it does not end: {:?} {:#?}", self.core.running, self.core.view().view);
        }
        assert_eq!(self.core.pages.available(), self.core.pages.total());
    }

    fn check(&self, client: usize) {
        let Client { request, answer, failure, started, .. } = &self.clients[client];
        assert_eq!((failure, *started), (&None, 1), "client {client}");
        assert_eq!(*answer, alone(request, self.context), "client {client}: {request:?}");
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

fn plain(tenant: &str, prompt: usize, max_tokens: usize) -> GenerateRequest {
    let params = SamplingParams { ignore_eos: true, seed: prompt as u64, ..SamplingParams::default() };
    let tenant = TenantId(tenant.into());
    let prompt = (0..prompt).map(|at| (mix(at as u64, prompt as u64) % 30) as u32 + 2).collect();
    let mut request = GenerateRequest::new(RequestId("r".into()), tenant, prompt, params);
    request.max_tokens = Some(max_tokens);
    request
}

/// `prompt` tokens like those of `of`, and more.
fn longer(of: &GenerateRequest, more: usize) -> GenerateRequest {
    let mut request = of.clone();
    request.prompt.extend((0..more).map(|at| (mix(at as u64, 5) % 30) as u32 + 2));
    request
}

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
    (0..3).for_each(|client| house.check(client));
}
