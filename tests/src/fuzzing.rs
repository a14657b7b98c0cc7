//! What the fuzz targets do with bytes from anywhere; also replayed with mutated seeds by an ordinary test.
//!
//! A reader may refuse, in bounded time and memory; it may not panic, and what it accepts must hold together.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use gaterail_cluster::exchange::{
    CallRows, CallX, Channel, FrameBody, FrameKind, HEADER_BYTES, Header, Waiting, create_shared, open_shared,
};
use gaterail_kernels::wire::{PieceShape, read_piece, write_piece};
use gaterail_kernels::{Arena, Bytes, Device, Isa, Weight};
use gaterail_model::arch::parse_spec;
use gaterail_model::checkpoint::{Checkpoint, parse_header, parse_index};
use gaterail_model::config::{Fields, GenerationDefaults};
use gaterail_model::gguf::GgufFile;
use gaterail_model::text::{ChatInput, ChatTemplate, Detokenizer, TextError, Tokenizer};
use gaterail_model::weights::cache::parse_cache;
use gaterail_model::weights::{account, check_tensors, expected_tensors};
use gaterail_router::openai::{
    ChatRequest, CompletionRequest, DetokenizeRequest, Generation, RequestLimits, ServerDefaults,
    TokenizeRequest,
};
use serde_json::json;

/// A safetensors file: accepted tensors lie in the file, in order, without overlap.
pub fn header(data: &[u8]) {
    let Ok(tensors) = parse_header(data) else { return };
    let mut end = 8;
    for tensor in &tensors {
        assert!(tensor.bytes.start >= end && tensor.bytes.end <= data.len(), "{tensor:?}");
        end = tensor.bytes.end;
    }
    assert!(tensors.is_empty() || end == data.len(), "bytes that belong to no tensor");
}

/// A GGUF file: accepted tensors lie in the file without overlap; specification, tokenizer and template may refuse.
pub fn gguf(data: &[u8]) {
    let Ok(file) = GgufFile::parse(Path::new("fuzzed.gguf"), Bytes::copied(data)) else { return };
    let mut end = 0;
    for tensor in file.tensors() {
        assert!(tensor.bytes.start >= end && tensor.bytes.end <= data.len(), "{tensor:?}");
        end = tensor.bytes.end;
    }
    if let Ok(spec) = file.spec() {
        assert!(spec.hidden > 0 && spec.vocab > 0 && !spec.layers.is_empty());
        let _ = check_tensors(&spec, &Checkpoint::of_gguf(&file));
    }
    let _ = Tokenizer::from_gguf(&file).map(|tokenizer| speak(&tokenizer));
    let _ = (ChatTemplate::from_gguf(&file), GenerationDefaults::from_gguf(&file));
}

/// A config.json: an accepted one has a table of tensors whose sizes can be counted.
pub fn config(data: &[u8]) {
    let Ok(fields) = Fields::parse(Path::new("config.json"), data) else { return };
    let Ok(spec) = parse_spec(&fields) else { return };
    assert!(spec.hidden > 0 && spec.vocab > 0 && !spec.layers.is_empty());
    assert!(!expected_tensors(&spec).is_empty());
    assert!(account(&spec, None).values().any(|share| share.parameters > 0));
}

/// An index of shards: accepted names lie in the folder.
pub fn index(data: &[u8]) {
    let Ok(places) = parse_index(data) else { return };
    assert!(places.values().all(|file| !file.contains(['/', '\\', '\0']) && file != ".." && file != "."));
}

/// The head of a file of packed weights: accepted entries lie in the file, in order, without overlap.
pub fn packed(data: &[u8]) {
    let Ok(index) = parse_cache(data, data.len() as u64) else { return };
    let mut end = 0;
    for entry in &index.entries {
        assert!(entry.offset >= end && entry.rows > 0 && entry.cols > 0, "{entry:?}");
        end = entry.offset + entry.bytes;
        assert!(end <= data.len() as u64, "{entry:?}");
    }
}

/// Which piece `piece` expects: a small one, so that bytes of all forms can be.
pub const PIECE: PieceShape = PieceShape { expert: 1, hidden: 64, run: 32, first: true, unit: 128 };

/// A piece of an expert: one that is accepted has the shape that was asked for, and is written to the same bytes again.
pub fn piece(data: &[u8]) {
    thread_local! {
        static CPU: Device = crate::device(Isa::Portable);
    }
    let read = CPU.with(|device| read_piece(data, &PIECE, device, &mut Arena::default()));
    let Ok(piece) = read else { return };
    let shape = |weight: &Weight| (weight.rows(), weight.cols());
    assert_eq!((shape(&piece.gate), shape(&piece.up), shape(&piece.down)), ((32, 64), (32, 64), (64, 32)));
    let mut again = Vec::new();
    write_piece(&piece, &mut |bytes| again.extend_from_slice(bytes));
    assert!(again == data, "another piece than was read");
}

/// A chat template, rendered over a conversation.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 27 + 58?"},
    ]);
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    let outcome = ChatTemplate::from_source("fuzzed", source, serde_json::Map::new())
        .and_then(|template| template.render(&input));
    assert!(!matches!(outcome, Err(TextError::TemplateCrashed { .. })), "{outcome:?}");
}

/// A tokenizer.json: an accepted one can be used, or says why not.
pub fn tokenizer(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes("fuzzed", data) else { return };
    speak(&tokenizer);
}

