//! Pieces between a thread that blocks and a task that awaits: one writer, one reader, bounded in bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::Notify;

use super::super::channel::{ChannelError, Cut};
use super::super::frame::HEADER_BYTES;

/// What a piece takes at least, so that many tiny ones do not take much more memory than they count.
const PIECE_COST_MIN: usize = 1 << 10;
/// Room beside the two frames.
const SPARE_BYTES: usize = 64 << 10;

pub(super) struct Queue {
    state: Mutex<State>,
    /// Wakes the thread.
    moved: Condvar,
    /// Wakes the task.
    told: Notify,
    cost_max: usize,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Vec<u8>>,
    cost: usize,
    /// Nothing more is put.
    finished: bool,
}

fn cost(piece: &[u8]) -> usize {
    piece.len().max(PIECE_COST_MIN)
}

impl Queue {
    /// Holds two frames of the largest size.
    pub(super) fn new(body_max: u64) -> Queue {
        let cost_max = 2 * (body_max as usize + HEADER_BYTES + 2 * PIECE_COST_MIN) + SPARE_BYTES;
        Queue { state: Mutex::default(), moved: Condvar::new(), told: Notify::new(), cost_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The thread puts all pieces of a frame at once.
    pub(super) fn push_frame(
        &self,
        pieces: Vec<Vec<u8>>,
        deadline: Instant,
        cut: &Cut,
    ) -> Result<(), ChannelError> {
        let frame: usize = pieces.iter().map(|piece| cost(piece)).sum();
        let fits = |state: &State| !state.finished && state.cost + frame <= self.cost_max;
        let mut state = self.wait_until(deadline, cut, fits)?;
        state.cost += frame;
        state.pieces.extend(pieces);
        drop(state);
        self.told.notify_one();
        Ok(())
    }

    /// The thread takes the next piece.
    pub(super) fn pop(&self, deadline: Instant, cut: &Cut) -> Result<Vec<u8>, ChannelError> {
        let mut state = self.wait_until(deadline, cut, |state| !state.pieces.is_empty())?;
        let piece = state.take().ok_or(ChannelError::Closed)?;
        drop(state);
        self.told.notify_one();
        Ok(piece)
    }

    fn wait_until(
        &self,
        deadline: Instant,
        cut: &Cut,
        ready: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'_, State>, ChannelError> {
        let mut state = self.lock();
        loop {
            if cut.is_cut() {
                return Err(ChannelError::Closed);
            }
            if ready(&state) {
                return Ok(state);
            }
            if state.finished {
                return Err(ChannelError::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ChannelError::Deadline);
            }
            let wait = left.min(Cut::LATENCY_MAX);
            state = self.moved.wait_timeout(state, wait).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// The task puts a piece, when there is room. False: nobody wants it.
    pub(super) async fn push_async(&self, piece: Vec<u8>) -> bool {
        if piece.is_empty() {
            return !self.lock().finished;
        }
        loop {
            {
                let mut state = self.lock();
                if state.finished {
                    return false;
                }
                // A piece may be larger than all the room, as large as a message may be.
                if state.pieces.is_empty() || state.cost + cost(&piece) <= self.cost_max {
                    state.cost += cost(&piece);
                    state.pieces.push_back(piece);
                    break;
                }
            }
            // One task waits here; a notice that comes before it does is kept for it.
            self.told.notified().await;
        }
        self.moved.notify_one();
        true
    }

    /// The task takes the next piece; none: nothing more comes.
    pub(super) async fn pop_async(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut state = self.lock();
                let piece = state.take();
                if piece.is_some() || state.finished {
                    drop(state);
                    self.moved.notify_one();
                    return piece;
                }
            }
            self.told.notified().await;
        }
    }

    /// Nothing more is put; what is there can be taken.
    pub(super) fn finish(&self) {
        self.lock().finished = true;
        self.moved.notify_all();
        self.told.notify_one();
    }

    /// Nothing more is put nor taken.
    pub(super) fn abandon(&self) {
        {
            let mut state = self.lock();
            state.finished = true;
            state.pieces.clear();
            state.cost = 0;
        }
        self.moved.notify_all();
        self.told.notify_one();
    }
}

impl State {
    fn take(&mut self) -> Option<Vec<u8>> {
        let piece = self.pieces.pop_front()?;
        self.cost -= cost(&piece);
        Some(piece)
    }
}
