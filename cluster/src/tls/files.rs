//! Certificates and keys: PEM files in, what rustls takes out. A file is checked before anything listens or connects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::{TlsError, provider};

/// More is no file of certificates.
const BYTES_MAX: u64 = 1 << 20;

/// A folder of certificates, as `gaterail certs init` names its files.
#[derive(Clone, Debug)]
pub struct CertFiles {
    pub folder: PathBuf,
}

impl CertFiles {
    pub fn new(folder: impl Into<PathBuf>) -> CertFiles {
        CertFiles { folder: folder.into() }
    }

    /// Whose certificates are believed.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// `ca`, `router` or `worker`.
    pub fn cert(&self, who: &str) -> PathBuf {
        self.folder.join(format!("{who}.pem"))
    }

    pub fn key(&self, who: &str) -> PathBuf {
        self.folder.join(format!("{who}-key.pem"))
    }
}

/// What one side shows: a certificate, those that lead to its CA, and the key.
pub struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) file: PathBuf,
}

impl Identity {
    /// Reads both files; they have to belong together.
    pub fn read(cert: &Path, key: &Path) -> Result<Identity, TlsError> {
        let chain = certificates(cert)?;
        let wrong = |why: String| TlsError::File { file: key.to_path_buf(), why };
        let pem = read(key)?;
        let own = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| wrong(format!("holds no private key in PEM: {error}")))?;
        let signing = provider()
            .key_provider
            .load_private_key(own.clone_key())
            .map_err(|error| wrong(format!("is no key that can be used here: {error}")))?;
        CertifiedKey::new(chain.clone(), signing)
            .keys_match()
            .map_err(|_| wrong(format!("is not the key of the certificate in {}", cert.display())))?;
        Ok(Identity { chain, key: own, file: cert.to_path_buf() })
    }

    /// Where its certificate was read.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// Whose certificates are believed.
#[derive(Clone)]
pub struct Authority {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) first: CertificateDer<'static>,
    pub(super) file: PathBuf,
}

impl Authority {
    pub fn read(file: &Path) -> Result<Authority, TlsError> {
        Authority::of(certificates(file)?, file)
    }

    /// One that is in no file yet; `file` is where it will be.
    pub fn from_pem(pem: &[u8], file: &Path) -> Result<Authority, TlsError> {
        Authority::of(parsed(pem, file)?, file)
    }

    /// Whether what one of them signed is believed by who believes the other: name and key are the same.
    pub fn is_the_same_as(&self, other: &Authority) -> bool {
        let signs = |ca: &Authority| {
            ca.roots
                .roots
                .iter()
                .map(|root| (root.subject.clone(), root.subject_public_key_info.clone()))
                .collect::<Vec<_>>()
        };
        signs(self) == signs(other)
    }

    fn of(certificates: Vec<CertificateDer<'static>>, file: &Path) -> Result<Authority, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| TlsError::File {
                file: file.to_path_buf(),
                why: format!("holds a certificate that cannot be believed: {error}"),
            })?;
        }
        // There is one at least.
        let first = certificates[0].clone();
        Ok(Authority { roots: Arc::new(roots), first, file: file.to_path_buf() })
    }
}

/// One at least.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    parsed(&read(file)?, file)
}

fn parsed(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::File { file: file.to_path_buf(), why };
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = read.map_err(|error| wrong(format!("is no PEM: {error}")))?;
    match certificates.is_empty() {
        true => Err(wrong("holds no certificate in PEM".to_string())),
        false => Ok(certificates),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Io { file: file.to_path_buf(), source };
    let bytes = std::fs::metadata(file).map_err(failed)?.len();
    if bytes > BYTES_MAX {
        let why = format!("has {bytes} bytes: that is no certificate");
        return Err(TlsError::File { file: file.to_path_buf(), why });
    }
    std::fs::read(file).map_err(failed)
}
