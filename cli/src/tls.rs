//! Flags that name certificates, of routers and of workers: in, files; out, what a handshake takes.

use std::path::{Path, PathBuf};

use gaterail_cluster::tls::{Authority, CertFiles, ClientTls, Identity, ServerTls, TlsError, Validity, date};

use crate::error::CliError;
use crate::terminal;

/// A certificate that ends sooner is worth a word at every start.
const WARN_DAYS: u64 = 30;

/// Files as the command line names them.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// A folder of `gaterail certs init`; the others say what comes from elsewhere.
    pub certs: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca: Option<PathBuf>,
}

impl TlsFiles {
    /// What a port shows and asks for, where its flags begin with `flag`; `None` where nobody named a file.
    pub fn server(&self, flag: &str, protocol: &[u8]) -> Result<Option<ServerTls>, CliError> {
        let files = self.certs.as_ref().map(CertFiles::new);
        let of_folder = |file: fn(&CertFiles) -> PathBuf| files.as_ref().map(file);
        let cert = self.cert.clone().or_else(|| of_folder(|files| files.cert("router")));
        let key = self.key.clone().or_else(|| of_folder(|files| files.key("router")));
        let ca = self.ca.clone().or_else(|| of_folder(CertFiles::ca));
        let (cert, key) = match (cert, key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if ca.is_none() => return Ok(None),
            _ => {
                let why = format!("TLS takes a certificate and its key: --{flag}-cert and --{flag}-key");
                return Err(CliError::Usage(why));
            }
        };
        let ca = ca.map(|file| Authority::read(&file)).transpose().map_err(refused)?;
        let identity = Identity::read(&cert, &key).map_err(refused)?;
        let tls = ServerTls::new(identity, ca.as_ref(), protocol).map_err(refused)?;
        check(&cert, tls.validity())?;
        Ok(Some(tls))
    }

    /// Whom a worker believes, and what it shows; `None` where nobody named a file.
    pub fn client(&self) -> Result<Option<ClientTls>, CliError> {
        let files = self.certs.as_ref().map(CertFiles::new);
        let Some(ca) = self.ca.clone().or_else(|| files.as_ref().map(CertFiles::ca)) else {
            return match (&self.cert, &self.key) {
                (None, None) => Ok(None),
                _ => Err(CliError::Usage(
                    "a certificate is shown over TLS only: name the router's CA with --tls-ca FILE"
                        .to_string(),
                )),
            };
        };
        // A folder without one is a worker's that joins by a token.
        let of_folder = files.map(|files| (files.cert("worker"), files.key("worker")));
        let of_folder = of_folder.filter(|(cert, key)| cert.exists() || key.exists()).unzip();
        let identity = match (self.cert.clone().or(of_folder.0), self.key.clone().or(of_folder.1)) {
            (Some(cert), Some(key)) => {
                let identity = Identity::read(&cert, &key).map_err(refused)?;
                check(&cert, Validity::of(&identity))?;
                Some(identity)
            }
            (None, None) => None,
            _ => return Err(CliError::Usage("--tls-cert and --tls-key go together".to_string())),
        };
        let ca = Authority::read(&ca).map_err(refused)?;
        ClientTls::new(&ca, identity).map(Some).map_err(refused)
    }
}

pub fn refused(error: TlsError) -> CliError {
    let hint = match &error {
        TlsError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "; `gaterail certs init DIR` makes certificates"
        }
        _ => "",
    };
    CliError::Refused(format!("{error}{hint}"))
}

/// A certificate that has ended is no use to anybody.
fn check(cert: &Path, validity: Validity) -> Result<(), CliError> {
    let (cert, ends) = (cert.display(), date(validity.ends));
    if validity.has_ended() {
        return Err(CliError::Refused(format!(
            "the certificate in {cert} ended on {ends}: make new ones (gaterail certs init DIR --force) and bring ca.pem and worker*.pem to the workers"
        )));
    }
    if validity.days_left() < WARN_DAYS {
        let days = validity.days_left();
        terminal::note(&format!("gaterail: the certificate in {cert} ends on {ends}, in {days} days"));
    }
    Ok(())
}
