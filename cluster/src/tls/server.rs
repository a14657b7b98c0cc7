//! The side that listens: shows its certificate, and looks at those of its clients where it has a CA for them.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::NoServerSessionStorage;

use super::files::Identity;
use super::purpose::Members;
use super::{TlsError, provider, refusal};

pub use tokio_rustls::server::TlsStream;

/// The first byte of a TLS connection: a record of a handshake. No other protocol here begins with it.
const HANDSHAKE: u8 = 22;

/// Whether a connection that begins with this byte may be TLS.
pub fn is_hello(first: u8) -> bool {
    first == HANDSHAKE
}

/// A port's side of TLS.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    /// Clients have to show a certificate, which is of the CA in this file, for this name.
    clients: Option<(String, String)>,
}

impl ServerTls {
    /// Shows `identity`, and takes only `clients` where they are given. `protocol` is what is spoken, as ALPN names it.
    pub fn new(
        identity: Identity,
        clients: Option<&Members>,
        protocol: &[u8],
    ) -> Result<ServerTls, TlsError> {
        let Identity { chain, key, file } = identity;
        let wrong = |file: &std::path::Path, error: &dyn std::fmt::Display| TlsError::File {
            file: file.to_path_buf(),
            why: format!("cannot be used: {error}"),
        };
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&file, &error))?;
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(members) => config.with_client_cert_verifier(
                members.verifier().map_err(|error| wrong(&members.ca.file, &error))?,
            ),
        };
        let mut config = config.with_single_cert(chain, key).map_err(|error| wrong(&file, &error))?;
        config.alpn_protocols = vec![protocol.to_vec()];
        if clients.is_some() {
            // A session that goes on would be one whose certificate nobody looked at again: it may have ended since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        let named = |members: &Members| (members.ca.file.display().to_string(), members.name.to_str().into());
        let clients = clients.map(named);
        Ok(ServerTls { acceptor: TlsAcceptor::from(Arc::new(config)), clients })
    }

    /// Whether whoever gets in has shown a certificate.
    pub fn proves_clients(&self) -> bool {
        self.clients.is_some()
    }

    /// The handshake. The error is a sentence about the client, for an operator; empty where the client just went away.
    pub async fn accept<S>(&self, stream: S) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let refused = |error: std::io::Error| refusal::of_client(&error, self.clients.as_ref());
        self.acceptor.accept(stream).await.map_err(refused)
    }
}
