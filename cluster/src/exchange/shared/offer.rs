//! How two processes come to share memory: the router makes it and says where, the worker opens it and looks whether it is
//! what was meant.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};

use super::end::SharedEnd;
use super::layout::{BODY_MAX_AT, Layout, MAGIC, MAGIC_AT, NONCE_AT, OPEN, Side, VERSION, VERSION_AT};
use super::map::Map;
use super::waiting::Waiting;

/// What another process needs to find the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedOffer {
    /// Of the process that made it.
    pub pid: u32,
    /// Its number there.
    pub fd: u32,
    pub bytes: u64,
    pub nonce: u64,
}

/// Why memory could not be shared. Another exchange may do.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    #[error("{what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error("bodies of {0} bytes are too large for shared memory")]
    Body(u64),
    #[error("the memory is not what was offered: {0}")]
    Other(&'static str),
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> SharedError {
    move |source| SharedError::System { what, source }
}

/// Makes memory for bodies of up to `body_max` bytes: what to tell the worker, and the router's end. `nonce` is random.
pub fn create(body_max: u64, nonce: u64, waiting: Waiting) -> Result<(SharedOffer, SharedEnd), SharedError> {
    let layout = Layout::new(body_max).ok_or(SharedError::Body(body_max))?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("gaterail", flags)
        .map_err(|error| system("memory of a name of its own")(error.into()))?;
    ftruncate(&file, layout.bytes() as u64).map_err(|error| system("memory to share")(error.into()))?;
    // From now on it has this size: nobody can pull it away from under the other.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|error| system("sealing memory")(error.into()))?;
    let file = File::from(file);
    let map = Map::of(&file, layout.bytes()).map_err(system("mapping memory"))?;
    map.u64(NONCE_AT).store(nonce, Ordering::Relaxed);
    map.u64(BODY_MAX_AT).store(body_max, Ordering::Relaxed);
    map.u32(VERSION_AT).store(VERSION, Ordering::Relaxed);
    map.u32(Side::Router.pid_at()).store(std::process::id(), Ordering::Relaxed);
    map.u32(Side::Router.state_at()).store(OPEN, Ordering::Relaxed);
    map.u32(MAGIC_AT).store(MAGIC, Ordering::Release);
    let offer = SharedOffer {
        pid: std::process::id(),
        fd: file.as_raw_fd() as u32,
        bytes: layout.bytes() as u64,
        nonce,
    };
    Ok((offer, SharedEnd::new(file, map, layout, Side::Router, body_max, waiting)))
}

/// Opens what a router of this host has offered: the worker's end. `body_max` must be the router's.
pub fn open(offer: &SharedOffer, body_max: u64, waiting: Waiting) -> Result<SharedEnd, SharedError> {
    let layout = Layout::new(body_max).ok_or(SharedError::Body(body_max))?;
    if offer.bytes != layout.bytes() as u64 {
        return Err(SharedError::Other("its size"));
    }
    // Whatever lies there: opening it must not wait, nor make it this process's terminal.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(format!("/proc/{}/fd/{}", offer.pid, offer.fd))
        .map_err(system("opening the router's memory"))?;
    let metadata = file.metadata().map_err(system("the memory's size"))?;
    if !metadata.is_file() || metadata.len() != offer.bytes {
        return Err(SharedError::Other("its size"));
    }
    let seals = fcntl_get_seals(&file).map_err(|error| system("the memory's seals")(error.into()))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(SharedError::Other("it may shrink"));
    }
    let map = Map::of(&file, layout.bytes()).map_err(system("mapping the router's memory"))?;
    if map.u32(MAGIC_AT).load(Ordering::Acquire) != MAGIC {
        return Err(SharedError::Other("its magic number"));
    }
    if map.u32(VERSION_AT).load(Ordering::Relaxed) != VERSION {
        return Err(SharedError::Other("its layout"));
    }
    if map.u64(NONCE_AT).load(Ordering::Relaxed) != offer.nonce {
        return Err(SharedError::Other("its nonce"));
    }
    if map.u64(BODY_MAX_AT).load(Ordering::Relaxed) != body_max {
        return Err(SharedError::Other("the size of its bodies"));
    }
    let state = map.u32(Side::Worker.state_at());
    if state.load(Ordering::SeqCst) != 0 {
        return Err(SharedError::Other("somebody has opened it"));
    }
    map.u32(Side::Worker.pid_at()).store(std::process::id(), Ordering::SeqCst);
    if state.compare_exchange(0, OPEN, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return Err(SharedError::Other("somebody has opened it"));
    }
    Ok(SharedEnd::new(file, map, layout, Side::Worker, body_max, waiting))
}
