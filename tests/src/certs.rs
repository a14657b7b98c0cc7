//! Certificates for tests, the bad ones included: of another CA, ended, not begun, for another purpose or another name.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gaterail_cluster::tls::{Authority, ClientTls, Identity, Members, ServerTls, WORKER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

pub use rcgen::ExtendedKeyUsagePurpose as Purpose;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA of a test, and the folder where its files are.
pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    folder: TempDir,
}

/// When a certificate holds, in days from now.
pub type Days = (i64, i64);

pub const NOW: Days = (-1, 1);

impl Ca {
    pub fn new(name: &str) -> Ca {
        let key = KeyPair::generate().expect("a key");
        let mut params = params(name, &[], NOW);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let folder = tempfile::tempdir().expect("a folder");
        let cert = params.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), cert.pem()).expect("written");
        Ca { params, key, folder }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn authority(&self) -> Authority {
        Authority::read(&self.file()).expect("a CA")
    }

    /// A certificate with its key, for one purpose or none that is said, and these names.
    pub fn sign(&self, purpose: impl Into<Option<Purpose>>, names: &[&str], holds: Days) -> Identity {
        let (cert, key) = self.files(purpose, names, holds);
        Identity::read(&cert, &key).expect("a certificate and its key")
    }

    pub fn files(
        &self,
        purpose: impl Into<Option<Purpose>>,
        names: &[&str],
        holds: Days,
    ) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let mut params = params("somebody", names, holds);
        params.extended_key_usages = purpose.into().into_iter().collect();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(&key, &issuer).expect("a certificate");
        let file = |kind: &str, text: &str| {
            let id: String = key.public_key_raw()[1..9].iter().map(|byte| format!("{byte:02x}")).collect();
            let file = self.folder.path().join(format!("{id}-{kind}.pem"));
            std::fs::write(&file, text).expect("written");
            file
        };
        (file("cert", &cert.pem()), file("key", &key.serialize_pem()))
    }

    /// A router of this machine, which takes only workers of this CA.
    pub fn server(&self) -> ServerTls {
        let identity = self.sign(Purpose::ServerAuth, &["127.0.0.1"], NOW);
        ServerTls::new(identity, Some(&Members::workers(self.authority())), b"h2").expect("a server's side")
    }

    /// A worker of this CA.
    pub fn client(&self) -> ClientTls {
        let identity = self.sign(Purpose::ClientAuth, &[WORKER_NAME], NOW);
        ClientTls::new(&self.authority(), Some(identity)).expect("a client's side")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn params(name: &str, names: &[&str], (begins, ends): Days) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let at = |days: i64| {
        let shift = DAY * days.unsigned_abs() as u32;
        let at = if days < 0 { now - shift } else { now + shift };
        date_time_ymd(1970, 1, 1) + Duration::from_secs(at.as_secs())
    };
    (params.not_before, params.not_after) = (at(begins), at(ends));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