fn speak(tokenizer: &Tokenizer) {
    if let Ok(ids) = tokenizer.encode("Hello, wörld! 🦀 aa", true) {
        let _ = tokenizer.decode(&ids, true);
        let mut detokenizer = Detokenizer::new(true);
        let _ = ids.iter().try_for_each(|id| detokenizer.push(tokenizer, *id).map(drop));
        let _ = detokenizer.finish(tokenizer);
    }
}

/// A generation_config.json: its fields as they are read for sampling.
pub fn generation(data: &[u8]) {
    let Ok(fields) = Fields::parse(Path::new("generation_config.json"), data) else { return };
    for field in ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"] {
        if let Ok(Some(number)) = fields.number(field) {
            assert!(number.is_finite(), "{field}: {number}");
        }
    }
    let _ = (fields.flag_or("do_sample", false), fields.count_from("top_k", 0));
    let _ = (fields.counts("eos_token_id"), fields.count_from("eos_token_id", 0));
}

/// The body of a request: what is accepted is within its bounds, whatever endpoint it was sent to.
pub fn request(data: &[u8]) {
    let limits = RequestLimits::default();
    if let Ok(chat) = ChatRequest::parse(data, &limits) {
        assert!(chat.messages.as_array().is_some_and(|messages| !messages.is_empty()));
        assert!(chat.generation.max_tokens != Some(0));
        within_bounds(chat.generation, &limits);
    }
    if let Ok(completion) = CompletionRequest::parse(data, &limits) {
        assert!((1..=limits.prompts_max).contains(&completion.prompts.len()));
        within_bounds(completion.generation, &limits);
    }
    let _ = TokenizeRequest::parse(data, &limits);
    let _ = DetokenizeRequest::parse(data, &limits);
}

/// A frame from a peer: an accepted header is written as it was read, and a call's rows have the shape it says.
pub fn frame(data: &[u8]) {
    let Some((bytes, rest)) = data.split_first_chunk::<HEADER_BYTES>() else { return };
    let Ok(header) = Header::from_bytes(bytes, 1 << 20) else { return };
    assert!(header.body_bytes <= 1 << 20 && header.to_bytes() == *bytes, "{header:?}");
    let mut body = FrameBody::default();
    let length = rest.len().min(header.body_bytes as usize);
    body.resize(length).copy_from_slice(&rest[..length]);
    if let Ok(call) = CallRows::read(&header, body.bytes()) {
        let (rows, width, top_k) = (header.rows as usize, header.width as usize, header.top_k as usize);
        let in_groups = |group: Option<usize>| width.div_ceil(group.unwrap_or(width).max(1));
        let (x, scales) = match call.x {
            CallX::F32(x) => (4 * x.len(), 0),
            CallX::Int8 { codes, scales } => (codes.len(), scales.len()),
        };
        assert_eq!(header.kind, FrameKind::Call);
        assert_eq!(x + 4 * scales, rows * header.form.row_bytes(width), "{header:?}");
        assert!(scales == 0 || scales == rows * in_groups(header.form.group()), "{header:?}");
        assert!(call.ids.len() == rows * top_k && call.weights.len() == rows * top_k, "{header:?}");
    }
}

/// Memory that a hostile peer shares: its bytes come as runs (u16 place in words of 8, u8 length, bytes), some of them onto the
/// counters and some onto a frame that was sent.
pub fn shared_memory(data: &[u8]) {
    const MAX: u64 = 200_000;
    let (offer, mut router) = create_shared(MAX, 1, Waiting::asleep()).expect("memory");
    let mut worker = open_shared(&offer, MAX, Waiting::asleep()).expect("the same memory");
    let path = format!("/proc/{}/fd/{}", offer.pid, offer.fd);
    let memory = std::fs::OpenOptions::new().write(true).open(path).expect("the memory as a file");
    let header = Header::from_bytes(&frame_of(0), MAX).expect("a header");
    let mut body = FrameBody::default();
    let mut data = data;
    while let [low, high, length, rest @ ..] = data {
        let (run, later) = rest.split_at(rest.len().min(usize::from(*length)));
        data = later;
        let _ = worker.send(&header, &[run], Instant::now());
        memory
            .write_all_at(run, 8 * u64::from(u16::from_le_bytes([*low, *high])))
            .expect("within the memory");
        let _ = router.send(&header, &[run], Instant::now());
        if let Ok(header) = router.receive(&mut body, Instant::now()) {
            assert!(header.body_bytes == body.bytes().len() as u64 && header.body_bytes <= MAX);
        }
        let _ = worker.receive(&mut body, Instant::now());
    }
}

/// A header of a call without rows.
pub fn frame_of(body_bytes: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..5].copy_from_slice(b"GRX2\x01");
    bytes[48..56].copy_from_slice(&body_bytes.to_le_bytes());
    bytes
}

fn within_bounds(generation: Generation, limits: &RequestLimits) {
    assert!((1..=limits.choices_max).contains(&generation.choices));
    let mut params = generation.sampling.resolve(&ServerDefaults::default(), 0);
    // Ids are checked where the vocabulary is known.
    params.logit_bias.iter_mut().for_each(|(id, _)| *id = 0);
    params.stop_token_ids.fill(0);
    params.validate(1).expect("checked values");
}
