//! What this worker's device can do, measured when it starts.

use std::sync::Arc;
use std::time::Duration;

use gaterail_kernels::cuda::{self, CudaDevice, CudaQueue};
use gaterail_kernels::{Device, KernelError, measure};
use gaterail_proto::grpc::v1::Machine;

use crate::error::WorkerError;
use crate::options::WorkerOptions;

/// Larger than the caches.
const BYTES: usize = 128 << 20;
const READING: Duration = Duration::from_millis(100);
const MULTIPLYING: Duration = Duration::from_millis(20);
/// On a GPU: far more than its cache, and some milliseconds of products.
const GPU_BYTES: usize = 1 << 30;
const GPU_ROUNDS: u32 = 20_000;
/// Where time means nothing all rates are alike.
const NO_RATE: f64 = 1e9;

/// Opens the device, measures it, and closes it again. Takes a few tenths of a second.
pub fn measured(options: &WorkerOptions) -> Result<Machine, WorkerError> {
    let device = options.open_device()?;
    let (read, multiply) = match &device {
        Device::Cpu(_) => {
            (measure::read_bandwidth(&device, BYTES, READING)?, measure::int8_peak(&device, MULTIPLYING))
        }
        Device::Cuda(gpu) => gpu_rates(gpu)?,
    };
    let card = options.gpu.as_ref().map(|gpu| gpu.properties().ordinal as u32);
    Ok(Machine {
        device: device.to_string(),
        card,
        threads: device.threads() as u32,
        memory_bytes: options.memory_bytes,
        read_bytes_per_second: read,
        int8_operations_per_second: multiply,
        pid: std::process::id(),
    })
}

/// Bytes read and integer operations per second.
fn gpu_rates(gpu: &Arc<CudaDevice>) -> Result<(f64, f64), KernelError> {
    let queue = CudaQueue::new(gpu)?;
    let bytes = GPU_BYTES.min(gpu.properties().memory_bytes / 64);
    let read = cuda::read_bandwidth(&queue, bytes)?;
    let products = cuda::tensor_peak(&queue, if read.is_some() { GPU_ROUNDS } else { 1 })?;
    Ok((read.unwrap_or(NO_RATE), products.map_or(NO_RATE, |products| 2.0 * products)))
}
