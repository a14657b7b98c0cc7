//! The thread and its handle: refusals, draining, the end. With a model that says nothing but zeros.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use gaterail_model::sampler::SamplingParams;
use gaterail_model::walk::{Batch, StepError};

use super::*;
use crate::api::*;
use crate::model::Model;

/// Takes some time for every step.
struct Slow {
    step: Duration,
    panics: bool,
    logits: Vec<f32>,
    steps: usize,
    /// Whose other end holds up the step after some.
    gate: Option<Receiver<()>>,
}

/// So many answers are looked at from beside.
const ROUNDS: usize = 20_000;

/// Whoever runs has begun by then, and is not over.
const HELD_UP_AT: usize = 3;

impl Model for Slow {
    fn architecture(&self) -> &str {
        "Slow"
    }

    fn vocab(&self) -> usize {
        8
    }

    fn context(&self) -> usize {
        256
    }

    fn pages(&self) -> usize {
        64
    }

    fn rows_max(&self) -> usize {
        64
    }

    fn step(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        assert!(!self.panics, "told to");
        std::thread::sleep(self.step);
        self.steps += 1;
        if let Some(gate) = self.gate.as_ref().filter(|_| self.steps == HELD_UP_AT) {
            // Nothing is sent: it ends with the other end.
            let _ = gate.recv();
        }
        self.logits.clear();
        self.logits.resize(batch.logits.len() * 8, 0.0);
        Ok(&mut self.logits)
    }
}

fn start(step_ms: u64, panics: bool, limits: EngineLimits) -> (Engine, std::thread::JoinHandle<()>) {
    start_with(step_ms, panics, None, limits)
}

fn start_with(
    step_ms: u64,
    panics: bool,
    gate: Option<Receiver<()>>,
    limits: EngineLimits,
) -> (Engine, std::thread::JoinHandle<()>) {
    let step = Duration::from_millis(step_ms);
    let build = move || {
        let runner = Slow { step, panics, logits: Vec::new(), steps: 0, gate };
        Ok::<_, ()>(EngineParts { runner, tokenizer: None, stop_ids: Vec::new() })
    };
    Engine::start(build, limits).unwrap()
}

fn request(prompt: usize, max_tokens: usize) -> GenerateRequest {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let prompt = vec![1; prompt];
    let mut request = GenerateRequest::new(RequestId("r".into()), TenantId::anonymous(), prompt, params);
    request.max_tokens = Some(max_tokens);
    request
}

/// The load once the thread has seen that nobody is there.
fn settled(engine: &Engine) -> LoadSnapshot {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let load = engine.load();
        let nobody = load.running + load.waiting + load.queued_requests == 0;
        if nobody || Instant::now() > patience {
            return load;
        }
        std::thread::yield_now();
    }
}

/// Tokens, and what came last.
fn read(ticket: &mut Ticket) -> (usize, Option<Event>) {
    let (mut tokens, mut last) = (0, None);
    while let Some(event) = ticket.blocking_next() {
        tokens += usize::from(matches!(event, Event::Token(_)));
        last = Some(event);
    }
    (tokens, last)
}

#[test]
fn what_cannot_be_run_is_refused_with_its_reason() {
    let (engine, thread) = start(0, false, EngineLimits::default());
    assert_eq!((engine.model().context, engine.model().kv_positions), (256, 4096));
    let message = |request: GenerateRequest| engine.submit(request).err().unwrap().to_string();
    let table = [
        (request(0, 1), "the prompt has no tokens"),
        (request(256, 1), "the prompt has 256 tokens, which leaves no room in the context of 256"),
        (
            request(200, 57),
            "the prompt has 200 tokens and 57 more were asked for; together at most 256 are possible",
        ),
        (GenerateRequest { n: 17, ..request(1, 1) }, "n is 17; it has to be 1 to 16"),
        (GenerateRequest { n: 0, ..request(1, 1) }, "n is 0; it has to be 1 to 16"),
        (GenerateRequest { prompt: vec![1, 8], ..request(1, 1) }, "token 8 lies outside the vocabulary of 8"),
        (
            GenerateRequest { prompt_logprobs: Some(21), ..request(1, 1) },
            "logprobs is 21; it has to be 0 to 20",
        ),
    ];
    let refused = table.len() as u64;
    for (request, expected) in table {
        assert_eq!(message(request), expected);
    }
    assert_eq!(engine.load().refused, refused);
    let mut fits = engine.submit(request(200, 56)).unwrap();
    assert_eq!(read(&mut fits).0, 56);
    drop(engine);
    thread.join().unwrap();
}

