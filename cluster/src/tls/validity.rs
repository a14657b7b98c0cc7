//! Until when a certificate holds, and for which names: asked of the very code that judges it in a handshake.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{CertificateError, Error, RootCertStore};

use super::files::{Authority, Identity};
use super::names::alternative_names;
use super::provider;
use super::purpose::{Members, Purpose, is_for};

/// No host has this name (RFC 2606).
const NOBODY: &str = "nobody.invalid";

/// When a certificate holds, in seconds since 1970; 0 and `u64::MAX` where nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub begins: u64,
    pub ends: u64,
}

impl Validity {
    pub fn of(identity: &Identity) -> Validity {
        Validity::read(&identity.chain[0])
    }

    /// Of a CA's own certificate.
    pub fn of_authority(ca: &Authority) -> Validity {
        Validity::read(&ca.first)
    }

    fn read(certificate: &CertificateDer<'static>) -> Validity {
        // When it holds is looked at first, whoever may have signed it.
        let at = |seconds| judged(std::slice::from_ref(certificate), &anchor(certificate), seconds);
        let begins = match at(0) {
            Some(CertificateError::NotValidYetContext { not_before, .. }) => not_before.as_secs(),
            _ => 0,
        };
        let ends = match at(u64::MAX) {
            Some(CertificateError::ExpiredContext { not_after, .. }) => not_after.as_secs(),
            _ => u64::MAX,
        };
        Validity { begins, ends }
    }

    pub fn has_ended(&self) -> bool {
        self.ends < now()
    }

    pub fn has_begun(&self) -> bool {
        self.begins <= now()
    }

    /// Whole days that are left.
    pub fn days_left(&self) -> u64 {
        self.ends.saturating_sub(now()) / (24 * 3600)
    }
}

impl Identity {
    /// The names that a server's certificate has; the error says why `ca` would not be believed in it.
    pub fn names(&self, ca: &Authority) -> Result<Vec<String>, CertificateError> {
        self.names_at(ca, now())
    }

    /// The same while it held, if it does not any more.
    pub fn names_of_old(&self, ca: &Authority) -> Result<Vec<String>, CertificateError> {
        let told = self.names_at(ca, Validity::of(self).begins)?;
        Ok(alternative_names(&self.chain[0]).unwrap_or(told))
    }

    fn names_at(&self, ca: &Authority, seconds: u64) -> Result<Vec<String>, CertificateError> {
        match judged(&self.chain, &ca.roots, seconds) {
            Some(CertificateError::NotValidForNameContext { presented, .. }) => {
                Ok(presented.iter().map(|name| plain(name)).collect())
            }
            Some(error) => Err(error),
            None => Ok(vec![NOBODY.to_string()]),
        }
    }

    /// Whether it says that it may be used for this.
    pub fn is_for(&self, purpose: Purpose) -> bool {
        let begins = UnixTime::since_unix_epoch(Duration::from_secs(Validity::of(self).begins));
        is_for(purpose, &self.chain[0], begins).is_ok()
    }

    /// Whether a server that asks for certificates of such members lets it in; the error says why not.
    pub fn is_of(&self, members: &Members) -> Result<(), Error> {
        let verifier = members.verifier().map_err(|error| Error::General(error.to_string()))?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now()));
        verifier.verify_client_cert(&self.chain[0], &self.chain[1..], time).map(drop)
    }
}

/// What is wrong with a server's certificate at a time.
fn judged(
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
    seconds: u64,
) -> Option<CertificateError> {
    let (certificate, between) = chain.split_first()?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build().ok()?;
    let name = ServerName::try_from(NOBODY).ok()?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    match verifier.verify_server_cert(certificate, between, &name, &[], time) {
        Err(Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    }
}

fn anchor(certificate: &CertificateDer<'static>) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // Where it cannot be one there is no verifier, and nothing is told.
    let _ = roots.add(certificate.clone());
    Arc::new(roots)
}

/// `localhost, 127.0.0.1`.
pub(super) fn names(presented: &[String]) -> String {
    match presented {
        [] => "no name at all".to_string(),
        names => names.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", "),
    }
}

/// `DnsName("localhost")` without its kind.
fn plain(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    let name = inner.unwrap_or(name).trim_matches('"');
    name.parse::<IpAddr>().map_or_else(|_| name.to_string(), |address| address.to_string())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `2029-02-22`, of seconds since 1970 in UTC. Days to a date as Howard Hinnant's `civil_from_days` has it.
pub fn date(seconds: u64) -> String {
    let days = seconds / (24 * 3600) + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (1_795_132_800, "2026-11-20"),
            (4_102_444_799, "2099-12-31"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn names_are_said_plainly() {
        assert_eq!(names(&["DnsName(\"a.b\")".to_string(), "IpAddress(0::1)".to_string()]), "a.b, ::1");
        assert_eq!(names(&[]), "no name at all");
    }
}
