//! One end of shared memory, as a `Channel`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::channel::{Channel, ChannelError, Cut, ExchangeKind, REST_MAX};
use super::super::frame::{FrameBody, FrameError, HEADER_BYTES, Header};
use super::layout::{CLOSED, INLINE_MAX, Layout, OPEN, Side};
use super::map::Map;
use super::ring::{RingReader, RingWriter};
use super::waiting::Waiting;

/// What is moved before the other side is told: it copies on while this one does.
const PIECE: usize = 64 << 10;
/// Frames begin at multiples of this in their ring.
const ALIGN: usize = 64;

/// An end of memory that two processes share. See [`super::create`] and [`super::open`].
pub struct SharedEnd {
    send: Lane<RingWriter>,
    receive: Lane<RingReader>,
    body_max: u64,
    /// Something failed in the middle of a frame: what follows would not be read rightly.
    broken: bool,
    link: Link,
    /// Keeps the number alive under which the other process opens the memory.
    _file: File,
}

struct Lane<T> {
    frames: T,
    bulk: T,
}

/// Everything about the connection but its bytes.
struct Link {
    map: Arc<Map>,
    side: Side,
    waiting: Waiting,
    cut: Cut,
    peer: Peer,
}

/// The process on the other side.
enum Peer {
    /// It has not opened the memory.
    Unknown,
    /// Readable when it is dead.
    Watched(OwnedFd),
    /// It is not to be seen from here; its death must be learnt elsewhere.
    Unseen,
}

impl SharedEnd {
    pub(super) fn new(
        file: File,
        map: Map,
        layout: Layout,
        side: Side,
        body_max: u64,
        waiting: Waiting,
    ) -> SharedEnd {
        let map = Arc::new(map);
        let (ours, theirs) = (layout.lane(side), layout.lane(side.other()));
        let writer = |place| RingWriter::new(&map, place);
        let reader = |place| RingReader::new(&map, place);
        SharedEnd {
            send: Lane { frames: writer(ours.frames), bulk: writer(ours.bulk) },
            receive: Lane { frames: reader(theirs.frames), bulk: reader(theirs.bulk) },
            body_max,
            broken: false,
            link: Link { map, side, waiting, cut: Cut::default(), peer: Peer::Unknown },
            _file: file,
        }
    }

    /// How this end waits from now on.
    pub fn set_waiting(&mut self, waiting: Waiting) {
        self.link.waiting = waiting;
    }

    /// The other process's number, once it has opened the memory; it is what that process says.
    pub fn peer_pid(&self) -> Option<u32> {
        let pid = self.link.map.u32(self.link.side.other().pid_at()).load(Ordering::SeqCst);
        (pid != 0).then_some(pid)
    }

    fn write(
        &mut self,
        header: &Header,
        body: &[&[u8]],
        begun: &mut bool,
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        let Lane { frames, bulk } = &mut self.send;
        let bytes = header.body_bytes as usize;
        let inline = if bytes <= INLINE_MAX { bytes.next_multiple_of(ALIGN) } else { 0 };
        self.link.wait_for_room(frames, HEADER_BYTES + inline, deadline)?;
        frames.put(&header.to_bytes());
        *begun = true;
        if bytes <= INLINE_MAX {
            body.iter().for_each(|part| frames.put(part));
            frames.skip(inline - bytes);
            frames.publish();
            return Ok(());
        }
        // Who looks, on a core of its own, takes pieces as they come. Who sleeps is woken when there is no more to wait for: on
        // this core it would take it over after the first piece, only to wait for the next.
        frames.reveal();
        let mut is_woken = false;
        for piece in body.iter().flat_map(|part| part.chunks(PIECE)) {
            if !is_woken && !bulk.has_room(piece.len())? {
                frames.wake_reader();
                bulk.wake_reader();
                is_woken = true;
            }
            self.link.wait_for_room(bulk, piece.len(), deadline)?;
            bulk.put(piece);
            if bulk.unpublished() >= PIECE {
                if is_woken { bulk.publish() } else { bulk.reveal() }
            }
        }
        bulk.publish();
        frames.wake_reader();
        Ok(())
    }

