//! Frames out of pieces and into them.

use std::sync::Arc;
use std::time::Instant;

use super::super::channel::{Channel, ChannelError, Cut, ExchangeKind, REST_MAX};
use super::super::frame::{FrameBody, FrameError, HEADER_BYTES, Header};
use super::{Link, PIECE_BYTES_MAX};

/// An end of a gRPC stream. See [`super::answer`] and [`super::call`].
pub struct StreamEnd {
    link: Arc<Link>,
    body_max: u64,
    /// The piece at hand, and how much of it was read.
    piece: Vec<u8>,
    at: usize,
    /// Receiving failed in the middle of a frame.
    broken: bool,
    cut: Cut,
}

impl StreamEnd {
    pub(super) fn new(link: Arc<Link>, body_max: u64) -> StreamEnd {
        StreamEnd { link, body_max, piece: Vec::new(), at: 0, broken: false, cut: Cut::default() }
    }

    /// Fills `into` from the pieces that come.
    fn fill(&mut self, mut into: &mut [u8], begun: &mut bool, deadline: Instant) -> Result<(), ChannelError> {
        while !into.is_empty() {
            if self.at == self.piece.len() {
                self.piece = self.link.incoming.pop(deadline, &self.cut)?;
                self.at = 0;
            }
            let bytes = into.len().min(self.piece.len() - self.at);
            let (now, later) = into.split_at_mut(bytes);
            now.copy_from_slice(&self.piece[self.at..self.at + bytes]);
            self.at += bytes;
            *begun = true;
            into = later;
        }
        Ok(())
    }

    fn read(
        &mut self,
        body: &mut FrameBody,
        begun: &mut bool,
        deadline: Instant,
    ) -> Result<Header, ChannelError> {
        let mut header = [0; HEADER_BYTES];
        let (first, rest) = header.split_at_mut(1);
        self.fill(first, begun, deadline)?;
        let deadline = deadline.max(Instant::now() + REST_MAX);
        self.fill(rest, begun, deadline)?;
        let header = Header::from_bytes(&header, self.body_max)?;
        self.fill(body.resize(header.body_bytes as usize), begun, deadline)?;
        Ok(header)
    }
}

impl Channel for StreamEnd {
    fn send(&mut self, header: &Header, body: &[&[u8]], deadline: Instant) -> Result<(), ChannelError> {
        let bytes = body.iter().map(|part| part.len() as u64).sum();
        if bytes > self.body_max {
            return Err(FrameError::TooLarge { bytes, max: self.body_max }.into());
        }
        if self.broken {
            return Err(ChannelError::Closed);
        }
        let header = Header { body_bytes: bytes, ..*header };
        self.link.outgoing.push_frame(pieces(&header, body), deadline, &self.cut)
    }

    fn receive(&mut self, body: &mut FrameBody, deadline: Instant) -> Result<Header, ChannelError> {
        if self.broken || self.cut.is_cut() {
            return Err(ChannelError::Closed);
        }
        let mut begun = false;
        let received = self.read(body, &mut begun, deadline);
        self.broken = begun && received.is_err();
        received
    }

    fn kind(&self) -> ExchangeKind {
        ExchangeKind::Grpc
    }

    fn cut(&self) -> Cut {
        self.cut.clone()
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        self.link.incoming.abandon();
        self.link.outgoing.finish();
    }
}

/// A frame cut into messages.
fn pieces(header: &Header, body: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut left = HEADER_BYTES + header.body_bytes as usize;
    let mut piece = Vec::with_capacity(left.min(PIECE_BYTES_MAX));
    let mut pieces = Vec::with_capacity(left.div_ceil(PIECE_BYTES_MAX));
    for mut part in std::iter::once(&header.to_bytes()[..]).chain(body.iter().copied()) {
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(PIECE_BYTES_MAX - piece.len()));
            piece.extend_from_slice(now);
            (part, left) = (later, left - now.len());
            if piece.len() == PIECE_BYTES_MAX || left == 0 {
                let next = Vec::with_capacity(left.min(PIECE_BYTES_MAX));
                pieces.push(std::mem::replace(&mut piece, next));
            }
        }
    }
    pieces
}
