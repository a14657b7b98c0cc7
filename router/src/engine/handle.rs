//! What callers hold of an engine. Clones share it; nothing here waits for a step.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use gaterail_model::text::Tokenizer;
use gaterail_model::walk::Runner;
use tokio::sync::mpsc;

use crate::api::{EngineLimits, Event, GenerateRequest, LoadSnapshot, ModelCard, Refusal};

/// What an engine is made of.
pub struct EngineParts {
    pub runner: Runner,
    /// `None`: tokens have no text.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The model's own tokens that end an answer.
    pub stop_ids: Vec<u32>,
}

/// The engine's handle.
#[derive(Clone)]
pub struct Engine {
    card: Arc<ModelCard>,
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
    pub fn start<E: Send + 'static>(
        build: impl FnOnce() -> Result<EngineParts, E> + Send + 'static,
        limits: EngineLimits,
    ) -> Result<(Engine, JoinHandle<()>), E> {
        let _ = (build, limits);
        panic!("the step loop follows")
    }

    /// Queues a request, or says why not.
    pub fn submit(&self, request: GenerateRequest) -> Result<Ticket, Refusal> {
        let _ = request;
        Err(Refusal::Stopped)
    }

    pub fn model(&self) -> &ModelCard {
        &self.card
    }

    /// How busy it is; takes no part of a step.
    pub fn load(&self) -> LoadSnapshot {
        LoadSnapshot::default()
    }

    /// Accepts nothing more. What runs and waits is finished until `deadline`, then failed; the thread ends when nothing
    /// is left. A second call can only bring the deadline nearer.
    pub fn drain(&self, deadline: Instant) {
        let _ = deadline;
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
