//! The port that workers join, and who is let in: on a network by certificates or by a token.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use gaterail_cluster::tls::ServerTls;
use gaterail_router::cluster::{Door, DoorError};

use super::settings::WorkerSettings;
use crate::error::CliError;
use crate::serve::run;
use crate::terminal;

/// The port for workers, bound before anything is loaded.
pub struct Bound {
    pub socket: TcpListener,
    pub address: SocketAddr,
    pub tls: Option<ServerTls>,
}

impl Bound {
    /// Where an operator wants it; `None` where nobody named one.
    pub fn asked(settings: &WorkerSettings) -> Result<Option<Bound>, CliError> {
        let Some(address) = settings.listen else { return Ok(None) };
        let tls = settings.tls.server("cluster-tls", b"h2")?;
        check_door(settings, address, tls.as_ref())?;
        let bound = Bound::at(address, tls)?;
        if bound.tls.is_none() && !address.ip().to_canonical().is_loopback() {
            terminal::note(
                "gaterail: workers join in clear, and others on the way can read the token and all rows; --cluster-certs DIR encrypts them (gaterail certs init)",
            );
        }
        Ok(Some(bound))
    }

    /// For processes of this machine alone.
    pub fn own() -> Result<Bound, CliError> {
        Bound::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None)
    }

    fn at(address: SocketAddr, tls: Option<ServerTls>) -> Result<Bound, CliError> {
        let socket = run::bind(address, "--cluster-listen")?;
        let address = socket.local_addr().map_err(CliError::io("asking for a socket's address"))?;
        Ok(Bound { socket, address, tls })
    }
}

/// Who may join there.
pub fn door(token: Option<&str>, address: SocketAddr, tls: Option<&ServerTls>) -> Result<Door, DoorError> {
    match tls.is_some_and(ServerTls::proves_clients) {
        true => Door::behind_certificates(token),
        false => Door::new(token, address),
    }
}

/// A port that others reach asks for certificates or for a token.
fn check_door(
    settings: &WorkerSettings,
    address: SocketAddr,
    tls: Option<&ServerTls>,
) -> Result<(), CliError> {
    door(settings.token.as_deref(), address, tls).map(drop).map_err(|error| {
        let port = address.port();
        CliError::Refused(format!(
            "{error}. Make certificates, and give the workers theirs:\n  \
         gaterail certs init certs --host THIS_HOST\n  \
         gaterail serve … --cluster-listen {address} --cluster-certs certs\n  \
         gaterail worker --join THIS_HOST:{port} --certs certs\n\
         Or a token, which travels in clear where there are no certificates:\n  \
         (umask 077; head -c 24 /dev/urandom | base64 > join.token)\n  \
         gaterail serve … --cluster-listen {address} --join-token-file join.token\n  \
         gaterail worker --join THIS_HOST:{port} --token-file join.token"
        ))
    })
}