    fn read(
        &mut self,
        body: &mut FrameBody,
        begun: &mut bool,
        deadline: Instant,
    ) -> Result<Header, ChannelError> {
        let Lane { frames, bulk } = &mut self.receive;
        self.link.wait_for_bytes(frames, HEADER_BYTES, deadline)?;
        *begun = true;
        let mut header = [0; HEADER_BYTES];
        frames.take(&mut header);
        let deadline = deadline.max(Instant::now() + REST_MAX);
        let header = Header::from_bytes(&header, self.body_max)?;
        let bytes = header.body_bytes as usize;
        let mut left = body.resize(bytes);
        if bytes <= INLINE_MAX {
            let inline = bytes.next_multiple_of(ALIGN);
            self.link.wait_for_bytes(frames, inline, deadline)?;
            frames.take(left);
            frames.pass(inline - bytes);
            frames.release();
            return Ok(header);
        }
        frames.release();
        while !left.is_empty() {
            let there = self.link.wait_for_bytes(bulk, 1, deadline)?;
            let (piece, rest) = left.split_at_mut(there.min(left.len()).min(PIECE));
            bulk.take(piece);
            left = rest;
            if bulk.unreleased() >= PIECE {
                bulk.release();
            }
        }
        if bulk.unreleased() > 0 {
            bulk.release();
        }
        Ok(header)
    }
}

impl Channel for SharedEnd {
    fn send(&mut self, header: &Header, body: &[&[u8]], deadline: Instant) -> Result<(), ChannelError> {
        let bytes = body.iter().map(|part| part.len() as u64).sum();
        if bytes > self.body_max {
            return Err(FrameError::TooLarge { bytes, max: self.body_max }.into());
        }
        if self.broken || self.link.closed() {
            return Err(ChannelError::Closed);
        }
        let mut begun = false;
        let sent = self.write(&Header { body_bytes: bytes, ..*header }, body, &mut begun, deadline);
        self.broken |= begun && sent.is_err();
        sent
    }

    fn receive(&mut self, body: &mut FrameBody, deadline: Instant) -> Result<Header, ChannelError> {
        if self.broken {
            return Err(ChannelError::Closed);
        }
        let mut begun = false;
        let received = self.read(body, &mut begun, deadline);
        self.broken |= begun && received.is_err();
        received
    }

    fn kind(&self) -> ExchangeKind {
        ExchangeKind::SharedMemory
    }

    fn cut(&self) -> Cut {
        self.link.cut.clone()
    }
}

impl Drop for SharedEnd {
    fn drop(&mut self) {
        let Link { map, side, .. } = &self.link;
        map.u32(side.state_at()).store(CLOSED, Ordering::SeqCst);
        self.send.frames.wake_reader();
        self.receive.frames.wake_writer();
    }
}

impl Link {
    fn wait_for_room(
        &mut self,
        ring: &mut RingWriter,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        if ring.has_room(bytes)? {
            return self.unless_cut();
        }
        if ring.unpublished() > 0 {
            ring.publish();
        }
        let sleeps = ring.sleeps();
        self.wait(sleeps, deadline, || Ok(ring.has_room(bytes)?))
    }

    /// How many bytes can be taken, once they are at least `wanted`.
    fn wait_for_bytes(
        &mut self,
        ring: &mut RingReader,
        wanted: usize,
        deadline: Instant,
    ) -> Result<usize, ChannelError> {
        let there = ring.available(wanted)?;
        if there >= wanted {
            return self.unless_cut().map(|()| there);
        }
        if ring.unreleased() > 0 {
            ring.release();
        }
        let sleeps = ring.sleeps();
        self.wait(sleeps, deadline, || Ok(ring.available(wanted)? >= wanted))?;
        Ok(ring.available(wanted)?)
    }

    fn unless_cut(&self) -> Result<(), ChannelError> {
        if self.cut.is_cut() { Err(ChannelError::Closed) } else { Ok(()) }
    }

    fn wait(
        &mut self,
        sleeps: usize,
        deadline: Instant,
        ready: impl FnMut() -> Result<bool, ChannelError>,
    ) -> Result<(), ChannelError> {
        let Link { map, side, waiting, cut, peer } = self;
        let state = map.u32(side.other().state_at());
        let pid = map.u32(side.other().pid_at());
        let gone = || state.load(Ordering::SeqCst) == CLOSED || peer.is_dead(state, pid);
        waiting.until(map.u32(sleeps), deadline, cut, gone, ready)
    }

    fn closed(&self) -> bool {
        self.cut.is_cut() || self.map.u32(self.side.other().state_at()).load(Ordering::SeqCst) == CLOSED
    }
}

impl Peer {
    /// Whether the other process has ended without closing its end.
    fn is_dead(&mut self, state: &AtomicU32, pid: &AtomicU32) -> bool {
        if matches!(self, Peer::Unknown) && state.load(Ordering::SeqCst) == OPEN {
            let pid = i32::try_from(pid.load(Ordering::SeqCst)).ok().and_then(Pid::from_raw);
            let watched = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            *self = watched.map_or(Peer::Unseen, Peer::Watched);
        }
        let Peer::Watched(process) = self else { return false };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)), Ok(1..))
    }
}
