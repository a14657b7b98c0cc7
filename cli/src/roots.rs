//! Whose certificates are believed beside those of public CAs: the file that `SSL_CERT_FILE` names, as for OpenSSL and curl.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ureq::tls::{PemItem, RootCerts};

pub const VARIABLE: &str = "SSL_CERT_FILE";

/// The certificates of a file, instead of all others; `InvalidData` where it has none.
pub fn of(path: &Path) -> io::Result<RootCerts> {
    let pem = std::fs::read(path)?;
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        let why = format!("there is no certificate in {}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}
