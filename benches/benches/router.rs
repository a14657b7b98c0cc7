//! What the router itself costs a token: schedule, sampling, text and events, with a model that computes nothing; and the
//! sampler alone. Vocabulary of 150,000, a byte-level tokenizer of that size. Time is that of the thread on its core, so
//! that a busy machine changes it little.
//!
//! `cargo bench -p gaterail-benches --bench router -- [rounds]`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use gaterail_benches::{Spread, row};
use gaterail_model::sampler::noise::uniform;
use gaterail_model::sampler::{SamplingParams, Step, TokenCounts, sample};
use gaterail_model::text::Tokenizer;
use gaterail_model::walk::{Batch, StepError};
use gaterail_router::admission::admit;
use gaterail_router::model::Model;
use gaterail_router::step::Core;
use gaterail_router::{EngineLimits, EngineParts, Event, GenerateRequest, ModelCard, RequestId, TenantId};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

const VOCAB: usize = 150_000;
const STREAMS: usize = 16;
const PROMPT: usize = 200;
const CONTEXT: usize = 4096;
const STEPS: usize = 50;
/// How far the likeliest token lies above the heap.
const PEAK: f32 = 16.0;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|text| text.parse().ok()).unwrap_or(20);
    let tokenizer = Arc::new(tokenizer());
    println!("vocabulary {VOCAB}, {STREAMS} streams, {rounds} rounds, medians (smallest to largest)\n");
    for (name, params) in cases() {
        let spread = Spread::of(rounds, || own_cost(&tokenizer, &params));
        println!("{}", row(&format!("router, {name}"), "us/token", &spread, ""));
    }
    let spread = Spread::of(rounds, || waiting_cost(&tokenizer));
    println!("{}", row("router, half decode greedily, half wait with known prompts", "us/step", &spread, ""));
    println!();
    for (shape, peak) in [("peaked", PEAK), ("flat", 0.0)] {
        let logits = logits(1, peak);
        for (name, params) in cases() {
            let mut position = 0;
            let spread = Spread::of(rounds * 50, || {
                position += 1;
                sampling(&logits, &params, position)
            });
            println!("{}", row(&format!("sampler, {shape}, {name}"), "us", &spread, ""));
        }
    }
}

fn cases() -> Vec<(&'static str, SamplingParams)> {
    let plain = SamplingParams { ignore_eos: true, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..plain.clone() };
    vec![
        ("greedy", greedy.clone()),
        ("greedy, logprobs 5", SamplingParams { logprobs: Some(5), ..greedy }),
        ("temperature 1", plain.clone()),
        ("top-p 0.9", SamplingParams { top_p: 0.9, ..plain.clone() }),
        ("top-k 50, top-p 0.9", SamplingParams { top_k: 50, top_p: 0.9, ..plain.clone() }),
        ("min-p 0.05", SamplingParams { min_p: 0.05, ..plain.clone() }),
        ("top-p 0.9, penalties", SamplingParams { top_p: 0.9, repetition_penalty: 1.1, ..plain }),
    ]
}

/// Microseconds of one sample. The copy that the sampler may change is made outside.
fn sampling(logits: &[f32], params: &SamplingParams, position: u64) -> f64 {
    let counts = TokenCounts::new(&(0..400).collect::<Vec<u32>>());
    let mut logits = logits.to_vec();
    let step = Step { counts: &counts, position, generated: 1, stop_ids: &[0] };
    let started = on_core();
    black_box(sample(&mut logits, params, &step).expect("a token"));
    (on_core() - started) as f64 / 1e3
}

fn core(tokenizer: &Arc<Tokenizer>, pages: usize) -> Core<Nothing> {
    let rows: Vec<f32> = (0..STREAMS as u64).flat_map(|seed| logits(seed, PEAK)).collect();
    let runner = Nothing { pages, logits: rows };
    let parts = EngineParts { runner, tokenizer: Some(tokenizer.clone()), stop_ids: vec![0] };
    Core::new(parts, limits())
}

fn limits() -> EngineLimits {
    EngineLimits { batch_max: STREAMS, rows_max: STREAMS * PROMPT, ..EngineLimits::default() }
}

/// A request joins those who wait.
fn ask(
    core: &mut Core<Nothing>,
    tokenizer: &Tokenizer,
    tenant: &str,
    prompt: Vec<u32>,
    params: SamplingParams,
) -> mpsc::Receiver<Event> {
    let card = ModelCard {
        architecture: String::new(),
        vocab: VOCAB,
        context: CONTEXT,
        kv_positions: STREAMS * CONTEXT,
        stop_ids: vec![0],
    };
    let request = GenerateRequest::new(RequestId("r".into()), TenantId(tenant.into()), prompt, params);
    let admitted = admit(request, &card, &limits(), Some(tokenizer));
    let (events, client) = mpsc::channel(256);
    core.accept(admitted.unwrap_or_else(|refusal| panic!("{refusal}")), Instant::now(), events);
    client
}

