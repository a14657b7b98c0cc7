//! The CPU's own threads: started once, they split an operation into parts and meet again at its end.
//!
//! Every thread has a run of parts, which it takes in ascending order: what follows each other in memory is read by one thread,
//! for two that take turns lose a microsecond at every jump (notes/2026-11-20-roof.md). Who is done takes the others' last parts, so
//! that an uneven split evens out. Between operations a thread spins, then
//! spins with its core on offer to others, then sleeps; the caller works along. Small operations should ask for one part: that runs on the
//! caller and wakes nobody.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread only spins, and how long it then goes on while it offers its core to others. Waking a thread costs
/// tens of microseconds, so that a thread must not fall asleep between two operations of one step.
const SPIN: Duration = Duration::from_micros(30);
const YIELD: Duration = Duration::from_millis(1);
/// How often the caller looks for the last worker before it offers its core to others.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// A pool of threads; `threads` includes the one that calls `run`.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One operation at a time.
    turn: Mutex<()>,
}

/// The operation at hand.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
}

struct Shared {
    /// Written by `run` while no worker is inside a job, read by workers after `epoch` moved.
    job: std::cell::UnsafeCell<Option<Job>>,
    /// Counts jobs; workers wait for it to move.
    epoch: AtomicUsize,
    /// The parts that each thread still has, as `first << 32 | end`.
    parts: Vec<Parts>,
    /// Workers still inside the job.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is only written between jobs (busy == 0, under `turn`) and only read inside one, ordered by `epoch`.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer inside `job` is used only while `run` keeps the closure alive.
unsafe impl Send for Shared {}

/// On a cache line of its own.
#[repr(align(64))]
struct Parts(AtomicU64);

impl Parts {
    /// The first or the last part that is left.
    fn claim(&self, first: bool) -> Option<u64> {
        let mut left = self.0.load(Ordering::Relaxed);
        loop {
            let (start, end) = (left >> 32, left & u64::from(u32::MAX));
            if start >= end {
                return None;
            }
            let (part, then) = if first { (start, (start + 1) << 32 | end) } else { (end - 1, left - 1) };
            match self.0.compare_exchange_weak(left, then, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(part),
                Err(now) => left = now,
            }
        }
    }
}

impl Pool {
    /// Starts `threads - 1` workers; with `pin`, thread i is bound to the i-th core this process may use, the caller
    /// included.
    pub fn new(threads: usize, pin: bool) -> std::io::Result<Pool> {
        assert!(threads >= 1, "a pool needs a thread");
        // A thread inherits its parent's binding, so that the cores are listed before anything is bound.
        let cores = if pin { allowed_cores() } else { Vec::new() };
        let core_of = |index: usize| cores.get(index % cores.len().max(1)).copied();
        let shared = Arc::new(Shared {
            job: std::cell::UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            parts: (0..threads).map(|_| Parts(AtomicU64::new(0))).collect(),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads {
            let (shared, core) = (pool.shared.clone(), core_of(index));
            let worker = move || {
                if let Some(core) = core {
                    bind_to_core(core);
                }
                shared.work(index);
            };
            // Workers that have been started stop when the pool is dropped.
            pool.workers.push(std::thread::Builder::new().name(format!("kernel-{index}")).spawn(worker)?);
        }
        if let Some(core) = core_of(0) {
            bind_to_core(core);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(part)` once for every part below `parts`, on all threads, and returns when all are done. A task must
    /// not run another operation on the same pool: that would wait for itself.
    pub fn run(&self, parts: usize, task: &(dyn Fn(usize) + Sync)) {
        if parts <= 1 || self.workers.is_empty() {
            (0..parts).for_each(task);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: only the lifetime is erased; `run` does not return before every worker has left the job.
        let task: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let job = Job { task };
        // SAFETY: no worker is inside a job here (busy was 0 when the last run returned), and `turn` is held.
        unsafe { *self.shared.job.get() = Some(job) };
        let (threads, upto) = (self.threads(), |thread: usize| (parts * thread / self.threads()) as u64);
        for (thread, mine) in self.shared.parts[..threads].iter().enumerate() {
            mine.0.store(upto(thread) << 32 | upto(thread + 1), Ordering::Relaxed);
        }
        self.shared.busy.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        if *self.shared.lock_sleepers() > 0 {
            self.shared.wake.notify_all();
        }
        self.shared.take_parts(job, 0);
        let mut spins = 0u32;
        while self.shared.busy.load(Ordering::Acquire) > 0 {
            spins = spins.saturating_add(1);
            if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a kernel thread panicked; its message is above");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.lock_sleepers());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock_sleepers(&self) -> std::sync::MutexGuard<'_, usize> {
        self.sleepers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_beyond(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the epoch moved, so `job` was written before and stays until `busy` is 0.
            if let Some(job) = unsafe { *self.job.get() } {
                self.take_parts(job, thread);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    fn take_parts(&self, job: Job, thread: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(part) = self.claim(thread) {
                // SAFETY: `run` keeps the closure alive until all threads have left the job.
                unsafe { (*job.task)(part as usize) };
            }
        }));
        if result.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// The next of the thread's own parts, or else the last of another's.
    fn claim(&self, thread: usize) -> Option<u64> {
        let others = (1..self.parts.len()).map(|step| &self.parts[(thread + step) % self.parts.len()]);
        self.parts[thread].claim(true).or_else(|| others.into_iter().find_map(|parts| parts.claim(false)))
    }

    /// Spins for a while, then sleeps, until the epoch differs from `seen`; returns the new one.
    fn wait_beyond(&self, seen: usize) -> usize {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                let epoch = self.epoch.load(Ordering::SeqCst);
                if epoch != seen {
                    return epoch;
                }
                std::hint::spin_loop();
            }
            match start.elapsed() {
                waited if waited > YIELD => break,
                waited if waited > SPIN => std::thread::yield_now(),
                _ => {}
            }
        }
        let mut sleepers = self.lock_sleepers();
        *sleepers += 1;
        while self.epoch.load(Ordering::SeqCst) == seen {
            sleepers = self.wake.wait(sleepers).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *sleepers -= 1;
        self.epoch.load(Ordering::SeqCst)
    }
}

/// The cores that the calling thread may use.
fn allowed_cores() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain data, and the call gets its true size.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|&core| libc::CPU_ISSET(core, &allowed)).collect()
    }
}

/// Binds the calling thread to a core. Where that fails the thread stays where the system puts it.
fn bind_to_core(core: usize) {
    // SAFETY: cpu_set_t is plain data, `core` is below its size, and the call gets its true size.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once() {
        let pool = Pool::new(3, false).unwrap();
        for round in 0..200 {
            let parts = round % 17;
            let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
            pool.run(parts, &|part| {
                counts[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "round {round}");
            if round % 50 == 3 {
                std::thread::sleep(3 * YIELD); // let the workers fall asleep; the next round wakes them
            }
        }
    }

    #[test]
    fn pinned_threads_have_cores_of_their_own() {
        // In a thread of its own, which keeps the binding.
        std::thread::spawn(|| {
            let cores = allowed_cores();
            let pool = Pool::new(cores.len(), true).unwrap();
            let seen = Mutex::new(std::collections::BTreeSet::new());
            let arrived = AtomicUsize::new(0);
            pool.run(cores.len(), &|_| {
                seen.lock().unwrap().insert(allowed_cores());
                // Nobody takes a second part before everybody has one.
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < cores.len() {
                    std::thread::yield_now();
                }
            });
            let expected: std::collections::BTreeSet<Vec<usize>> =
                cores.iter().map(|&core| vec![core]).collect();
            assert_eq!(*seen.lock().unwrap(), expected);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2, false).unwrap();
        let run = |bad: usize| {
            catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, &|part| assert!(part != bad, "part {bad} fails on purpose"));
            }))
        };
        assert!(run(5).is_err());
        assert!(run(99).is_ok());
    }
}
