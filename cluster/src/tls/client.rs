//! The side that connects: believes a CA, and shows a certificate where it has one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint, Error};

use super::files::{Authority, Identity};
use super::refusal::Ours;
use super::{TlsError, provider, refusal};

/// A server looks at its client's certificate after the client takes the handshake for done. It says something at once if it is
/// content, and says why if it is not; no server is waited for longer than this.
const VERDICT_MAX: Duration = Duration::from_secs(1);

/// What a worker needs to reach a router over TLS.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    ours: Arc<Ours>,
}

/// Why there is no connection, in a sentence that says what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsTrouble(pub String);

impl ClientTls {
    /// Believes servers that `ca` signed, and shows them `identity`.
    pub fn new(ca: &Authority, identity: Option<Identity>) -> Result<ClientTls, TlsError> {
        let ours = Ours {
            ca: ca.file.display().to_string(),
            cert: identity.as_ref().map(|identity| identity.file.display().to_string()),
        };
        let wrong = |error: &dyn std::fmt::Display| TlsError::File {
            file: ours.cert.as_ref().unwrap_or(&ours.ca).into(),
            why: format!("cannot be used: {error}"),
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?
            .with_root_certificates(ca.roots.clone());
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { chain, key, .. }) => {
                config.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Both sides look at each other's certificate each time.
        config.resumption = Resumption::disabled();
        Ok(ClientTls { connector: TlsConnector::from(Arc::new(config)), ours: Arc::new(ours) })
    }

    /// Connects to the endpoint's host and port. A [`TlsTrouble`] is among the causes of an error that TLS is the cause of.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        endpoint.connect_with_connector(self.clone()).await
    }

    async fn open(self, uri: Uri) -> Result<TokioIo<TlsStream<TcpStream>>, io::Error> {
        let trouble = |why: String| io::Error::other(TlsTrouble(why));
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_string())
            .map_err(|_| trouble(format!("{host:?} is no name that a certificate can have")))?;
        let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
        stream.set_nodelay(true)?;
        let refused = |error: io::Error| trouble(refusal::of_server(&error, &self.ours));
        let mut stream = self.connector.connect(name, stream).await.map_err(refused)?;
        if let Ok(verdict) = timeout(VERDICT_MAX, stream.fill_buf()).await {
            verdict.map_err(refused)?;
        }
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for ClientTls {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().open(uri))
    }
}
