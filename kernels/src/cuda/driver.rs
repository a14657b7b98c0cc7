//! The seam between the launchers and what runs their kernels: a GPU, or the shim.

use std::any::Any;
use std::time::Duration;

use super::compile::{Form, Source};
use super::error::CudaError;

/// What launchers must know of a device.
#[derive(Clone, Debug)]
pub struct Properties {
    /// The N of `cuda:N`.
    pub ordinal: usize,
    /// For people.
    pub name: String,
    /// For instance `sm_90`.
    pub architecture: String,
    pub multiprocessors: u32,
    /// The most shared memory that a block may have.
    pub shared_bytes: usize,
    pub memory_bytes: usize,
    /// Of the second-level cache.
    pub cache_bytes: usize,
}

/// A GPU that nobody has to have opened.
#[derive(Clone, Debug)]
pub struct Card {
    /// The same for every process that sees the card, under whatever number.
    pub id: String,
    pub properties: Properties,
}

/// A kernel by name: `name` in `source`, compiled for `form` where the source has forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    pub source: Source,
    pub name: &'static str,
    pub form: Option<Form>,
}

impl Kernel {
    /// The name in the compiled code.
    pub fn symbol(&self) -> String {
        match self.form {
            Some(form) => format!("{}_c{}_g{}", self.name, form.codes, form.group),
            None => self.name.to_string(),
        }
    }
}

/// One launch. Every kernel takes one argument, a struct.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: usize,
    pub argument: &'a [u8],
}

/// A device: its memory and its queues. Addresses are its own, good for kernels only.
pub trait Driver: Send + Sync {
    fn properties(&self) -> &Properties;
    /// Bytes of memory that nobody has taken yet, other processes included.
    fn free_bytes(&self) -> Result<usize, CudaError>;
    /// Memory at a multiple of 256 bytes; what is in it is not defined.
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;
    /// Takes back what `allocate` gave, once nothing queued uses it any more.
    fn release(&self, address: u64);
    /// Compiles and loads what the kernels are in, now rather than at the first launch.
    fn prepare(&self, kernels: &[Kernel]) -> Result<(), CudaError>;
    fn open_queue(&self) -> Result<Box<dyn Queue>, CudaError>;
}

/// Work in order. Calls return before it is done, except where a line says otherwise.
pub trait Queue: Send + Sync {
    /// Copies to an address. `from` may change as soon as this returns.
    ///
    /// # Safety
    /// The address range was allocated on the queue's device.
    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<(), CudaError>;
    /// Copies from an address, and waits for it.
    ///
    /// # Safety
    /// As `upload`.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError>;
    /// Zeroes.
    ///
    /// # Safety
    /// As `upload`.
    unsafe fn zero(&self, to: u64, bytes: usize) -> Result<(), CudaError>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// The argument is the kernel's struct; all its addresses hold what the kernel reads and writes.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError>;
    /// Marks this point.
    fn record(&self) -> Result<Mark, CudaError>;
    /// What is queued from here on waits for the mark.
    fn wait(&self, mark: &Mark) -> Result<(), CudaError>;
    /// Waits on the host for all that is queued, and brings its faults to light.
    fn synchronize(&self) -> Result<(), CudaError>;
    /// What `work` queues here, kept instead of run: launches only, of kernels that were prepared.
    fn capture(&self, work: &mut dyn FnMut()) -> Result<Box<dyn Graph>, CudaError>;
    /// The device's time from one mark to another, once both have been passed; none where time means nothing.
    fn elapsed(&self, from: &Mark, to: &Mark) -> Option<Duration>;
}

/// A point in a queue, as its driver knows it.
#[must_use]
pub struct Mark(pub Box<dyn Any + Send + Sync>);

/// Launches that were captured, with their arguments as they were.
pub trait Graph: Send {
    /// Queues them all on the queue that they were captured from.
    ///
    /// # Safety
    /// The launches' addresses still hold what their kernels read and write.
    unsafe fn launch(&self) -> Result<(), CudaError>;
}
