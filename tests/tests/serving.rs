//! Contract 3 through the engine: what a request is answered does not depend on who else is there, on how its prompt is
//! cut, on what the cache has, or on pages that were taken away. What it ought to be is computed beside the engine: the
//! prompt in one step, then token by token, each with a runner of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gaterail_kernels::{Device, Isa};
use gaterail_model::kv::PageTable;
use gaterail_model::sampler::{FinishReason, SamplingParams, Step, TokenCounts, logprob_of, sample};
use gaterail_model::text::{AnswerText, Detokenizer, Ending, Tokenizer};
use gaterail_model::walk::{Batch, Runner, RunnerOptions};
use gaterail_model::weights::Precision;
use gaterail_model::{ModelError, ModelSource};
use gaterail_router::admission::choice_seed;
use gaterail_router::{
    Engine, EngineLimits, EngineParts, Event, Failure, GenerateRequest, LoadSnapshot, Refusal, RequestId,
    TenantId, Ticket,
};
use gaterail_tests::cuts::hash;
use gaterail_tests::{device, fixtures_folder};

const PATIENCE: Duration = Duration::from_secs(60);
/// How often requests are sent together until they are together.
const MEETINGS: usize = 5;

/// Models of every attention and mask, one with packed weights, and the one that has a tokenizer.
fn models() -> Vec<(PathBuf, Precision)> {
    let fixture = |name: &str| fixtures_folder().join(name);
    vec![
        (fixture("qwen3_moe_a"), Precision::F32),
        (fixture("deepseek_v3_a"), Precision::F32),
        (fixture("gpt_oss_a"), Precision::AsStored),
        (fixture("llama4_a"), Precision::F32),
        (fixture("olmoe_a"), Precision::Int4),
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/demo-model/model"), Precision::AsStored),
    ]
}

/// A model, and how to make an engine of it.
struct Served {
    folder: PathBuf,
    precision: Precision,
    device: Device,
    tokenizer: Option<Arc<Tokenizer>>,
    stop_ids: Vec<u32>,
    vocab: usize,
}

impl Served {
    fn of(folder: PathBuf, precision: Precision) -> Served {
        let source = ModelSource::open(&folder).expect("a model");
        let tokenizer = source.has_tokenizer().then(|| Arc::new(source.tokenizer().expect("a tokenizer")));
        let stop_ids = source.generation_defaults().expect("defaults").stop_ids;
        let vocab = source.spec().expect("a specification").vocab;
        Served { folder, precision, device: device(Isa::detect()), tokenizer, stop_ids, vocab }
    }

    fn runner(&self, positions: usize) -> Runner {
        load(&self.folder, &self.device, positions, self.precision).expect("a runner")
    }

    fn engine(&self, positions: usize, limits: EngineLimits) -> (Engine, JoinHandle<()>) {
        let (folder, device, precision) = (self.folder.clone(), self.device.clone(), self.precision);
        let (tokenizer, stop_ids) = (self.tokenizer.clone(), self.stop_ids.clone());
        let build = move || {
            let runner = load(&folder, &device, positions, precision)?;
            Ok::<_, ModelError>(EngineParts { runner, tokenizer, stop_ids })
        };
        Engine::start(build, limits).expect("an engine")
    }
}

fn load(
    folder: &Path,
    device: &Device,
    positions: usize,
    precision: Precision,
) -> Result<Runner, ModelError> {
    let options =
        RunnerOptions { rows_max: 512, positions, shards: Vec::new(), precision, kv: precision.kv() };
    Runner::load(folder, device, &options, &mut |_| {})
}

/// A token with the bits of its log-probabilities and its text.
type Said = (u32, u32, Vec<(u32, u32)>, String);

/// A token of a prompt, the bits of its log-probability, and the most likely ones with theirs.
type PromptToken = (u32, u32, Vec<(u32, u32)>);

