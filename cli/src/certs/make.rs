//! A CA, and what it signs: a certificate that only serves, and one that only calls.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use gaterail_cluster::tls::WORKER_NAME;

use crate::error::CliError;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Clocks of other machines may be behind this one.
const BEFORE: Duration = Duration::from_secs(3600);

/// Certificates with their keys, in PEM.
pub struct Made {
    pub ca: Pair,
    pub router: Pair,
    pub worker: Pair,
    /// Seconds since 1970.
    pub ends: u64,
}

pub struct Pair {
    pub cert: String,
    pub key: String,
}

/// The keys of all three.
pub struct Keys {
    ca: KeyPair,
    router: KeyPair,
    worker: KeyPair,
}

impl Keys {
    fn new() -> Result<Keys, rcgen::Error> {
        Ok(Keys { ca: KeyPair::generate()?, router: KeyPair::generate()?, worker: KeyPair::generate()? })
    }

    /// Of three texts in PEM: of the CA, the router and the workers.
    pub fn from_pem([ca, router, worker]: [&str; 3]) -> Result<Keys, CliError> {
        let key = |text| {
            KeyPair::from_pem(text).map_err(|error| {
                CliError::Refused(format!("a key that is not of gaterail certs init cannot be used: {error}"))
            })
        };
        Ok(Keys { ca: key(ca)?, router: key(router)?, worker: key(worker)? })
    }
}

/// All of them anew, from now on; the router has these names.
pub fn all(names: &[String], days: u32) -> Result<Made, CliError> {
    Keys::new().and_then(|keys| make(&keys, names, from_now(days))).map_err(failed)
}

/// New certificates for the same keys. The CA is the same to who believes its last one: it has that name and that key.
pub fn again(keys: &Keys, names: &[String], days: u32) -> Result<Made, CliError> {
    make(keys, names, from_now(days)).map_err(failed)
}

fn from_now(days: u32) -> (Duration, Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.saturating_sub(BEFORE), now + DAY * days)
}

fn failed(error: rcgen::Error) -> CliError {
    CliError::Refused(format!("making certificates: {error}"))
}

fn make(keys: &Keys, names: &[String], holds: (Duration, Duration)) -> Result<Made, rcgen::Error> {
    // Two CAs of one name could be taken for each other, to nobody's good.
    let id: String =
        keys.ca.public_key_raw().iter().skip(1).take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut ca = params(&format!("Gaterail CA {id}"), &[], holds)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_cert = ca.self_signed(&keys.ca)?.pem();
    let issuer = Issuer::from_params(&ca, &keys.ca);
    let signed = |key: &KeyPair, name: &str, names: &[String], purpose| -> Result<Pair, rcgen::Error> {
        let mut params = params(name, names, holds)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        Ok(Pair { cert: params.signed_by(key, &issuer)?.pem(), key: key.serialize_pem() })
    };
    let router = signed(&keys.router, "Gaterail router", names, ExtendedKeyUsagePurpose::ServerAuth)?;
    let worker_names = [WORKER_NAME.to_string()];
    let worker = signed(&keys.worker, "Gaterail worker", &worker_names, ExtendedKeyUsagePurpose::ClientAuth)?;
    let ca = Pair { cert: ca_cert, key: keys.ca.serialize_pem() };
    Ok(Made { ca, router, worker, ends: holds.1.as_secs() })
}

fn params(
    name: &str,
    names: &[String],
    (begins, ends): (Duration, Duration),
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(begins.as_secs());
    params.not_after = epoch + Duration::from_secs(ends.as_secs());
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
