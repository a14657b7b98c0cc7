//! Who is asked: the origin of an address, which decides where the token goes, and the next address of a
//! redirect.

use std::fmt;

use ureq::http::Uri;

/// Scheme, host and port: what a token belongs to.
#[derive(PartialEq, Eq)]
pub struct Origin {
    pub scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    pub fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host()?.to_ascii_lowercase();
        Some(Self { scheme, host, port: uri.port_u16().unwrap_or(default_port) })
    }

    pub fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "localhost" | "127.0.0.1" | "[::1]")
    }
}

/// An address without its query, which may hold a signature.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// Where a redirect leads, or why it is not followed: never from https to http, and to no other scheme.
pub fn next_hop(from: &Uri, location: Option<&str>) -> Result<Uri, String> {
    let location = location.ok_or("it was redirected to nowhere")?;
    let scheme = from.scheme_str().unwrap_or("https");
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        let authority = from.authority().map_or("", |authority| authority.as_str());
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_owned()
    };
    let bad = "it was redirected to something that is not an http or https address";
    let uri: Uri = absolute.parse().map_err(|_| bad)?;
    let target = Origin::of(&uri).ok_or(bad)?;
    if scheme == "https" && target.scheme != "https" {
        return Err(format!("it was redirected from https to {target}, without encryption"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("it was redirected to an address with a password in it".to_owned());
    }
    Ok(uri)
}