/// All that a request was answered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    prompt: Vec<PromptToken>,
    choices: BTreeMap<u32, (Vec<Said>, Option<FinishReason>)>,
    cached_tokens: usize,
}

fn bits(top: &[(u32, f32)]) -> Vec<(u32, u32)> {
    top.iter().map(|(token, logprob)| (*token, logprob.to_bits())).collect()
}

/// Sixteen requests: greedy and sampled, with penalties, biases, stop strings, several choices; short and long, some
/// with the same beginning, some whose prompt ends with a page.
fn requests(served: &Served) -> Vec<GenerateRequest> {
    let token = |seed: u64| (hash(seed) % served.vocab.min(900) as u64) as u32;
    let request = |at: u64| {
        let shared = [0, 64, 100, 130][at as usize % 4];
        let own = [1, 7, 28, 64, 50][at as usize % 5];
        let prompt: Vec<u32> =
            (0..shared).map(token).chain((0..own).map(|i| token(1000 * (at + 1) + i))).collect();
        let has_text = served.tokenizer.is_some();
        let params = SamplingParams {
            temperature: [0.0, 1.0, 0.7][at as usize % 3],
            top_p: [1.0, 0.9][at as usize % 2],
            top_k: [0, 0, 20][at as usize % 3],
            repetition_penalty: [1.0, 1.2][at as usize / 2 % 2],
            frequency_penalty: [0.0, 0.3][at as usize / 4 % 2],
            seed: hash(at),
            logprobs: Some(at as u8 % 4),
            stop: if has_text && at % 4 == 1 { vec!["e".into(), "the".into()] } else { Vec::new() },
            min_tokens: if at.is_multiple_of(2) { 20 } else { 5 },
            ..SamplingParams::default()
        };
        let tenant = TenantId(["a", "b"][at as usize % 2].into());
        let mut request = GenerateRequest::new(RequestId("r".into()), tenant, prompt, params);
        request.n = if at % 5 == 2 { 3 } else { 1 };
        request.max_tokens = Some(if at == 9 { 0 } else { 25 + at as usize * 2 });
        request.prompt_logprobs = if at % 7 == 2 { Some(2) } else { None };
        request
    };
    (0..16).map(request).collect()
}

/// What a request gives, without the engine.
fn alone(served: &Served, runner: &mut Runner, request: &GenerateRequest) -> Answer {
    let mut answer = Answer::default();
    for choice in 0..request.n {
        let params =
            SamplingParams { seed: choice_seed(request.params.seed, choice), ..request.params.clone() };
        let mut table = PageTable::default();
        let mut logits = rows(runner, &mut table, &request.prompt, 0);
        if let (0, Some(count)) = (choice, request.prompt_logprobs) {
            for (row, &token) in logits.chunks_exact(served.vocab).zip(&request.prompt[1..]) {
                let (logprob, top) = logprob_of(row, token, count).expect("logits");
                answer.prompt.push((token, logprob.to_bits(), bits(&top)));
            }
        }
        let mut last = logits.split_off(logits.len() - served.vocab);
        let tokenizer = served.tokenizer.as_deref();
        let detokenizer = match tokenizer {
            Some(tokenizer) => Detokenizer::after(tokenizer, &request.prompt, true).expect("a text"),
            None => Detokenizer::new(true),
        };
        let mut text = AnswerText::new(detokenizer, &params, false).expect("stop strings");
        let mut counts = TokenCounts::new(&request.prompt);
        let max_generated = request.max_tokens.expect("a number");
        let ending = Ending { params: &params, stop_ids: &served.stop_ids, max_generated };
        let mut said = Vec::new();
        let mut reason = (max_generated == 0).then_some(FinishReason::Length);
        while reason.is_none() {
            let position = request.prompt.len() + said.len();
            let step = Step {
                counts: &counts,
                position: position as u64,
                generated: said.len(),
                stop_ids: &served.stop_ids,
            };
            let sampled = sample(&mut last, &params, &step).expect("a token");
            let (piece, ends) = text.take(tokenizer, sampled.token, said.len() + 1, ending).expect("a text");
            counts.push(sampled.token);
            reason = ends;
            let logprob = sampled.logprob.expect("asked for").to_bits();
            said.push((sampled.token, logprob, bits(&sampled.top), piece));
            if reason.is_none() {
                last = rows(runner, &mut table, &[sampled.token], position);
            }
        }
        runner.release(table);
        answer.choices.insert(choice, (said, reason));
    }
    answer
}

