//! By which names a server without keys may be called.
//!
//! A web page cannot read another origin's answers, but its own name may lead to 127.0.0.1 the second time that it is looked
//! up (DNS rebinding): then the browser takes us for a part of the page. The request still carries the page's name in
//! `Host`, and that is no name of ours. No browser speaks gRPC's HTTP/2 without TLS, so that port has no such visitors.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::openai::{ApiError, ErrorKind};
use crate::serving::Entrance;

/// Names beside `localhost` and the loopback addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    /// As the operator lists them; `*` is all.
    pub listed: Vec<String>,
    /// Where the server listens.
    pub own: Vec<IpAddr>,
}

impl Hosts {
    /// `host` as it stands in a request, with or without a port.
    pub fn allows(&self, host: &str) -> bool {
        let listed =
            |name: &str| self.listed.iter().any(|listed| listed == "*" || listed.eq_ignore_ascii_case(name));
        // Also where it has a port.
        if listed(host) {
            return true;
        }
        let Ok(authority) = host.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host();
        // A name may end in the dot of the root.
        let name = name.strip_suffix('.').unwrap_or(name);
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        match address.parse::<IpAddr>() {
            Ok(address) => {
                address.to_canonical().is_loopback()
                    || self.own.contains(&address)
                    || listed(address_text(name))
            }
            Err(_) => name.eq_ignore_ascii_case("localhost") || listed(name),
        }
    }
}

/// As an operator may write it: an IPv6 address without its brackets.
fn address_text(name: &str) -> &str {
    name.trim_matches(['[', ']'])
}

/// Refuses what is called by a name that is none of ours. Without a `Host` no browser has sent it.
pub async fn hosts(State(entrance): State<Entrance>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let host = request.uri().authority().map(Authority::as_str).or(host);
    let allowed = match (&entrance.hosts, host) {
        (Some(hosts), Some(host)) if entrance.gate.is_open() => hosts.allows(host),
        _ => true,
    };
    if allowed {
        return next.run(request).await;
    }
    let message = "this server is not called by this name (the Host header); see --allowed-hosts";
    ApiError::new(ErrorKind::Forbidden, message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ours_and_of_others() {
        let hosts = Hosts {
            listed: vec!["gpu.example".into(), "fe80::7".into()],
            own: vec!["127.0.0.1".parse().expect("an address"), "192.168.1.9".parse().expect("an address")],
        };
        for ours in [
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:8000",
            "127.0.0.53:1",
            "[::1]",
            "[::1]:8000",
            "[::ffff:127.0.0.1]:8000",
            "192.168.1.9:8000",
            "gpu.example",
            "GPU.example:8000",
            "[fe80::7]:80",
        ] {
            assert!(hosts.allows(ours), "{ours}");
        }
        for others in [
            "",
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example@127.0.0.1",
            "127.0.0.1@evil.example",
            "a.gpu.example",
            "192.168.1.8",
            "[::2]:8000",
            "0.0.0.0:8000",
            "local host",
        ] {
            assert!(!hosts.allows(others), "{others}");
        }
        let all = Hosts { listed: vec!["*".into()], own: Vec::new() };
        assert!(all.allows("evil.example"));
    }
}
