//! What this worker's device can do, measured when it starts.

use std::time::Duration;

use gaterail_kernels::{Device, measure};
use gaterail_proto::grpc::v1::Machine;

use crate::error::WorkerError;
use crate::options::WorkerOptions;

/// Larger than the caches.
const BYTES: usize = 128 << 20;
const READING: Duration = Duration::from_millis(100);
const MULTIPLYING: Duration = Duration::from_millis(20);

/// Opens the device, measures it, and closes it again. Takes a few tenths of a second.
pub fn measured(options: &WorkerOptions) -> Result<Machine, WorkerError> {
    let device = (options.device)()?;
    if !matches!(device, Device::Cpu(_)) {
        return Err(WorkerError::System(format!("{device}: workers compute on the CPU in this version")));
    }
    Ok(Machine {
        device: device.to_string(),
        threads: device.threads() as u32,
        memory_bytes: options.memory_bytes,
        read_bytes_per_second: measure::read_bandwidth(&device, BYTES, READING)?,
        int8_operations_per_second: measure::int8_peak(&device, MULTIPLYING),
        pid: std::process::id(),
    })
}
