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
mod attention;
mod compile;
mod device;
mod driver;
mod error;
mod experts;
mod linear;
mod packed_linear;
mod peak;
mod quantize;
mod real;
mod rms_norm;
mod rope;
mod rows;
mod select;
mod sums;
mod weight;

pub(crate) use attention::{attention, kv_copy, kv_write};
pub use compile::{Form, Source, check_compiler, compile_all, sources};
pub use device::{CudaDevice, CudaQueue, DeviceBuffer, Strided};
pub use driver::{Card, Driver, Graph, Kernel, Launch, Mark, Properties, Queue};
pub use error::CudaError;
pub(crate) use experts::not_packed;
pub use experts::{
    DECODE_TOKENS, ExpertForm, ExpertsBatch, ExpertsOnDevice, ExpertsOutline, ExpertsScratch, Path,
    ShardOptions, SumsOnDevice, check_experts, experts,
};
pub use linear::linear;
pub use packed_linear::{LinearPath, packed_linear};
pub use peak::{graph_time, read_bandwidth, tensor_peak};
pub use quantize::{Quantized, QuantizedBuffer, quantize};
pub use real::cards;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use rows::{activation, add, add_gated, clamp, copy_rows, embed, gather_rows, scale_rows};
pub use select::{Selection, select};
pub use sums::{sums_add, sums_finish};
pub use weight::{MatrixOnDevice, PackedOnDevice, WeightOnDevice};
