//! What an operator decides about workers, and every limit on what they may do.

use std::net::SocketAddr;
use std::time::Duration;

use gaterail_cluster::membership::Policy;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::routes::WORKERS_MAX;
use crate::auth::KeyHash;

/// A token that others could guess is none.
const TOKEN_BYTES_MIN: usize = 16;

/// How workers are taken in.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    pub policy: Policy,
    pub limits: ClusterLimits,
    /// Whether workers of this host are offered memory to share.
    pub shared_memory: bool,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        let (policy, limits) = (Policy::default(), ClusterLimits::default());
        ClusterOptions { policy, limits, shared_memory: true }
    }
}

/// Limits on workers.
#[derive(Clone, Debug)]
pub struct ClusterLimits {
    /// Workers at once, those that are joining included.
    pub workers_max: usize,
    /// From the call of Join to the end of Register.
    pub register_time_max: Duration,
    /// From Welcome until rows can travel.
    pub exchange_time_max: Duration,
    /// Of a message of Join; frames and weights come in pieces of their own size.
    pub message_bytes_max: usize,
    /// A worker's name, version, device and host.
    pub text_bytes_max: usize,
    /// Messages that wait for a worker; who takes none is dismissed.
    pub outgoing_max: usize,
    /// Messages of all workers that wait for control.
    pub inputs_max: usize,
    /// Workers that get weights at once; others wait.
    pub experts_streams_max: usize,
    /// Workers send heartbeats this often.
    pub heartbeat: Duration,
}

impl Default for ClusterLimits {
    fn default() -> ClusterLimits {
        ClusterLimits {
            workers_max: WORKERS_MAX,
            register_time_max: Duration::from_secs(5),
            exchange_time_max: Duration::from_secs(5),
            message_bytes_max: 4 << 20,
            text_bytes_max: 256,
            outgoing_max: 64,
            inputs_max: 1024,
            experts_streams_max: 2,
            heartbeat: Duration::from_millis(50),
        }
    }
}

/// Who may join: everybody on this machine, or who knows the token; behind TLS, who has a certificate.
#[derive(Clone)]
pub struct Door {
    token: Option<KeyHash>,
}

/// Why a port for workers is not opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("others can reach {0}, so that workers have to bring a token or a certificate")]
    Open(SocketAddr),
    #[error("a token of {0} characters can be guessed; it needs {TOKEN_BYTES_MIN} at least")]
    Short(usize),
}

impl Door {
    /// The door of the port at `address`.
    pub fn new(token: Option<&str>, address: SocketAddr) -> Result<Door, DoorError> {
        match token {
            None if !address.ip().to_canonical().is_loopback() => Err(DoorError::Open(address)),
            token => Door::behind_certificates(token),
        }
    }

    /// The door of a port that nobody reaches without a certificate: a token is asked for where there is one.
    pub fn behind_certificates(token: Option<&str>) -> Result<Door, DoorError> {
        match token {
            Some(token) if token.len() < TOKEN_BYTES_MIN => Err(DoorError::Short(token.len())),
            token => Ok(Door { token: token.map(KeyHash::of) }),
        }
    }

    /// Whether a call brings the token. How long it takes says nothing about how much of it was right.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(token) = &self.token else { return Ok(()) };
        let brought = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let brought = brought.and_then(|text| text.strip_prefix("Bearer "));
        match brought {
            None => Err(Status::unauthenticated(
                "this router takes workers with a token only; give it with --token",
            )),
            Some(text) if bool::from(token.matches(&KeyHash::of(text))) => Ok(()),
            Some(_) => Err(Status::unauthenticated("the token is not this router's")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn a_port_that_others_reach_has_a_token() {
        let door = |token, address: &str| Door::new(token, address.parse().unwrap());
        assert!(door(None, "127.0.0.1:1").is_ok() && door(None, "[::1]:1").is_ok());
        for address in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(matches!(door(None, address), Err(DoorError::Open(_))), "{address}");
            assert!(door(Some(TOKEN), address).is_ok(), "{address}");
        }
        assert!(matches!(door(Some("short"), "127.0.0.1:1"), Err(DoorError::Short(5))));
    }

    #[test]
    fn only_the_token_opens() {
        let door = Door::new(Some(TOKEN), "127.0.0.1:1".parse().unwrap()).unwrap();
        let with = |value: Option<&str>| {
            let mut metadata = MetadataMap::new();
            value.map(|value| metadata.insert("authorization", value.parse().unwrap()));
            door.check(&metadata)
        };
        assert!(with(Some("Bearer 0123456789abcdef")).is_ok());
        for wrong in
            [None, Some(""), Some(TOKEN), Some("Bearer "), Some("Bearer 0123456789abcdeF"), Some("bearer x")]
        {
            let error = with(wrong).expect_err("no token");
            assert_eq!(error.code(), tonic::Code::Unauthenticated, "{wrong:?}");
        }
    }
}
