//! What the machine can do, measured on the spot.

use std::time::{Duration, Instant};

use crate::buffer::Buffer;
use crate::device::{CpuDevice, Device};
use crate::error::KernelError;

/// Memory far larger than the caches, to be read as fast as all threads of a device can.
pub struct ReadBandwidth<'a> {
    cpu: &'a CpuDevice,
    buffer: Buffer<u64>,
}

impl<'a> ReadBandwidth<'a> {
    pub fn new(device: &'a Device, bytes: usize) -> Result<ReadBandwidth<'a>, KernelError> {
        let Device::Cpu(cpu) = device else { panic!("the bandwidth of a CPU's memory") };
        let mut buffer = Buffer::<u64>::zeros(device, bytes / 8)?;
        // Pages that nobody wrote would all be one page of zeros, and lie in the cache.
        buffer.host_mut().fill(1);
        Ok(ReadBandwidth { cpu, buffer })
    }

    /// Reads all of it once: bytes per second of all threads together.
    pub fn pass(&self) -> f64 {
        const PART: usize = 1 << 18;
        let words = self.buffer.host();
        let parts: Vec<&[u64]> = words.chunks(PART / 8).collect();
        let started = Instant::now();
        self.cpu.pool.run(parts.len(), &|part| {
            let mut sums = [0u64; 16];
            for words in parts[part].chunks_exact(16) {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            std::hint::black_box(sums);
        });
        size_of_val(words) as f64 / started.elapsed().as_secs_f64()
    }
}

/// Bytes per second that all threads of `device` read together from memory: the best of several passes over `bytes` of it.
pub fn read_bandwidth(device: &Device, bytes: usize, at_least: Duration) -> Result<f64, KernelError> {
    let memory = ReadBandwidth::new(device, bytes)?;
    let started = Instant::now();
    let mut best = 0.0f64;
    for pass in 0.. {
        best = best.max(memory.pass());
        if pass > 1 && started.elapsed() > at_least {
            break;
        }
    }
    Ok(best)
}

/// Integer multiplications and additions per second of all threads of `device` together, from registers: the best of
/// several passes. What the device's instructions can do, and a bound for every product of packed weights.
pub fn int8_peak(device: &Device, at_least: Duration) -> f64 {
    const ROUNDS: usize = 100_000;
    let Device::Cpu(cpu) = device else { panic!("the bandwidth of a CPU's memory") };
    let threads = cpu.pool.threads();
    let rounds = if cpu.isa == crate::device::Isa::Portable { ROUNDS / 100 } else { ROUNDS };
    let started = Instant::now();
    let mut best = 0.0f64;
    for pass in 0.. {
        let pass_started = Instant::now();
        // Two parts a thread, so that a late one does not leave the others idle for long.
        cpu.pool.run(2 * threads, &|_| crate::cpu::packed::peak(cpu.isa, rounds));
        let operations = (2 * threads * rounds * crate::cpu::packed::PEAK_OPERATIONS) as f64;
        best = best.max(operations / pass_started.elapsed().as_secs_f64());
        if pass > 1 && started.elapsed() > at_least {
            break;
        }
    }
    best
}

/// Seconds until all threads of `device` have begun and ended a piece of work that is none: the median of many times.
pub fn fork_seconds(device: &Device) -> f64 {
    const TIMES: usize = 2000;
    let Device::Cpu(cpu) = device else { panic!("the threads of a CPU") };
    let threads = cpu.pool.threads();
    let mut seconds: Vec<f64> = (0..TIMES)
        .map(|_| {
            let started = Instant::now();
            cpu.pool.run(threads, &|part| {
                std::hint::black_box(part);
            });
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[TIMES / 2]
}
