//! How an end waits: it looks again and again for a while, offers its core between two looks, and sleeps in the end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use super::super::channel::{ChannelError, Cut};

/// How long an end waits in which way.
///
/// Offering the core (`sched_yield`) costs a system call where nobody wants it, and where the other process does want it hands
/// the core over faster than sleeping would. Only looking (`spin`) takes the core from whoever shares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Only looking.
    pub spin: Duration,
    /// Then looking, and offering the core after every look.
    pub yields: Duration,
}

impl Waiting {
    /// As long as the threads of a step wait for each other: who is still here when the next step comes need not be woken.
    pub const YIELDS: Duration = Duration::from_millis(1);
    /// Longer than a neighbour that spins needs for its answer, shorter than anybody notices.
    pub const SPIN: Duration = Duration::from_micros(20);

    /// For `waiting` threads of this host, over all processes, that may wait at once. Where each has a core of its own it
    /// may spin.
    pub fn of(cores: usize, waiting: usize) -> Waiting {
        let spin = if waiting <= cores { Waiting::SPIN } else { Duration::ZERO };
        Waiting { spin, yields: Waiting::YIELDS }
    }

    /// Sleeps at once.
    pub const fn asleep() -> Waiting {
        Waiting { spin: Duration::ZERO, yields: Duration::ZERO }
    }
}

/// Shares cores: that is never wrong.
impl Default for Waiting {
    fn default() -> Waiting {
        Waiting { spin: Duration::ZERO, yields: Waiting::YIELDS }
    }
}

/// Looks between two questions for the time.
const LOOKS: u32 = 32;

impl Waiting {
    /// Waits until `ready`. `gone` says whether nobody is left who could bring that about; what came before counts.
    pub(super) fn until(
        self,
        sleeps: &AtomicU32,
        deadline: Instant,
        cut: &Cut,
        mut gone: impl FnMut() -> bool,
        mut ready: impl FnMut() -> Result<bool, ChannelError>,
    ) -> Result<(), ChannelError> {
        if cut.is_cut() {
            return Err(ChannelError::Closed);
        }
        if ready()? {
            return Ok(());
        }
        let start = Instant::now();
        let mut now = start;
        while now < deadline && now < start + self.spin + self.yields {
            for _ in 0..LOOKS {
                if ready()? {
                    return Ok(());
                }
                if now < start + self.spin {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                    break;
                }
            }
            if cut.is_cut() {
                return Err(ChannelError::Closed);
            }
            now = Instant::now();
        }
        loop {
            // In this order: what the other side did before it went is still seen.
            let gone = gone();
            if sleep_unless(sleeps, deadline, || Ok(cut.is_cut() || gone || ready()?))? {
                continue;
            }
            return match (cut.is_cut(), ready()?) {
                (false, true) => Ok(()),
                (false, false) if !gone => Err(ChannelError::Deadline),
                _ => Err(ChannelError::Closed),
            };
        }
    }
}

/// Announces that this side sleeps, looks once more, and sleeps for `Cut::LATENCY_MAX` at most. False: there was no reason to
/// sleep, or no time.
fn sleep_unless(
    sleeps: &AtomicU32,
    deadline: Instant,
    mut awake: impl FnMut() -> Result<bool, ChannelError>,
) -> Result<bool, ChannelError> {
    let left = deadline.saturating_duration_since(Instant::now());
    sleeps.store(1, Ordering::SeqCst);
    let slept = match awake() {
        Ok(false) if !left.is_zero() => {
            let slice = left.min(Cut::LATENCY_MAX);
            let slice = futex::Timespec { tv_sec: 0, tv_nsec: slice.as_nanos() as futex::Nsecs };
            // Woken, interrupted, late, or no reason to sleep: whoever waits looks again.
            let _ = futex::wait(sleeps, futex::Flags::empty(), 1, Some(&slice));
            Ok(true)
        }
        Ok(_) => Ok(false),
        Err(error) => Err(error),
    };
    sleeps.store(0, Ordering::SeqCst);
    slept
}
