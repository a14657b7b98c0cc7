//! A CUDA device, its queues and its buffers, over either driver.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use super::driver::{Driver, Graph, Kernel, Launch, Mark, Properties, Queue};
use super::error::CudaError;
use super::real::RealDriver;
use crate::buffer::Plain;

/// A GPU, or what plays one.
pub struct CudaDevice {
    driver: Box<dyn Driver>,
    /// For what happens outside of any stream: zeroing and filling new buffers.
    setup: Box<dyn Queue>,
}

impl CudaDevice {
    /// The GPU `cuda:ordinal`.
    pub fn open(ordinal: usize) -> Result<Arc<CudaDevice>, CudaError> {
        CudaDevice::with_driver(Box::new(Arc::new(RealDriver::open(ordinal)?)))
    }

    /// A device over any driver.
    pub fn with_driver(driver: Box<dyn Driver>) -> Result<Arc<CudaDevice>, CudaError> {
        let setup = driver.open_queue()?;
        Ok(Arc::new(CudaDevice { driver, setup }))
    }

    pub fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    /// Bytes of memory that nobody has taken yet, other processes included.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        self.driver.free_bytes()
    }

    /// Whether it still works: after some faults a device answers no call of this process any more.
    pub fn check(self: &Arc<Self>) -> Result<(), CudaError> {
        DeviceBuffer::<u32>::zeros(self, 1).map(drop)
    }

    /// Compiles and loads kernels now rather than at their first launch.
    pub fn prepare(&self, kernels: &[Kernel]) -> Result<(), CudaError> {
        self.driver.prepare(kernels)
    }
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let properties = self.properties();
        write!(f, "{} ({})", properties.name, properties.architecture)
    }
}

/// Work in order on a device. Faults of queued work are kept, and returned by `synchronize`.
pub struct CudaQueue {
    device: Arc<CudaDevice>,
    queue: Box<dyn Queue>,
    fault: Mutex<Option<CudaError>>,
}

impl CudaQueue {
    pub fn new(device: &Arc<CudaDevice>) -> Result<CudaQueue, CudaError> {
        Ok(CudaQueue { device: device.clone(), queue: device.driver.open_queue()?, fault: Mutex::new(None) })
    }

    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// Keeps the first fault.
    pub(crate) fn keep_fault(&self, result: Result<(), CudaError>) {
        if let Err(error) = result {
            self.fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
        }
    }

    fn is_faulty(&self) -> bool {
        self.fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_some()
    }

    fn faultless(&self) -> Result<(), CudaError> {
        self.fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take().map_or(Ok(()), Err)
    }

    /// Waits for all that is queued, and returns the first fault since the last call.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let waited = self.queue.synchronize();
        self.faultless()?;
        waited
    }

    /// Copies to the front of a buffer.
    pub fn upload<T: Plain>(&self, from: &[T], to: &mut DeviceBuffer<T>) -> Result<(), CudaError> {
        assert!(from.len() <= to.len, "upload of {} elements into {}", from.len(), to.len);
        // SAFETY: inside the buffer.
        unsafe { self.queue.upload(bytemuck::cast_slice(from), to.address) }
    }

    /// Copies the elements from `start` on, after all that is queued.
    pub fn download<T: Plain>(
        &self,
        from: &DeviceBuffer<T>,
        start: usize,
        to: &mut [T],
    ) -> Result<(), CudaError> {
        assert!(start + to.len() <= from.len, "download of {}..+{} of {}", start, to.len(), from.len);
        self.faultless()?;
        // SAFETY: inside the buffer.
        unsafe { self.queue.download(from.at(start), bytemuck::cast_slice_mut(to)) }
    }

    /// Zeroes the first elements.
    pub fn zero<T: Plain>(&self, buffer: &mut DeviceBuffer<T>, len: usize) {
        assert!(len <= buffer.len, "zeroes for {len} elements of {}", buffer.len);
        // SAFETY: inside the buffer.
        self.keep_fault(unsafe { self.queue.zero(buffer.address, len * size_of::<T>()) });
    }

    pub fn record(&self) -> Result<Mark, CudaError> {
        self.queue.record()
    }

    pub fn wait(&self, mark: &Mark) -> Result<(), CudaError> {
        self.queue.wait(mark)
    }

    /// The device's time between two marks that have been passed; none in the shim, where time means nothing.
    pub fn elapsed(&self, from: &Mark, to: &Mark) -> Option<std::time::Duration> {
        self.queue.elapsed(from, to)
    }

    /// Launches kept to be queued again with one call.
    pub(super) fn capture(&self, work: &mut dyn FnMut()) -> Result<CudaGraph, CudaError> {
        let graph = self.queue.capture(work)?;
        self.faultless()?;
        Ok(CudaGraph(graph))
    }

    /// Queues a graph that was captured from this queue.
    ///
    /// # Safety
    /// The buffers that its launches work on are still alive.
    pub(super) unsafe fn launch_graph(&self, graph: &CudaGraph) {
        // SAFETY: the caller's.
        self.keep_fault(unsafe { graph.0.launch() });
    }

    /// Queues a kernel; a grid with a side of 0 is no work.
    ///
    /// # Safety
    /// As `Queue::launch`.
    pub(super) unsafe fn launch<A: bytemuck::Pod>(
        &self,
        kernel: Kernel,
        grid: [usize; 3],
        block: usize,
        shared_bytes: usize,
        args: &A,
    ) {
        // What follows a fault would read what was not written.
        if grid.contains(&0) || self.is_faulty() {
            return;
        }
        let limit = self.device.properties().shared_bytes;
        if shared_bytes > limit {
            let detail = format!("{shared_bytes} bytes of shared memory asked for, {limit} there");
            return self.keep_fault(Err(CudaError::Launch { kernel: kernel.symbol(), detail }));
        }
        let grid = grid.map(|side| u32::try_from(side).expect("a grid's side in 32 bits"));
        let argument = bytemuck::bytes_of(args);
        let launch = Launch { kernel, grid, block: block as u32, shared_bytes, argument };
        // SAFETY: the caller's.
        self.keep_fault(unsafe { self.queue.launch(&launch) });
    }
}

