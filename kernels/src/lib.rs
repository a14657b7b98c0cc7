//! The machine: devices with their buffers and streams, and the operations that run on them.
//!
//! `ops` is the door: each operation checks its shapes and hands over to its CPU kernel; `reference` holds the plain
//! twin of each, written like ARITHMETIC.md reads. Nothing here knows requests, files or networks.

mod arena;
mod buffer;
mod bytes;
mod cpu;
pub mod cuda;
mod device;
mod error;
mod int4;
mod matrix;
pub mod measure;
pub mod ops;
mod packed;
mod pool;
pub mod reference;
mod stream;
mod view;
mod weight;
pub mod widest;
pub mod wire;

pub use arena::Arena;
pub use buffer::{Buffer, Plain};
pub use bytes::Bytes;
pub use cpu::math::{exp, sigmoid};
pub use device::{CpuOptions, Device, Isa};
pub use error::KernelError;
pub use int4::{INT4_GROUP_MAX, Int4};
pub use matrix::{
    ElementType, FP8_BLOCK, GGUF_GROUP, MXFP4_GROUP, Matrix, MatrixData, Q4_0_BLOCK, Q8_0_BLOCK,
};
pub use packed::{
    ARITHMETIC, Codes, LINE, OWN_GROUP, PACKED_LAYOUT, PANEL_ROWS, Packed, PackedFormat, Scales,
};
pub use pool::Pool;
pub use stream::{Event, Stream};
pub use view::{View, ViewMut};
pub use weight::Weight;
