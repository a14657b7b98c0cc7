//! What can go wrong on a device. Wrong shapes are our own mistakes and are asserted, not reported.

/// A fault of the machine.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{op}: no memory for {bytes} bytes on {device}")]
    OutOfMemory { op: &'static str, device: String, bytes: usize },
    #[error("{op}: {detail}")]
    Device { op: &'static str, detail: String },
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
}
