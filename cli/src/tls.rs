//! Flags that name certificates, of routers and of workers: in, files; out, what a handshake takes.

use std::path::{Path, PathBuf};

use gaterail_cluster::tls::{
    Authority, CertFiles, ClientTls, Identity, Members, Purpose, ServerTls, TlsError, Validity, date,
};

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
    /// What workers are called by a CA that is not of `gaterail certs init`.
    pub worker_name: Option<String>,
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
        let clients = ca.map(|file| self.members(&file)).transpose()?;
        let identity = Identity::read(&cert, &key).map_err(refused)?;
        check(&identity, Purpose::Server)?;
        ServerTls::new(identity, clients.as_ref(), protocol).map(Some).map_err(refused)
    }

    /// Whose certificates open a port: nobody's without a worker's name.
    fn members(&self, ca: &Path) -> Result<Members, CliError> {
        let ca = Authority::read(ca).map_err(refused)?;
        match &self.worker_name {
            None => Ok(Members::workers(ca)),
            Some(name) => Members::named(ca, name).ok_or_else(|| {
                CliError::Usage(format!(
                    "--cluster-worker-name: {name:?} is no name that a certificate can have"
                ))
            }),
        }
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
                check(&identity, Purpose::Client)?;
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

/// A certificate that has ended, has not begun or is for something else is no use to anybody.
fn check(identity: &Identity, purpose: Purpose) -> Result<(), CliError> {
    let (cert, validity) = (identity.file().display(), Validity::of(identity));
    let (begins, ends) = (date(validity.begins), date(validity.ends));
    if validity.has_ended() {
        return Err(CliError::Refused(format!(
            "the certificate in {cert} ended on {ends}: make new ones (gaterail certs init DIR --force) and bring ca.pem and worker*.pem to the workers"
        )));
    }
    if !validity.has_begun() {
        return Err(CliError::Refused(format!(
            "the certificate in {cert} begins on {begins}: is this machine's clock right?"
        )));
    }
    if !identity.is_for(purpose) {
        let whose = match purpose {
            Purpose::Server => "no server's: a router shows router.pem",
            Purpose::Client => "no client's: a worker shows worker.pem",
        };
        return Err(CliError::Refused(format!("the certificate in {cert} is {whose}")));
    }
    if validity.days_left() < WARN_DAYS {
        let days = validity.days_left();
        terminal::note(&format!("gaterail: the certificate in {cert} ends on {ends}, in {days} days"));
    }
    Ok(())
}
