//! Errors of a handshake as sentences for whoever can mend it. Each goes on after "HOST:PORT: " or "PEER: ".

use std::io;

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription as Alert, CertificateError, Error, InvalidMessage};

use super::validity::{date, names};

/// Files that a client was given, for its sentences.
pub(super) struct Ours {
    pub ca: String,
    pub cert: Option<String>,
}

/// What a client says of its server.
pub(super) fn of_server(error: &io::Error, ours: &Ours) -> String {
    match tls(error) {
        Some(Error::InvalidCertificate(error)) => wrong_server(error, &ours.ca),
        Some(Error::AlertReceived(alert)) => match (alert, &ours.cert) {
            (Alert::CertificateRequired, _) | (Alert::HandshakeFailure, None) => {
                "it takes workers with a certificate only: give --certs DIR, or --tls-cert and --tls-key"
                    .to_string()
            }
            (Alert::NoApplicationProtocol, _) => {
                "it speaks TLS and no gRPC: is this the port of --cluster-listen?".to_string()
            }
            (alert, Some(cert)) => format!(
                "it does not accept the certificate in {cert} ({}): make one with the router's CA",
                alert_text(*alert)
            ),
            (alert, None) => format!("it broke the handshake off ({})", alert_text(*alert)),
        },
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "it does not speak TLS: start the router with --cluster-certs, or join without --certs"
                .to_string()
        }
        Some(other) => format!("no TLS with it: {other}"),
        None => format!("it ended the connection in the middle of the TLS handshake ({error})"),
    }
}

/// What a server says of its client; empty where there is nothing to mend.
pub(super) fn of_client(error: &io::Error, clients: Option<&(String, String)>) -> String {
    match tls(error) {
        Some(Error::NoCertificatesPresented) => {
            "it showed no certificate: start it with --certs DIR, or --tls-cert and --tls-key".to_string()
        }
        Some(Error::InvalidCertificate(error)) => match clients {
            Some((ca, name)) => wrong_client(error, ca, name),
            None => format!("its certificate cannot be believed: {error}"),
        },
        Some(Error::AlertReceived(alert)) => {
            format!("it does not accept this certificate ({}); its own words say why", alert_text(*alert))
        }
        Some(other) => format!("no TLS with it: {other}"),
        None => String::new(),
    }
}

fn tls(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn wrong_server(error: &CertificateError, ca: &str) -> String {
    use CertificateError as Why;
    match error {
        Why::UnknownIssuer | Why::BadSignature => {
            format!("its certificate is not of the CA in {ca}: bring the router's ca.pem here")
        }
        Why::ExpiredContext { not_after, .. } => format!(
            "its certificate ended on {}: make new ones (gaterail certs init DIR --force) and start the router again",
            day(not_after)
        ),
        Why::NotValidYetContext { not_before, .. } => {
            format!("its certificate begins on {}: is this machine's clock right?", day(not_before))
        }
        Why::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            format!(
                "its certificate is for {} and not for {expected}: join it by one of those names, or make one that has this, too (gaterail certs init DIR --host {expected})",
                names(presented)
            )
        }
        Why::InvalidPurposeContext { .. } | Why::InvalidPurpose => {
            "its certificate is no server's: the router shows router.pem, workers show worker.pem".to_string()
        }
        other => format!("its certificate cannot be believed: {other}"),
    }
}

fn wrong_client(error: &CertificateError, ca: &str, name: &str) -> String {
    use CertificateError as Why;
    match error {
        Why::UnknownIssuer | Why::BadSignature => {
            format!("its certificate is not of the CA in {ca}: bring worker.pem and worker-key.pem there")
        }
        Why::ExpiredContext { not_after, .. } => format!(
            "its certificate ended on {}: make new ones (gaterail certs init DIR --force)",
            day(not_after)
        ),
        Why::NotValidYetContext { not_before, .. } => {
            format!("its certificate begins on {}: is this machine's clock right?", day(not_before))
        }
        Why::InvalidPurposeContext { .. } | Why::InvalidPurpose => {
            "its certificate is no client's: workers show worker.pem".to_string()
        }
        Why::NotValidForNameContext { presented, .. } => format!(
            "its certificate is for {} and not for {name}: workers show worker.pem; --cluster-worker-name NAME is for those of another CA",
            names(presented)
        ),
        other => format!("its certificate cannot be believed: {other}"),
    }
}

fn day(time: &UnixTime) -> String {
    date(time.as_secs())
}

/// What a peer means by an alert, as far as certificates go.
fn alert_text(alert: Alert) -> String {
    match alert {
        Alert::UnknownCA | Alert::DecryptError => "it is of another CA".to_string(),
        Alert::CertificateExpired => "it has ended, or not begun".to_string(),
        Alert::BadCertificate => "it has not the name that the router asks of workers".to_string(),
        Alert::UnsupportedCertificate => "it is for another purpose".to_string(),
        other => format!("{other:?}"),
    }
}