/// Whoever was accepted waits, runs, or is counted among those who did, at whatever moment one looks.
#[test]
fn nobody_is_lost_between_the_queue_and_the_batch() {
    let (engine, thread) = start(0, false, EngineLimits::default());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let load = engine.load();
                let there = load.queued_requests + load.waiting + load.running;
                let gone = load.finished_stop + load.finished_length + load.cancelled + load.failed;
                assert!(there as u64 + gone >= load.requests, "{load:?}");
            }
        });
        for _ in 0..ROUNDS {
            assert_eq!(read(&mut engine.submit(request(1, 1)).unwrap()).0, 1);
        }
        over.store(true, Ordering::Relaxed);
    });
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let limits = EngineLimits {
        batch_max: 1,
        queue_requests_max: 3,
        queue_tokens_max: 100,
        ..EngineLimits::default()
    };
    let (engine, thread, mut first, gate) = busy(limits);
    let mut others: Vec<Ticket> = (0..2).map(|_| engine.submit(request(30, 1)).unwrap()).collect();
    let refusal = engine.submit(request(41, 1)).unwrap_err();
    assert!(matches!(refusal, Refusal::QueueFull { requests: 2, tokens: 60, .. }), "{refusal:?}");
    others.push(engine.submit(request(1, 1)).unwrap());
    let Refusal::QueueFull { retry_after, .. } = engine.submit(request(1, 1)).unwrap_err() else { panic!() };
    assert!(retry_after >= Duration::from_secs(1) && retry_after <= Duration::from_secs(120));
    assert_eq!(engine.load().queued_requests, 3);
    drop(gate);
    assert_eq!(read(&mut first).0, 40);
    others.iter_mut().for_each(|ticket| assert_eq!(read(ticket).0, 1));
    let load = settled(&engine);
    assert_eq!((load.queued_requests, load.queued_tokens, load.pages_used), (0, 0, 0));
    assert_eq!((load.requests, load.refused, load.generated_tokens), (4, 2, 43));
    drop(engine);
    thread.join().unwrap();
}

/// An engine that is busy with one request until the gate is dropped, and room for so many others.
fn busy(limits: EngineLimits) -> (Engine, std::thread::JoinHandle<()>, Ticket, Sender<()>) {
    let (gate, held) = channel();
    let (engine, thread) = start_with(0, false, Some(held), EngineLimits { batch_max: 1, ..limits });
    let first = engine.submit(request(10, 40)).unwrap();
    while engine.load().running == 0 || engine.load().queued_requests > 0 {
        std::thread::yield_now();
    }
    (engine, thread, first, gate)
}

fn of(tenant: &str, prompt: usize) -> GenerateRequest {
    GenerateRequest { tenant: TenantId(tenant.into()), shares_queue: true, ..request(prompt, 1) }
}

