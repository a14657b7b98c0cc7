//! Threads of one process: a queue each way. The twin that the others are held to, and what tests run on.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use super::channel::{Channel, ChannelError, Cut, ExchangeKind};
use super::frame::{FrameBody, FrameError, HEADER_BYTES, Header};

/// Frames that one direction holds.
const FRAMES_MAX: usize = 4;

/// Two ends; a body may have `body_max` bytes.
pub fn local_pair(body_max: u64) -> (LocalEnd, LocalEnd) {
    let there = Arc::new(Queue::default());
    let back = Arc::new(Queue::default());
    let end = |to: &Arc<Queue>, from: &Arc<Queue>| LocalEnd {
        to: to.clone(),
        from: from.clone(),
        body_max,
        cut: Cut::default(),
    };
    (end(&there, &back), end(&back, &there))
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    frames: VecDeque<([u8; HEADER_BYTES], Vec<u8>)>,
    /// Bodies to use again.
    spare: Vec<Vec<u8>>,
    closed: bool,
}

/// One end.
pub struct LocalEnd {
    to: Arc<Queue>,
    from: Arc<Queue>,
    body_max: u64,
    cut: Cut,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until `ready`; a closed queue is ready for nobody who finds it empty.
    fn wait_until<'a>(
        &'a self,
        deadline: Instant,
        cut: &Cut,
        ready: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'a, State>, ChannelError> {
        let mut state = self.lock();
        loop {
            if cut.is_cut() {
                return Err(ChannelError::Closed);
            }
            if ready(&state) {
                return Ok(state);
            }
            if state.closed {
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

    fn close(&self) {
        self.lock().closed = true;
        self.moved.notify_all();
    }
}

impl Channel for LocalEnd {
    fn send(&mut self, header: &Header, body: &[&[u8]], deadline: Instant) -> Result<(), ChannelError> {
        let bytes: usize = body.iter().map(|part| part.len()).sum();
        if bytes as u64 > self.body_max {
            return Err(FrameError::TooLarge { bytes: bytes as u64, max: self.body_max }.into());
        }
        let header = Header { body_bytes: bytes as u64, ..*header };
        let mut state = self
            .to
            .wait_until(deadline, &self.cut, |state| state.frames.len() < FRAMES_MAX && !state.closed)?;
        let mut copy = state.spare.pop().unwrap_or_default();
        copy.clear();
        body.iter().for_each(|part| copy.extend_from_slice(part));
        state.frames.push_back((header.to_bytes(), copy));
        drop(state);
        self.to.moved.notify_all();
        Ok(())
    }

    fn receive(&mut self, body: &mut FrameBody, deadline: Instant) -> Result<Header, ChannelError> {
        let mut state = self.from.wait_until(deadline, &self.cut, |state| !state.frames.is_empty())?;
        let Some((header, bytes)) = state.frames.pop_front() else { return Err(ChannelError::Closed) };
        body.resize(bytes.len()).copy_from_slice(&bytes);
        state.spare.push(bytes);
        drop(state);
        self.from.moved.notify_all();
        Ok(Header::from_bytes(&header, self.body_max)?)
    }

    fn kind(&self) -> ExchangeKind {
        ExchangeKind::Local
    }

    fn cut(&self) -> Cut {
        self.cut.clone()
    }
}

impl Drop for LocalEnd {
    fn drop(&mut self) {
        self.to.close();
        self.from.close();
    }
}