/// Captured launches.
pub(super) struct CudaGraph(Box<dyn Graph>);

/// `len` elements in a device's memory.
pub struct DeviceBuffer<T> {
    device: Arc<CudaDevice>,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Plain> DeviceBuffer<T> {
    /// Zeroed elements.
    pub fn zeros(device: &Arc<CudaDevice>, len: usize) -> Result<DeviceBuffer<T>, CudaError> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| CudaError::OutOfMemory { device: device.to_string(), bytes: usize::MAX })?;
        let address = device.driver.allocate(bytes)?;
        let buffer = DeviceBuffer { device: device.clone(), address, len, elements: PhantomData };
        // SAFETY: just allocated.
        unsafe { device.setup.zero(address, bytes) }?;
        device.setup.synchronize()?;
        Ok(buffer)
    }

    /// A copy of `values`.
    pub fn copied(device: &Arc<CudaDevice>, values: &[T]) -> Result<DeviceBuffer<T>, CudaError> {
        let address = device.driver.allocate(size_of_val(values))?;
        let buffer =
            DeviceBuffer { device: device.clone(), address, len: values.len(), elements: PhantomData };
        // SAFETY: just allocated.
        unsafe { device.setup.upload(bytemuck::cast_slice(values), address) }?;
        device.setup.synchronize()?;
        Ok(buffer)
    }

    /// What is in it, beside what its device is doing.
    pub fn to_vec(&self) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        // SAFETY: all of the buffer, and no more.
        unsafe { self.device.setup.download(self.address, bytemuck::cast_slice_mut(&mut values)) }?;
        Ok(values)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// The address of an element.
    pub(super) fn at(&self, index: usize) -> u64 {
        assert!(index <= self.len, "element {index} of {}", self.len);
        self.address + (index * size_of::<T>()) as u64
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        self.device.driver.release(self.address);
    }
}

/// f32 values `[rows, heads, width]` in a buffer, in strides of elements.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub buffer: &'a DeviceBuffer<f32>,
    pub rows: usize,
    pub heads: usize,
    pub width: usize,
    pub offset: usize,
    pub row_stride: usize,
    pub head_stride: usize,
}

impl<'a> Strided<'a> {
    /// `[rows, width]` from the front of a buffer.
    pub fn rows(buffer: &'a DeviceBuffer<f32>, rows: usize, width: usize) -> Strided<'a> {
        Strided { buffer, rows, heads: 1, width, offset: 0, row_stride: width, head_stride: width }
    }

    /// The address of the first element. Panics if the last one is not in the buffer.
    pub(super) fn address(&self) -> u64 {
        if self.rows > 0 && self.heads > 0 {
            let last = self.offset
                + (self.rows - 1) * self.row_stride
                + (self.heads - 1) * self.head_stride
                + self.width;
            assert!(
                last <= self.buffer.len(),
                "a view of {last} elements in a buffer of {}",
                self.buffer.len()
            );
        }
        self.buffer.at(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With or without a driver and GPUs, there is no device of this number, and saying so takes no panic.
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let Err(error) = CudaDevice::open(9999) else { panic!("ten thousand GPUs") };
        let line = error.to_string();
        let expected =
            ["no NVIDIA driver on this machine", "cuda:9999 asked for", "the NVIDIA driver supports CUDA"];
        assert!(expected.iter().any(|expected| line.starts_with(expected)), "{line}");
    }
}
