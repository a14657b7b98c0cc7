//! Whose certificate it is: a server's, or a worker's of this cluster. That a CA signed it says neither.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

use super::files::Authority;
use super::provider;

/// The name that `gaterail certs init` gives to workers. No host on a public network has it.
pub const WORKER_NAME: &str = "worker.gaterail.internal";

/// id-kp-clientAuth, 1.3.6.1.5.5.7.3.2 (RFC 5280, 4.2.1.12).
const CLIENT_AUTH: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 2];

/// Who is let in with a certificate.
#[derive(Clone)]
pub struct Members {
    /// Who has to have signed it.
    pub ca: Authority,
    /// The name that has to be among its names.
    pub name: ServerName<'static>,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Server,
    /// Said outright: a certificate that says nothing is nobody's ticket.
    Client,
}

impl Members {
    /// Workers with certificates of `gaterail certs init`.
    pub fn workers(ca: Authority) -> Members {
        // It is a name of a host.
        Members { ca, name: ServerName::try_from(WORKER_NAME).expect("a name") }
    }

    /// Workers with certificates of another CA, which have this name; `None` where no certificate can have it.
    pub fn named(ca: Authority, name: &str) -> Option<Members> {
        Some(Members { ca, name: ServerName::try_from(name.to_string()).ok()? })
    }

    pub(super) fn verifier(&self) -> Result<Arc<MemberVerifier>, VerifierBuilderError> {
        let signed =
            WebPkiClientVerifier::builder_with_provider(self.ca.roots.clone(), provider()).build()?;
        Ok(Arc::new(MemberVerifier { signed, name: self.name.clone() }))
    }
}

/// What rustls asks of a client's certificate, and then that it is a client's, of this name.
#[derive(Debug)]
pub(super) struct MemberVerifier {
    signed: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for MemberVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.signed.verify_client_cert(certificate, intermediates, now)?;
        is_for(Purpose::Client, certificate, now)?;
        verify_server_name(&ParsedCertificate::try_from(certificate)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// What a certificate says of itself, whoever signed it. `now` has to be a time when it holds.
pub(super) fn is_for(
    purpose: Purpose,
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let certificate = EndEntityCert::try_from(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let usage = match purpose {
        Purpose::Server => KeyUsage::server_auth(),
        Purpose::Client => KeyUsage::required(CLIENT_AUTH),
    };
    // The certificate alone: one of an authority between need not say what it is for.
    match certificate.verify_for_usage(&[], &[], &[], now, usage, None, None) {
        // The last thing to be looked at, and nobody is there who could have signed it.
        Err(webpki::Error::UnknownIssuer) => Ok(()),
        _ => Err(CertificateError::InvalidPurpose),
    }
}