/// The logits of all `tokens` from `start` on, in one step.
fn rows(runner: &mut Runner, table: &mut PageTable, tokens: &[u32], start: usize) -> Vec<f32> {
    runner.grow(table, start + tokens.len()).expect("pages");
    let mut batch = Batch::default();
    batch.add(tokens, start, table, |_| true);
    runner.step(&batch).expect("a step")
}

/// Reads an answer to its end.
fn read(mut ticket: Ticket) -> Result<Answer, Failure> {
    let mut answer = Answer::default();
    while let Some(event) = ticket.blocking_next() {
        match event {
            Event::Started { cached_tokens } => answer.cached_tokens = cached_tokens,
            Event::Prompt { start, logprobs } => {
                assert_eq!(start, answer.prompt.len() + 1);
                let said = logprobs.iter().map(|at| (at.token, at.logprob.to_bits(), bits(&at.top)));
                answer.prompt.extend(said);
            }
            Event::Token(piece) => {
                let logprob = piece.logprob.expect("asked for").to_bits();
                let said = (piece.token, logprob, bits(&piece.top), piece.text);
                answer.choices.entry(piece.choice).or_default().0.push(said);
            }
            Event::Finished { choice, reason, .. } => {
                answer.choices.entry(choice).or_default().1 = Some(reason);
            }
            Event::Failed(failure) => return Err(failure),
        }
    }
    Ok(answer)
}

fn submit(engine: &Engine, request: &GenerateRequest) -> Ticket {
    match engine.submit(request.clone()) {
        Ok(ticket) => ticket,
        Err(refusal) => panic!("refused: {refusal}"),
    }
}

/// All requests at once through an engine, in an order from `seed`; compared with what each gives alone.
fn compare(
    served: &Served,
    expected: &[(GenerateRequest, Answer)],
    (positions, limits): (usize, EngineLimits),
    seed: u64,
) -> LoadSnapshot {
    let what = format!("{}: {positions} positions, seed {seed}, {limits:?}", served.folder.display());
    let (engine, thread) = served.engine(positions, limits);
    let mut order: Vec<usize> = (0..expected.len()).collect();
    order.sort_by_key(|&at| hash(seed * 100 + at as u64));
    let tickets: Vec<(usize, Ticket)> =
        order.iter().map(|&at| (at, submit(&engine, &expected[at].0))).collect();
    for (at, ticket) in tickets {
        let answer = read(ticket).unwrap_or_else(|failure| panic!("{what}: request {at}: {failure}"));
        let answer = Answer { cached_tokens: 0, ..answer };
        assert!(answer == expected[at].1, "{what}: request {at}: {answer:?} {:?}", expected[at].1);
    }
    let load = at_rest(&engine);
    assert_eq!(load.pages_used, 0, "{what}: pages are lost");
    drop(engine);
    thread.join().expect("the engine's thread");
    load
}

/// The same, again where requests came so slowly, one after another, that they did not meet in the engine.
fn meet(
    served: &Served,
    expected: &[(GenerateRequest, Answer)],
    (positions, limits): (usize, EngineLimits),
    seed: u64,
    met: impl Fn(&LoadSnapshot) -> bool,
) {
    for _ in 0..MEETINGS {
        if met(&compare(served, expected, (positions, limits.clone()), seed)) {
            return;
        }
    }
    panic!("{}: {positions} positions, seed {seed}: they never met", served.folder.display());
}

