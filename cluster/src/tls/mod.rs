//! TLS between routers and workers, and in front of a router's own ports: certificates out of files, both sides of a handshake,
//! and what is wrong with it in a sentence that says what to do.
//!
//! | file | |
//! |---|---|
//! | [`files`] | certificates and keys, read and checked |
//! | [`server`] | who listens |
//! | [`client`] | who connects |
//! | [`purpose`] | whose certificate it is: a server's, or a worker's of this cluster |
//! | [`refusal`] | errors of a handshake, as sentences |
//! | [`validity`] | until when a certificate holds, and for which names |

mod client;
mod files;
mod names;
mod purpose;
mod refusal;
mod server;
mod validity;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::ServerName;

pub use client::{ClientTls, TlsTrouble};
pub use files::{Authority, CertFiles, Identity};
pub use purpose::{Members, Purpose, WORKER_NAME};
pub use server::{ServerTls, TlsStream, is_hello};
pub use validity::{Validity, date};

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading {}: {source}", file.display())]
    Io { file: PathBuf, source: std::io::Error },
    #[error("{} {why}", file.display())]
    File { file: PathBuf, why: String },
}

/// Whether a certificate can be for this name: a host's, `*.` before one, or an address.
pub fn is_name(text: &str) -> bool {
    ServerName::try_from(text.strip_prefix("*.").unwrap_or(text)).is_ok()
}

/// The one library that encrypts here.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
