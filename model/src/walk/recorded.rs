//! What the gates have chosen: an `ExpertLayer` around another, which notes where the rows go and changes nothing.

use std::time::Instant;

use gaterail_kernels::{Buffer, Stream};
use gaterail_proto::LayerId;

use super::seam::{ActRows, ExpertLayer, Routing, StepError};

/// The experts of one layer's rows in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub layer: LayerId,
    /// K
    pub top_k: usize,
    /// `[T, K]`, the rows as the batch has them.
    pub ids: Vec<u32>,
}

/// Hands everything on, and keeps the choices until they are taken. It reads buffers on the host: for measurements only.
pub struct Recorded<E> {
    inner: E,
    choices: Vec<Choice>,
}

impl<E> Recorded<E> {
    pub fn new(inner: E) -> Recorded<E> {
        Recorded { inner, choices: Vec::new() }
    }

    /// The choices since the last call, in the order of the layers.
    pub fn take(&mut self) -> Vec<Choice> {
        std::mem::take(&mut self.choices)
    }
}

impl<E: ExpertLayer> ExpertLayer for Recorded<E> {
    type Ticket = E::Ticket;

    fn dispatch(
        &mut self,
        layer: LayerId,
        rows: &ActRows<'_>,
        routing: &Routing<'_>,
        stream: &Stream,
    ) -> Result<E::Ticket, StepError> {
        let mut ids = vec![0; rows.rows * routing.top_k];
        stream.download(routing.ids, 0, &mut ids)?;
        self.choices.push(Choice { layer, top_k: routing.top_k, ids });
        self.inner.dispatch(layer, rows, routing, stream)
    }

    fn combine(
        &mut self,
        ticket: E::Ticket,
        out: &mut Buffer<f32>,
        stream: &Stream,
    ) -> Result<(), StepError> {
        self.inner.combine(ticket, out, stream)
    }

    fn finish(&mut self, deadline: Instant) -> Result<(), StepError> {
        self.inner.finish(deadline)
    }

    fn rest(&mut self) {
        self.inner.rest();
    }
}
