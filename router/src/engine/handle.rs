//! What callers hold of an engine. Clones share it; nothing here waits for a step.

use std::sync::{Arc, mpsc as threads};
use std::thread::JoinHandle;
use std::time::Instant;

use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_model::text::Tokenizer;
use gaterail_model::walk::Runner;
use tokio::sync::mpsc;

use super::inbox::{Ended, Entrant, Inbox, Submission};
use super::thread;
use crate::admission::admit;
use crate::api::{EngineLimits, Event, GenerateRequest, LoadSnapshot, ModelCard, Refusal, TenantId};
use crate::model::Model;
use crate::sequence::events_room;
use crate::step::Core;

/// What an engine is made of.
pub struct EngineParts<M = Runner> {
    pub runner: M,
    /// `None`: tokens have no text.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The model's own tokens that end an answer.
    pub stop_ids: Vec<u32>,
}

/// The engine's handle. When the last one is dropped the thread finishes what it has and ends.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: Arc<Inbox>,
    card: ModelCard,
    limits: EngineLimits,
    tokenizer: Option<Arc<Tokenizer>>,
}

/// A request that was accepted. Dropping it cancels: within one step its sequences are gone and their pages are free.
#[must_use]
#[derive(Debug)]
pub struct Ticket {
    events: mpsc::Receiver<Event>,
}

impl Engine {
    /// Starts the engine's thread and returns when `build` has made the parts there. They are made on that thread because
    /// the device that binds its threads to cores binds the one that makes it, too.
    pub fn start<M: Model + 'static, E: Send + 'static>(
        build: impl FnOnce() -> Result<EngineParts<M>, E> + Send + 'static,
        limits: EngineLimits,
    ) -> Result<(Engine, JoinHandle<()>), E> {
        let (made, when_made) = threads::sync_channel(1);
        let work = move || {
            let parts = match build() {
                Ok(parts) => parts,
                Err(error) => {
                    let _ = made.send(Err(error));
                    return;
                }
            };
            let shared = Shared::of(&parts, limits);
            let inbox = shared.inbox.clone();
            let core = Core::new(parts, shared.limits.clone());
            inbox.show(core.gauges(), Instant::now());
            // Without anybody who holds it an engine has nothing to do.
            if made.send(Ok(Engine { shared: Arc::new(shared) })).is_ok() {
                thread::run(core, &inbox);
            }
        };
        let builder = std::thread::Builder::new().name("engine".to_string());
        let thread = builder.spawn(work).expect("a thread for the engine: without one there is no server");
        match when_made.recv() {
            Ok(Ok(engine)) => Ok((engine, thread)),
            Ok(Err(error)) => Err(error),
            // Nothing was sent: `build` panicked, and so do we.
            Err(_) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => panic!("the engine's thread ended before it began"),
            },
        }
    }

    /// Whether a request with any prompt would be queued now. Asked before a text is read: who is refused costs nothing.
    pub fn has_room(&self, tenant: &TenantId, shares_queue: bool) -> Result<(), Refusal> {
        self.shared.inbox.has_room(Entrant { tenant, shares_queue, tokens: 0 }, &self.shared.limits)
    }

    /// Queues a request, or says why not. Takes time for the prompt's tokens, and none for the model.
    pub fn submit(&self, request: GenerateRequest) -> Result<Ticket, Refusal> {
        let Shared { inbox, card, limits, tokenizer } = &*self.shared;
        // Whoever cannot be queued anyway is told so before anything is done for it.
        inbox.has_room(Entrant::of(&request), limits)?;
        let arrived = Instant::now();
        let admitted = admit(request, card, limits, tokenizer.as_deref());
        let admitted = admitted.inspect_err(|_| inbox.count_refusal())?;
        let (events, receiver) = mpsc::channel(events_room(limits.events_max, admitted.request.n));
        inbox.put(Submission { admitted, arrived, events }, limits)?;
        Ok(Ticket { events: receiver })
    }

    pub fn model(&self) -> &ModelCard {
        &self.shared.card
    }

    pub fn limits(&self) -> &EngineLimits {
        &self.shared.limits
    }

    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.shared.tokenizer.as_ref()
    }

    /// How busy it is; takes no part of a step.
    pub fn load(&self) -> LoadSnapshot {
        self.shared.inbox.load(Instant::now())
    }

    /// Returns when the engine's thread has ended: after `Ended::Panicked` nothing will be answered any more, and whoever
    /// serves should end with an error. The engine is not built again: its device may be what failed.
    pub async fn ended(&self) -> Ended {
        self.shared.inbox.ended().await
    }

    /// Accepts nothing more. What runs and waits is finished until `deadline`, then failed; the thread ends when nothing
    /// is left. A second call can only bring the deadline nearer.
    pub fn drain(&self, deadline: Instant) {
        self.shared.inbox.drain(deadline);
    }
}

impl Shared {
    fn of<M: Model>(parts: &EngineParts<M>, limits: EngineLimits) -> Shared {
        let model = &parts.runner;
        let kv_positions = model.pages() * PAGE_POSITIONS;
        let context = model.context().min(limits.context_max.unwrap_or(usize::MAX)).min(kv_positions);
        Shared {
            inbox: Arc::new(Inbox::new(Instant::now())),
            card: ModelCard {
                architecture: model.architecture().to_string(),
                vocab: model.vocab(),
                context,
                kv_positions,
                stop_ids: parts.stop_ids.clone(),
            },
            // Everybody who decodes has a row in every step.
            limits: EngineLimits {
                batch_max: limits.batch_max.clamp(1, limits.rows_max.clamp(1, model.rows_max())),
                ..limits
            },
            tokenizer: parts.tokenizer.clone(),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inbox.abandon();
    }
}

impl Ticket {
    /// The next event; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The same for a thread that may wait.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}