#[test]
fn who_shares_the_queue_leaves_as_much_as_it_has() {
    let limits = EngineLimits { queue_requests_max: 16, ..EngineLimits::default() };
    let (engine, thread, mut first, gate) = busy(limits);
    let mut held = Vec::new();
    let mut fill = |tenant: &str| {
        let before = held.len();
        loop {
            match engine.submit(of(tenant, 1)) {
                Ok(ticket) => held.push(ticket),
                Err(Refusal::TenantQueueFull { requests, .. }) => {
                    assert!(engine.has_room(&TenantId(tenant.into()), true).is_err());
                    assert_eq!(requests, held.len() - before);
                    return requests;
                }
                Err(other) => panic!("{other}"),
            }
        }
    };
    // Half, half of the rest, and so on: whoever comes next finds a place.
    assert_eq!([fill("a"), fill("b"), fill("c")], [8, 4, 2]);
    held.push(engine.submit(of("d", 1)).unwrap());
    assert!(matches!(engine.submit(of("a", 1)), Err(Refusal::TenantQueueFull { .. })));
    drop(gate);
    assert_eq!(read(&mut first).0, 40);
    held.iter_mut().for_each(|ticket| assert_eq!(read(ticket).0, 1));
    // Who has left the queue has its part again.
    settled(&engine);
    assert_eq!(read(&mut engine.submit(of("a", 1)).unwrap()).0, 1);
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn who_shares_the_queue_leaves_as_many_tokens_as_it_has() {
    let limits = EngineLimits { queue_tokens_max: 100, ..EngineLimits::default() };
    let (engine, thread, first, gate) = busy(limits);
    let held = [engine.submit(of("a", 30)).unwrap(), engine.submit(of("a", 20)).unwrap()];
    assert!(matches!(engine.submit(of("a", 1)), Err(Refusal::TenantQueueFull { tokens: 50, .. })));
    // Whoever has nothing waiting gets in while there is room at all.
    let other = engine.submit(of("b", 40)).unwrap();
    assert!(matches!(engine.submit(of("b", 6)), Err(Refusal::TenantQueueFull { tokens: 40, .. })));
    assert!(matches!(engine.submit(of("c", 11)), Err(Refusal::QueueFull { .. })));
    drop((first, held, other, gate));
    settled(&engine);
    assert!(engine.submit(of("a", 50)).is_ok());
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn who_is_alone_fills_the_queue() {
    let limits = EngineLimits { queue_requests_max: 4, queue_tokens_max: 40, ..EngineLimits::default() };
    let (engine, thread, first, gate) = busy(limits);
    let held: Vec<_> = (0..4).map(|_| engine.submit(request(10, 1)).unwrap()).collect();
    assert!(matches!(engine.submit(request(1, 1)), Err(Refusal::QueueFull { requests: 4, tokens: 40, .. })));
    drop((first, held, engine, gate));
    thread.join().unwrap();
}

#[test]
fn draining_finishes_what_it_can_and_fails_the_rest() {
    // The short one takes a tenth of the time, the long one two and a half times as long. Where this process stood still for
    // most of it, there is more the next time.
    let finished = [2, 20, 100].into_iter().any(draining_finishes_what_it_can);
    assert!(finished, "what can be finished is not");
}

fn draining_finishes_what_it_can(step_ms: u64) -> bool {
    let limits = EngineLimits { batch_max: 1, ..EngineLimits::default() };
    let (engine, thread) = start(step_ms, false, limits);
    let mut short = engine.submit(request(10, 10)).unwrap();
    let mut long = engine.submit(request(10, 240)).unwrap();
    engine.drain(Instant::now() + Duration::from_millis(100 * step_ms));
    assert!(matches!(engine.submit(request(1, 1)), Err(Refusal::Draining | Refusal::Stopped)));
    let short = read(&mut short).0;
    assert_eq!(read(&mut long).1, Some(Event::Failed(Failure::Draining)));
    thread.join().unwrap();
    assert!(!engine.load().alive);
    assert_eq!(ended(&engine), Ended::Drained);
    assert!(matches!(engine.submit(request(1, 1)), Err(Refusal::Stopped)));
    short == 10
}

#[test]
fn a_panic_fails_the_requests_and_ends_the_engine() {
    let (engine, thread) = start(0, true, EngineLimits::default());
    let mut ticket = engine.submit(request(10, 10)).unwrap();
    assert!(matches!(read(&mut ticket).1, Some(Event::Failed(Failure::Step { .. }))));
    thread.join().unwrap();
    assert!(matches!(engine.submit(request(1, 1)), Err(Refusal::Stopped)));
    assert_eq!(ended(&engine), Ended::Panicked);
}

fn ended(engine: &Engine) -> Ended {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(engine.ended())
}

#[test]
fn what_cannot_be_built_is_the_callers() {
    let built = Engine::start(|| Err::<EngineParts<Slow>, _>("no model"), EngineLimits::default());
    assert_eq!(built.err(), Some("no model"));
}