/// The load once nobody is there.
fn at_rest(engine: &Engine) -> LoadSnapshot {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let load = engine.load();
        if load.running + load.waiting + load.queued_requests == 0 {
            return load;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("somebody is still there: {:?}", engine.load());
}

#[test]
fn a_request_gives_the_same_bytes_in_any_company() {
    for (folder, precision) in models() {
        let served = Served::of(folder, precision);
        let name = served.folder.display().to_string();
        let mut runner = served.runner(1024);
        let expected: Vec<(GenerateRequest, Answer)> = requests(&served)
            .into_iter()
            .map(|request| (request.clone(), alone(&served, &mut runner, &request)))
            .collect();
        let told = |rows_max, batch_max, logits_rows_max, prefix_cache| EngineLimits {
            rows_max,
            batch_max,
            logits_rows_max,
            prefix_cache,
            // Whoever is read last waits for all others, however long these take.
            stall_max: Duration::from_secs(24 * 3600),
            ..EngineLimits::default()
        };
        // Alone in its engine, and again with what it left in the cache.
        let (engine, thread) = served.engine(2048, told(512, 16, 64, true));
        for (at, (request, expected)) in expected.iter().enumerate() {
            for round in 0..2 {
                let answer = read(submit(&engine, request)).expect("an answer");
                let full = (request.prompt.len() - 1) / 64 * 64;
                let cached = if request.prompt_logprobs.is_some() { 0 } else { full };
                assert!(round == 0 || answer.cached_tokens == cached, "{name}: request {at} found {cached}");
                let answer = Answer { cached_tokens: 0, ..answer };
                assert!(answer == *expected, "{name}: request {at}, round {round}: {answer:?} {expected:?}");
            }
        }
        drop(engine);
        thread.join().expect("the engine's thread");
        // Together: in large and small chunks, with and without a cache, with few pages and with fewest.
        meet(&served, &expected, (4096, told(512, 16, 64, true)), 1, |load| load.prefix_hits > 0);
        compare(&served, &expected, (4096, told(16, 16, 64, false)), 2);
        compare(&served, &expected, (2048, told(23, 5, 3, true)), 3);
        meet(&served, &expected, (512, told(200, 16, 16, true)), 4, |load| load.preemptions > 0);
        // Clients that are read one after the other, so that most have to wait with little room for what they are sent.
        let slow = EngineLimits { events_max: 8, ..told(40, 8, 64, false) };
        compare(&served, &expected, (320, slow), 5);
        for seed in 6..8 {
            let dice = |n: u64, below: u64| (hash(seed * 10 + n) % below) as usize;
            let batch_max = 1 + dice(1, 16);
            let limits = told(batch_max + dice(2, 300), batch_max, 1 + dice(3, 64), seed % 3 > 0);
            compare(&served, &expected, (320 + 64 * dice(4, 20), limits), seed);
        }
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let served = Served::of(fixtures_folder().join("qwen3_moe_a"), Precision::F32);
    // Few events are kept for who does not read: no answer gets to its end before its client is gone.
    let limits = EngineLimits { events_max: 64, ..EngineLimits::default() };
    let (engine, thread) = served.engine(1024, limits);
    let requests = requests(&served);
    let mut refused = 0;
    for at in 0..1000u64 {
        let mut request = requests[at as usize % requests.len()].clone();
        request.max_tokens = None;
        let mut ticket = loop {
            match engine.submit(request.clone()) {
                Ok(ticket) => break ticket,
                Err(Refusal::QueueFull { .. }) => {
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(refusal) => panic!("{refusal}"),
            }
        };
        for _ in 0..hash(at) % 4 {
            let _ = ticket.blocking_next();
        }
    }
    let load = at_rest(&engine);
    assert_eq!(load.pages_used, 0, "{load:?} ({refused} times refused)");
    assert!(
        load.cancelled > 900 && load.cancelled + load.finished_stop + load.finished_length >= 1000,
        "{load:?}"
    );
    drop(engine);
    thread.join().expect("the engine's thread");
}
