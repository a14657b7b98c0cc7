//! What an operator decides about a worker, and its limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gaterail_cluster::exchange::Waiting;
use gaterail_cluster::tls::ClientTls;
use gaterail_kernels::cuda::CudaDevice;
use gaterail_kernels::{Device, KernelError};
use gaterail_model::weights::cache::PackedCache;

/// Opens the device that calls are computed on; called on the thread that computes, which the device may bind to a core.
pub type OpenDevice = Arc<dyn Fn() -> Result<Device, KernelError> + Send + Sync>;

/// A worker.
#[derive(Clone)]
pub struct WorkerOptions {
    /// `HOST:PORT` of the routers.
    pub join: Vec<String>,
    /// What a router's door asks for.
    pub token: Option<String>,
    /// How routers are reached; in clear where there is none.
    pub tls: Option<ClientTls>,
    /// For people.
    pub name: String,
    pub device: OpenDevice,
    /// The GPU that holds the experts and computes them instead.
    pub gpu: Option<Arc<CudaDevice>>,
    /// What experts may take, of the GPU's memory where there is one.
    pub memory_bytes: u64,
    /// Where packed experts are kept.
    pub packed_cache: Option<PackedCache>,
    /// Where a router's model may lie on this machine, beside the path that the router names.
    pub models: Vec<PathBuf>,
    /// Whether checkpoints are read here at all; else every weight comes from the router.
    pub read_checkpoints: bool,
    /// Whether memory is shared with a router of this host.
    pub shared_memory: bool,
    /// How a call is waited for.
    pub waiting: Waiting,
    pub limits: WorkerLimits,
    /// Lines for the operator.
    pub note: Arc<dyn Fn(&str) + Send + Sync>,
}

impl WorkerOptions {
    /// Where calls are computed.
    pub fn open_device(&self) -> Result<Device, KernelError> {
        match &self.gpu {
            Some(gpu) => Ok(Device::Cuda(gpu.clone())),
            None => (self.device)(),
        }
    }
}

/// Limits of a worker's patience and memory.
#[derive(Clone, Debug)]
pub struct WorkerLimits {
    /// For a connection, and for a router's Welcome.
    pub connect_max: Duration,
    /// Between two attempts to join, doubled after each up to the larger one.
    pub retry: (Duration, Duration),
    /// What a router wanted is kept for so long when the router is gone: it may come again.
    pub keep_max: Duration,
    /// After the signal to end: until the routers do without this worker.
    pub drain_max: Duration,
    /// Of a message of Join, and of a piece of Experts.
    pub message_bytes_max: usize,
    /// The largest body of a frame that a router may ask for.
    pub body_bytes_max: u64,
}

impl Default for WorkerLimits {
    fn default() -> WorkerLimits {
        WorkerLimits {
            connect_max: Duration::from_secs(5),
            retry: (Duration::from_millis(100), Duration::from_secs(5)),
            keep_max: Duration::from_secs(60),
            drain_max: Duration::from_secs(10),
            message_bytes_max: 16 << 20,
            body_bytes_max: 2 << 30,
        }
    }
}
