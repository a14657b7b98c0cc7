//! What a device can do at most, measured on the spot (`peak.cu`), and how long queued work takes.

use std::time::Duration;

use super::arguments::PeakArgs;
use super::compile::Source;
use super::device::{CudaQueue, DeviceBuffer};
use super::driver::Kernel;
use super::error::CudaError;

const READ: Kernel = Kernel { source: Source::Peak, name: "peak_read", form: None };
const MULTIPLY: Kernel = Kernel { source: Source::Peak, name: "peak_multiply", form: None };

/// Bytes per second that the device reads from memory: the best of some passes over `bytes`, which should be far more
/// than its cache. None in the shim, where time means nothing.
pub fn read_bandwidth(queue: &CudaQueue, bytes: usize) -> Result<Option<f64>, CudaError> {
    let words = DeviceBuffer::<u64>::zeros(queue.device(), bytes / 8)?;
    let blocks = 8 * queue.device().properties().multiprocessors as usize;
    let out = DeviceBuffer::<u32>::zeros(queue.device(), blocks * 256)?;
    let args =
        PeakArgs { words: words.at(0), out: out.at(0), count: words.len() as u64, ..PeakArgs::default() };
    let best = best_of(queue, &mut || {
        // SAFETY: as many words as are there, a place in `out` for every thread.
        unsafe { queue.launch(READ, [blocks, 1, 1], 256, 0, &args) };
    })?;
    Ok(best.map(|time| (words.len() * 8) as f64 / time.as_secs_f64()))
}

/// Products of i8 per second on the tensor cores, by the instruction that the kernels use. None in the shim.
pub fn tensor_peak(queue: &CudaQueue, rounds: u32) -> Result<Option<f64>, CudaError> {
    const PRODUCTS: f64 = (16 * 8 * 32) as f64;
    let blocks = 4 * queue.device().properties().multiprocessors as usize;
    let out = DeviceBuffer::<u32>::zeros(queue.device(), blocks * 256)?;
    let args = PeakArgs { out: out.at(0), rounds, ..PeakArgs::default() };
    let best = best_of(queue, &mut || {
        // SAFETY: a place in `out` for every thread.
        unsafe { queue.launch(MULTIPLY, [blocks, 1, 1], 256, 0, &args) };
    })?;
    Ok(best.map(|time| PRODUCTS * 8.0 * f64::from(rounds) * (blocks * 8) as f64 / time.as_secs_f64()))
}

/// The time of what `work` queues, as one graph: launched once, then `repeats` times on the clock. None in the shim.
pub fn graph_time(
    queue: &CudaQueue,
    repeats: u32,
    work: &mut dyn FnMut(),
) -> Result<Option<Duration>, CudaError> {
    let graph = queue.capture(work)?;
    // SAFETY: `work` still borrows, or owns, what it queued, until this function returns; it waits before that.
    let launch = || unsafe { queue.launch_graph(&graph) };
    launch();
    queue.synchronize()?;
    let start = queue.record()?;
    (0..repeats).for_each(|_| launch());
    let end = queue.record()?;
    queue.synchronize()?;
    Ok(queue.elapsed(&start, &end).map(|time| time / repeats.max(1)))
}

fn best_of(queue: &CudaQueue, work: &mut dyn FnMut()) -> Result<Option<Duration>, CudaError> {
    let mut best = None::<Duration>;
    for _ in 0..10 {
        let start = queue.record()?;
        work();
        let end = queue.record()?;
        queue.synchronize()?;
        best = match (queue.elapsed(&start, &end), best) {
            (Some(time), Some(best)) => Some(time.min(best)),
            (time, best) => time.or(best),
        };
    }
    Ok(best)
}