/// Microseconds a step of everything but the model, with half of the streams decoding and as many waiting for pages, whose
/// prompts of nearly the whole context are in the cache.
fn waiting_cost(tokenizer: &Arc<Tokenizer>) -> f64 {
    const KNOWN: usize = 3968;
    const HALF: usize = STREAMS / 2;
    // The known pages, two for everybody who runs, and too few beside for one more.
    let mut core = core(tokenizer, KNOWN / 64 + 2 * HALF + 1);
    let prompt = |own: usize| (0..KNOWN + own).map(|at| (at * 31 + 5) as u32 % VOCAB as u32).collect();
    let greedy = SamplingParams { ignore_eos: true, temperature: 0.0, ..SamplingParams::default() };
    let mut clients = vec![ask(&mut core, tokenizer, "a", prompt(1), greedy.clone())];
    (0..4).for_each(|_| _ = core.step(Instant::now()));
    clients.extend((1..HALF).map(|_| ask(&mut core, tokenizer, "a", prompt(1), greedy.clone())));
    core.step(Instant::now());
    clients.extend((0..HALF).map(|_| ask(&mut core, tokenizer, "a", prompt(100), greedy.clone())));
    let mut nanoseconds = 0;
    for _ in 0..STEPS {
        let started = on_core();
        core.step(Instant::now());
        nanoseconds += on_core() - started;
        clients.iter_mut().for_each(|client| while client.try_recv().is_ok() {});
    }
    let gauges = core.gauges();
    assert_eq!((gauges.running, gauges.waiting), (HALF, HALF));
    nanoseconds as f64 / 1e3 / STEPS as f64
}

/// Microseconds a token of everything but the model, with all streams decoding.
fn own_cost(tokenizer: &Arc<Tokenizer>, params: &SamplingParams) -> f64 {
    let mut core = core(tokenizer, STREAMS * CONTEXT / 64);
    let mut clients: Vec<mpsc::Receiver<Event>> = Vec::new();
    for stream in 0..STREAMS {
        let prompt = (0..PROMPT).map(|at| (at * 31 + stream * 977) as u32 % VOCAB as u32).collect();
        let params = SamplingParams { seed: stream as u64, ..params.clone() };
        clients.push(ask(&mut core, tokenizer, ["a", "b"][stream % 2], prompt, params));
    }
    core.step(Instant::now());
    let mut tokens = 0;
    let mut nanoseconds = 0;
    for _ in 0..STEPS {
        let started = on_core();
        core.step(Instant::now());
        nanoseconds += on_core() - started;
        for client in &mut clients {
            while let Ok(event) = client.try_recv() {
                tokens += usize::from(matches!(event, Event::Token(_)));
            }
        }
    }
    assert!(tokens >= STREAMS * STEPS, "{tokens} tokens");
    nanoseconds as f64 / 1e3 / (STREAMS * STEPS) as f64
}

/// Nanoseconds that this thread has run.
fn on_core() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Random logits: most in a wide heap, whose nucleus is tens of thousands of tokens, and 20 that lie `peak` above it and
/// less, as a language model's mostly do.
fn logits(seed: u64, peak: f32) -> Vec<f32> {
    let value = |id: u64| {
        let sum: f64 = (0..6).map(|part| uniform(seed, id * 8 + part, 0)).sum();
        ((sum - 3.0) * 3.0) as f32
    };
    let mut logits: Vec<f32> = (0..VOCAB as u64).map(value).collect();
    (0..20).for_each(|i| logits[(i * 7001 + 13) % VOCAB] += peak - peak * i as f32 / 30.0);
    logits
}

/// A model that has its logits ready.
struct Nothing {
    pages: usize,
    logits: Vec<f32>,
}

impl Model for Nothing {
    fn architecture(&self) -> &str {
        "Nothing"
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn rows_max(&self) -> usize {
        STREAMS * PROMPT
    }

    fn step(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        Ok(&mut self.logits[..batch.logits.len() * VOCAB])
    }
}

/// 256 bytes, then words of letters, as a byte-level `tokenizer.json`.
fn tokenizer() -> Tokenizer {
    let mut tokens = Map::new();
    let mut put = |piece: String| {
        let id = tokens.len();
        tokens.entry(piece).or_insert(id.into());
    };
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    for byte in 0..256 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        put(char::from_u32(code).map(String::from).unwrap_or_default());
    }
    for word in 0..VOCAB - 256 {
        let mut letters = String::from(if word % 2 == 0 { "Ġ" } else { "" });
        let mut rest = word + 700;
        while rest > 0 {
            letters.push((b'a' + (rest % 26) as u8) as char);
            rest /= 26;
        }
        put(letters);
    }
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": byte_level,
        "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": Value::Object(tokens), "merges": []},
    });
    Tokenizer::from_bytes("words", file.to_string().as_bytes()).expect("a tokenizer")
}
