//! A core with its clients.

use tokio::sync::mpsc;

use super::twin::{Answer, Twin, VOCAB, alone};
use super::*;
use crate::admission::admit;
use crate::engine::EngineParts;
use crate::sequence::events_room;

/// What came of a request.
pub(super) struct Client {
    pub(super) request: GenerateRequest,
    pub(super) events: Option<mpsc::Receiver<Event>>,
    pub(super) answer: Answer,
    pub(super) failure: Option<Failure>,
    pub(super) started: usize,
}

impl Client {
    pub(super) fn take(&mut self, most: usize) {
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

pub(super) struct House {
    pub(super) core: Core<Twin>,
    pub(super) clients: Vec<Client>,
    pub(super) context: usize,
    pub(super) now: Instant,
}

impl House {
    pub(super) fn new(pages: usize, limits: EngineLimits, rows_max: usize) -> House {
        let kv = vec![0; pages * PAGE_POSITIONS];
        let runner =
            Twin { kv, rows_max, logits: Vec::new(), failing: Vec::new(), steps: 0, rows: 0, below: (0, 0) };
        let parts = EngineParts { runner, tokenizer: None, stop_ids: vec![STOP] };
        let core = Core::new(parts, limits);
        House { core, clients: Vec::new(), context: pages * PAGE_POSITIONS, now: Instant::now() }
    }

    pub(super) fn ask(&mut self, request: GenerateRequest) -> usize {
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

    pub(super) fn step(&mut self) -> Outcome {
        self.now += Duration::from_millis(1);
        let outcome = self.core.step(self.now);
        self.core.audit().unwrap();
        outcome
    }

    pub(super) fn finish(&mut self) {
        for round in 0.. {
            let outcome = self.step();
            self.clients.iter_mut().for_each(|client| client.take(usize::MAX));
            if outcome == Outcome::Empty {
                break;
            }
            assert!(round < 20_000, "it does not end: {:?}", self.core.view().view);
        }
        assert_eq!(self.core.pages.available(), self.core.pages.total());
    }

    pub(super) fn check(&self, client: usize) {
        let Client { request, answer, failure, started, .. } = &self.clients[client];
        assert_eq!((failure, *started), (&None, 1), "client {client}");
        assert_eq!(*answer, alone(request, self.context), "client {client}: {request:?}");
    }
}

pub(super) fn plain(tenant: &str, prompt: usize, max_tokens: usize) -> GenerateRequest {
    let params = SamplingParams { ignore_eos: true, seed: prompt as u64, ..SamplingParams::default() };
    let tenant = TenantId(tenant.into());
    let prompt = (0..prompt).map(|at| (mix(at as u64, prompt as u64) % 30) as u32 + 2).collect();
    let mut request = GenerateRequest::new(RequestId("r".into()), tenant, prompt, params);
    request.max_tokens = Some(max_tokens);
    request
}

/// `prompt` tokens like those of `of`, and more.
pub(super) fn longer(of: &GenerateRequest, more: usize) -> GenerateRequest {
    let mut request = of.clone();
    request.prompt.extend((0..more).map(|at| (mix(at as u64, 5) % 30) as u32 + 2));
    request
}
