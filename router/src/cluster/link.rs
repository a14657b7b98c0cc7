//! A worker's channel, as the engine holds it: calls go out, and their replies are told apart.

use std::sync::Arc;
use std::time::Instant;

use gaterail_cluster::exchange::{Channel, ChannelError, FrameBody, FrameKind, Header};
use gaterail_proto::WorkerId;

use super::stats::LinkStats;

/// Calls of one link that may be open: one for each micro-batch. More are left over from steps that were abandoned.
const OPEN_MAX: usize = 4;

/// A worker's channel.
pub(super) struct Link {
    pub worker: WorkerId,
    pub channel: Box<dyn Channel>,
    pub stats: Arc<LinkStats>,
    /// It failed: control was told, and knows better than this.
    pub broken: bool,
    /// Calls whose replies somebody waits for.
    open: Vec<u64>,
    /// Replies that came while another was waited for.
    early: Vec<(Header, FrameBody)>,
}

impl Link {
    pub fn new(worker: WorkerId, channel: Box<dyn Channel>, stats: Arc<LinkStats>) -> Link {
        Link { worker, channel, stats, broken: false, open: Vec::new(), early: Vec::new() }
    }

    /// A call went out.
    pub fn sent(&mut self, call: u64) {
        if self.open.len() == OPEN_MAX {
            let forgotten = self.open.remove(0);
            self.early.retain(|(header, _)| header.call != forgotten);
        }
        self.open.push(call);
    }

    /// Nobody waits for this call's reply any more.
    pub fn close(&mut self, call: u64) {
        self.open.retain(|open| *open != call);
        self.early.retain(|(header, _)| header.call != call);
    }

    /// The reply to a call. Another micro-batch's is kept for it: its rows were sent before, and are looked for later, when this
    /// one's had to be sent again.
    pub fn receive(&mut self, body: &mut FrameBody, call: u64, deadline: Instant) -> Result<Header, String> {
        let header = match self.early.iter().position(|(header, _)| header.call == call) {
            Some(early) => {
                let (header, there) = self.early.swap_remove(early);
                *body = there;
                header
            }
            None => self.next(body, call, deadline)?,
        };
        self.close(call);
        match header.kind {
            FrameKind::Reply => Ok(header),
            FrameKind::Aborted => Err("it does not hold the plan's epoch".to_string()),
            FrameKind::Failed => Err(format!("it failed: {}", String::from_utf8_lossy(body.bytes()))),
            FrameKind::Call => Err("it sent a call".to_string()),
        }
    }

    fn next(&mut self, body: &mut FrameBody, call: u64, deadline: Instant) -> Result<Header, String> {
        loop {
            let header = self.channel.receive(body, deadline).map_err(|error| match error {
                ChannelError::Deadline => "it did not answer a call in time".to_string(),
                error => error.to_string(),
            })?;
            match header.call {
                answered if answered == call => return Ok(header),
                answered if answered > call => {
                    return Err(format!("it answered call {answered} before {call}"));
                }
                answered if self.open.contains(&answered) => {
                    self.early.push((header, std::mem::take(body)));
                }
                // Of an abandoned step.
                _ => {}
            }
        }
    }
}
