//! A worker's channel, as the engine holds it: calls go out, and their replies are told apart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{
    Channel, ChannelError, ExchangeKind, FrameBody, FrameKind, Header, RowForm,
};
use gaterail_proto::{LayerId, WorkerId};

use super::stats::LinkStats;

/// Calls of one link that may be open: one for each micro-batch. More are left over from steps that were abandoned.
const OPEN_MAX: usize = 4;

/// A reply that takes longer than this is worth a word to control.
pub(super) const SLOW: Duration = Duration::from_millis(100);
/// What the last call counts of `Link::handing`.
const HANDING_NEW: f64 = 0.1;
/// The longest reason of a failure that is handed on.
const REASON_BYTES_MAX: usize = 1024;

/// Why there is no reply.
pub(super) enum NoReply {
    /// The worker does not hold the call's epoch.
    Aborted,
    Failed(String),
}

/// A worker's channel.
pub(super) struct Link {
    pub worker: WorkerId,
    /// Another one for every connection: a worker that came again has not got what was sent before.
    pub serial: u64,
    pub channel: Box<dyn Channel>,
    pub stats: Arc<LinkStats>,
    /// It failed: control was told, and knows better than this.
    pub broken: bool,
    /// Seconds that handing it a call takes, lately.
    handing: f64,
    /// In which form it takes the rows of a layer, as its last reply said.
    forms: Vec<RowForm>,
    /// Calls whose replies somebody waits for.
    open: Vec<u64>,
    /// Replies that came while another was waited for.
    early: Vec<(Header, FrameBody)>,
}

impl Link {
    pub fn new(worker: WorkerId, serial: u64, channel: Box<dyn Channel>, stats: Arc<LinkStats>) -> Link {
        Link {
            worker,
            serial,
            channel,
            stats,
            broken: false,
            handing: 0.0,
            forms: Vec::new(),
            open: Vec::new(),
            early: Vec::new(),
        }
    }

    /// Seconds that handing it a call takes, lately: long where it takes this thread's core over to begin. A worker of another
    /// host takes none; there it would only tell who has most rows, and those should go first if anything.
    pub fn handing(&self) -> f64 {
        match self.channel.kind() {
            ExchangeKind::SharedMemory => self.handing,
            ExchangeKind::Local | ExchangeKind::Grpc => 0.0,
        }
    }

    /// In which form its rows of a layer go out: in f32 until it has said something else, and where that has no more bytes.
    pub fn form(&self, layer: LayerId, width: usize) -> RowForm {
        let said = self.forms.get(layer.0 as usize).copied().unwrap_or_default();
        if said.row_bytes(width) < RowForm::F32.row_bytes(width) { said } else { RowForm::F32 }
    }

    /// Another plan may bring it weights that want their rows otherwise.
    pub fn forget_forms(&mut self) {
        self.forms.clear();
    }

    /// What a reply says of its layer.
    pub fn takes(&mut self, layer: LayerId, form: RowForm) {
        let layer = layer.0 as usize;
        if self.forms.len() <= layer {
            self.forms.resize(layer + 1, RowForm::F32);
        }
        self.forms[layer] = form;
    }

    /// A call went out; handing it over took so long.
    pub fn sent(&mut self, call: u64, took: Duration) {
        self.handing += (took.as_secs_f64() - self.handing) * HANDING_NEW;
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
    /// one's had to be sent again. `slow` is told when the wait takes long.
    pub fn receive(
        &mut self,
        body: &mut FrameBody,
        call: u64,
        deadline: Instant,
        slow: &mut dyn FnMut(),
    ) -> Result<Header, NoReply> {
        let header = match self.early.iter().position(|(header, _)| header.call == call) {
            Some(early) => {
                let (header, there) = self.early.swap_remove(early);
                *body = there;
                header
            }
            None => self.next(body, call, deadline, slow).map_err(NoReply::Failed)?,
        };
        self.close(call);
        match header.kind {
            FrameKind::Reply => Ok(header),
            FrameKind::Aborted => Err(NoReply::Aborted),
            FrameKind::Failed => {
                let why = &body.bytes()[..body.bytes().len().min(REASON_BYTES_MAX)];
                Err(NoReply::Failed(format!("it failed: {}", String::from_utf8_lossy(why))))
            }
            FrameKind::Call => Err(NoReply::Failed("it sent a call".to_string())),
        }
    }

    fn next(
        &mut self,
        body: &mut FrameBody,
        call: u64,
        deadline: Instant,
        slow: &mut dyn FnMut(),
    ) -> Result<Header, String> {
        let soon = Instant::now() + SLOW;
        let mut waits_long = false;
        loop {
            let until = if waits_long { deadline } else { soon.min(deadline) };
            let header = match self.channel.receive(body, until) {
                Ok(header) => header,
                Err(ChannelError::Deadline) if until < deadline => {
                    waits_long = true;
                    slow();
                    continue;
                }
                Err(ChannelError::Deadline) => return Err("it did not answer a call in time".to_string()),
                Err(error) => return Err(error.to_string()),
            };
            match header.call {
                answered if answered == call => return Ok(header),
                answered if answered > call => {
                    return Err(format!("it answered call {answered} before {call}"));
                }
                answered if self.open.contains(&answered) => {
                    self.early.push((header, std::mem::take(body)));
                }
                // Of an abandoned step; there are not many of those.
                _ if Instant::now() >= deadline => {
                    return Err("it answers calls that nobody waits for".to_string());
                }
                _ => {}
            }
        }
    }
}
