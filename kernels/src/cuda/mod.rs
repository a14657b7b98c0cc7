//! The GPU: kernels in CUDA C++ (`kernels/cuda/*.cu`) and their launchers.
//!
//! ```text
//! launchers (one file per operation)  shapes, grids, arguments       the same code on a GPU and in the shim
//!   device     buffers, queues, faults of queued work
//!   driver     the seam: allocate, copy, launch, synchronise, events
//!     real     CUDA's driver through cudarc, kernels by NVRTC (`compile`)
//!     (shim)   the crate `gaterail-shim`: the same .cu files on the CPU, one fiber per CUDA thread
//! ```
//!
//! Libraries are found at run time: one binary runs with and without a GPU. Nothing here panics where they are missing.

mod arguments;
mod compile;
mod device;
mod driver;
mod error;
mod experts;
mod packed_linear;
mod peak;
mod quantize;
mod real;
mod rms_norm;
mod rope;

pub use compile::{Form, Source, sources};
pub use device::{CudaDevice, CudaQueue, DeviceBuffer, PackedOnDevice, Strided};
pub use driver::{Driver, Graph, Kernel, Launch, Mark, Properties, Queue};
pub use error::CudaError;
pub use experts::{
    DECODE_TOKENS, DeviceSums, ExpertsOnDevice, ExpertsScratch, PackedPiece, Path, Routing, ShardOptions,
    experts,
};
pub use packed_linear::{LinearPath, packed_linear};
pub use peak::{graph_time, read_bandwidth, tensor_peak};
pub use quantize::{QuantizedBuffer, quantize};
pub use rms_norm::rms_norm;
pub use rope::rope;
