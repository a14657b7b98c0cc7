//! A queue of operations on one device.
//!
//! The CPU's stream runs each operation before the call returns; a GPU's only queues it. Callers must not tell them
//! apart: they read results through `download`, which waits, and order streams with events.

use crate::buffer::{Buffer, Plain};
use crate::device::{CpuDevice, Device};
use crate::error::KernelError;

/// Operations in order, on one device.
#[derive(Clone)]
pub struct Stream {
    device: Device,
}

/// A point in a stream's order.
#[must_use]
pub struct Event;

impl Stream {
    pub fn new(device: &Device) -> Stream {
        Stream { device: device.clone() }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn cpu(&self) -> &CpuDevice {
        match &self.device {
            Device::Cpu(cpu) => cpu,
        }
    }

    /// Marks this point of the stream.
    pub fn record(&self) -> Event {
        match &self.device {
            Device::Cpu(_) => Event,
        }
    }

    /// Lets what is queued from here on wait for `event`.
    pub fn wait(&self, _event: &Event) {
        match &self.device {
            Device::Cpu(_) => {}
        }
    }

    /// Waits on the host for all that is queued, and brings its faults to light.
    pub fn synchronize(&self) -> Result<(), KernelError> {
        match &self.device {
            Device::Cpu(_) => Ok(()),
        }
    }

    /// Copies `from` to the front of `to`.
    pub fn upload<T: Plain>(&self, from: &[T], to: &mut Buffer<T>) -> Result<(), KernelError> {
        assert!(from.len() <= to.len(), "upload of {} elements into {}", from.len(), to.len());
        to.host_mut()[..from.len()].copy_from_slice(from);
        Ok(())
    }

    /// Copies the elements from `start` on into `to`, after all that is queued.
    pub fn download<T: Plain>(
        &self,
        from: &Buffer<T>,
        start: usize,
        to: &mut [T],
    ) -> Result<(), KernelError> {
        assert!(start + to.len() <= from.len(), "download of {}..+{} of {}", start, to.len(), from.len());
        to.copy_from_slice(&from.host()[start..start + to.len()]);
        Ok(())
    }
}
