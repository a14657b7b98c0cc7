//! The messages and services of `proto/proto/`, generated.

/// `gaterail.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("gaterail.v1");
}

/// The metadata that has the session of `Welcome`, with Exchange and Experts.
pub const SESSION: &str = "gaterail-session";

/// All of it as a `FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
