//! What ends a worker, or one of its connections.

use gaterail_kernels::KernelError;

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Joining again would not help.
    #[error("{address} does not take this worker: {why}")]
    Refused { address: String, why: String },
    #[error("{0}")]
    System(String),
}
