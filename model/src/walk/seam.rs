//! The seam: rows go to their experts and come home. And the walk, which moves cursors through the layers.

use std::time::Instant;

use gaterail_kernels::{Buffer, KernelError, Stream};
use gaterail_proto::LayerId;

use super::cursor::Cursor;
use super::lane::Lane;

/// Activations of one layer on their way to the experts.
#[derive(Clone, Copy)]
pub struct ActRows<'a> {
    /// `[rows, width]` f32
    pub x: &'a Buffer<f32>,
    /// T
    pub rows: usize,
    /// H
    pub width: usize,
}

/// Which experts each row goes to.
#[derive(Clone, Copy)]
pub struct Routing<'a> {
    /// `[T, K]`
    pub ids: &'a Buffer<u32>,
    /// `[T, K]`
    pub weights: &'a Buffer<f32>,
    /// K
    pub top_k: usize,
}

/// Why a step could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("token {token} lies outside the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    /// Whoever holds the experts is gone, and nobody came in their place while one may wait.
    #[error("experts: {0}")]
    Experts(String),
}

/// Sends the rows of one layer to their experts, and brings them home.
///
/// What a row yields depends on the row and its routing alone. Several tickets may be open at once. When a step fails,
/// `walk` returns the error at once: tickets that are open are dropped, and `finish` is not called. Whoever goes on begins
/// the step anew, so that an implementation drops what it still holds of an abandoned step at the next `dispatch`.
pub trait ExpertLayer {
    /// Rows that are on their way.
    type Ticket;

    /// Queues the rows of `layer`.
    fn dispatch(
        &mut self,
        layer: LayerId,
        rows: &ActRows<'_>,
        routing: &Routing<'_>,
        stream: &Stream,
    ) -> Result<Self::Ticket, StepError>;

    /// Writes the weighted sums `[T, H]` to the front of `out`.
    fn combine(
        &mut self,
        ticket: Self::Ticket,
        out: &mut Buffer<f32>,
        stream: &Stream,
    ) -> Result<(), StepError>;

    /// Waits for all that is queued; failures of queued work come to light here.
    fn finish(&mut self, deadline: Instant) -> Result<(), StepError>;

    /// Nothing is to be computed for now: what is not needed any more may go.
    fn rest(&mut self) {}
}

/// Moves all cursors through all layers, taking turns: while the rows of one are with the experts, the others compute.
///
/// One cursor is the plain forward pass; one per lane is data-parallel attention; two on a lane are two micro-batches.
pub fn walk<E: ExpertLayer>(
    lanes: &mut [Lane],
    cursors: &mut [Cursor],
    experts: &mut E,
    deadline: Instant,
) -> Result<(), StepError> {
    let mut open: Vec<Option<E::Ticket>> = cursors.iter().map(|_| None).collect();
    while cursors.iter().any(|cursor| !cursor.is_done()) {
        for (cursor, open) in cursors.iter_mut().zip(&mut open) {
            let lane = &mut lanes[cursor.lane().0];
            if let Some(ticket) = open.take() {
                experts.combine(ticket, cursor.combined(), lane.stream())?;
                cursor.after_combine(lane);
            }
            if let Some(layer) = cursor.until_dispatch(lane)? {
                let (rows, routing) = cursor.outgoing(lane);
                *open = Some(experts.dispatch(layer, &rows, &routing, lane.stream())?);
                cursor.while_away(lane);
            }
        }
    }
    experts.finish(deadline)
}
