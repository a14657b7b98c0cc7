//! A queue of operations on one device.
//!
//! The CPU's stream runs each operation before the call returns; a GPU's only queues it. Callers must not tell them
//! apart: they read results through `download`, which waits, and order streams with events.

use std::sync::Arc;

use crate::buffer::{Buffer, Plain};
use crate::cuda::{CudaQueue, Mark};
use crate::device::{CpuDevice, Device};
use crate::error::KernelError;

/// Operations in order, on one device.
#[derive(Clone)]
pub struct Stream {
    device: Device,
    /// A GPU's queue; clones share it.
    queue: Option<Arc<CudaQueue>>,
}

/// A point in a stream's order.
#[must_use]
pub struct Event(Option<Mark>);

impl Stream {
    /// A stream of a device. Panics where a GPU cannot open one more: `open` says so instead.
    pub fn new(device: &Device) -> Stream {
        Stream::open(device).unwrap_or_else(|error| panic!("a stream of {device}: {error}"))
    }

    /// A stream of a device.
    pub fn open(device: &Device) -> Result<Stream, KernelError> {
        let queue = match device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(Arc::new(CudaQueue::new(cuda)?)),
        };
        Ok(Stream { device: device.clone(), queue })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device of an operation that only the CPU has. Panics for a GPU.
    pub(crate) fn cpu(&self) -> &CpuDevice {
        match &self.device {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => panic!("an operation that {cuda} does not have"),
        }
    }

    /// A GPU's queue.
    pub(crate) fn cuda(&self) -> Option<&CudaQueue> {
        self.queue.as_deref()
    }

    /// Marks this point of the stream.
    pub fn record(&self) -> Event {
        let Some(queue) = &self.queue else { return Event(None) };
        match queue.record() {
            Ok(mark) => Event(Some(mark)),
            Err(error) => {
                queue.keep_fault(Err(error));
                Event(None)
            }
        }
    }

    /// Lets what is queued from here on wait for `event`.
    pub fn wait(&self, event: &Event) {
        // The CPU has done all that came before, and a mark that could not be made is a fault of its own stream.
        if let (Some(queue), Some(mark)) = (&self.queue, &event.0) {
            queue.keep_fault(queue.wait(mark));
        }
    }

    /// Waits on the host for all that is queued, and brings its faults to light.
    pub fn synchronize(&self) -> Result<(), KernelError> {
        match &self.queue {
            Some(queue) => Ok(queue.synchronize()?),
            None => Ok(()),
        }
    }

    /// Copies `from` to the front of `to`.
    pub fn upload<T: Plain>(&self, from: &[T], to: &mut Buffer<T>) -> Result<(), KernelError> {
        assert!(from.len() <= to.len(), "upload of {} elements into {}", from.len(), to.len());
        match &self.queue {
            Some(queue) => queue.upload(from, to.cuda_mut())?,
            None => to.host_mut()[..from.len()].copy_from_slice(from),
        }
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
        match &self.queue {
            Some(queue) => queue.download(from.cuda(), start, to)?,
            None => to.copy_from_slice(&from.host()[start..start + to.len()]),
        }
        Ok(())
    }

    /// The first `len` elements where the host can work on them: in place on the CPU, else copied to `staging` after all
    /// that is queued. What is changed there does not come back to a GPU.
    pub fn on_host<'a, T: Plain>(
        &self,
        from: &'a mut Buffer<T>,
        len: usize,
        staging: &'a mut Vec<T>,
    ) -> Result<&'a mut [T], KernelError> {
        assert!(len <= from.len(), "{len} elements on the host of {}", from.len());
        let Some(queue) = &self.queue else { return Ok(&mut from.host_mut()[..len]) };
        if staging.len() < len {
            staging.resize(len, T::zeroed());
        }
        queue.download(from.cuda(), 0, &mut staging[..len])?;
        Ok(&mut staging[..len])
    }
}
