//! HTTP to the hub: one request with its redirects, and what became of it.
//!
//! In: a path below the endpoint. Out: an `Answer` whose body streams, or a `Fault` that says whether another
//! attempt may help. The token goes to the endpoint's own scheme, host and port, and nowhere else: a redirect
//! to the host that has the bytes is followed without it.

use std::fmt;
use std::io;
use std::time::Duration;

use ureq::http::{HeaderMap, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::checksum::BlobId;
use super::config::{HubConfig, Token};
use super::error::{Denied, HubError};
use super::limits::REDIRECTS_MAX;
use super::name::{Commit, RepoSpec, percent_encoded, visible};
use super::origin::{Origin, next_hop};
use crate::roots;

pub struct Client<'a> {
    agent: Agent,
    pub config: &'a HubConfig,
    home: Origin,
}

/// A response with its body still to be read.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub linked: Linked,
    pub body: Body,
}

/// What the hub itself says of a file, whoever sends the bytes.
#[derive(Clone, Debug, Default)]
pub struct Linked {
    pub id: Option<BlobId>,
    pub size: Option<u64>,
    pub commit: Option<String>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Fault {
    /// Another attempt may help. `after` is the pause that the server asked for.
    Again { why: String, status: Option<u16>, after: Option<Duration>, reached: bool },
    /// The hub said no.
    Refused(Refusal),
    /// Nothing will help.
    Fatal(HubError),
}

impl Fault {
    /// The connection stood, and then something broke.
    pub fn again(why: String) -> Self {
        Self::Again { why, status: None, after: None, reached: true }
    }
}

#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    /// `X-Error-Code`.
    code: String,
    /// `X-Error-Message`, made printable.
    message: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    /// From `offset` on.
    Read { offset: u64 },
    /// The headers that the hub itself sends; a redirect to another host is not followed.
    Describe,
}

impl<'a> Client<'a> {
    pub fn new(config: &'a HubConfig) -> Result<Self, HubError> {
        let bad = |why: &str| HubError::BadSetting { name: "HF_ENDPOINT".to_owned(), why: why.to_owned() };
        let uri: Uri = config.endpoint.parse().map_err(|_| bad("it is not an address"))?;
        let home = Origin::of(&uri).ok_or_else(|| bad("it is not an http or https address"))?;
        let patience = &config.patience;
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("gaterail/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect_timeout))
            .timeout_connect(Some(patience.connect_timeout))
            .timeout_recv_response(Some(patience.response_timeout))
            .timeout_per_read(Some(patience.read_timeout))
            .timeout_per_write(Some(patience.read_timeout));
        if home.is_loopback() {
            builder = builder.proxy(None);
        }
        if let Some(roots) = trusted_roots(config)? {
            builder = builder.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self { agent: builder.build().into(), config, home })
    }

    /// `GET` of a path below the endpoint, from byte `offset` on.
    pub fn read(&self, path: &str, offset: u64) -> Result<Answer, Fault> {
        self.send(path, Method::Read { offset })
    }

    /// What the hub says of a file, without its bytes.
    pub fn describe(&self, path: &str) -> Result<Linked, Fault> {
        let mut answer = self.send(path, Method::Describe)?;
        if answer.status == 200 && answer.linked.size.is_none() {
            answer.linked.size =
                text_of(&answer.headers, "content-length").and_then(|text| text.parse().ok());
        }
        Ok(answer.linked)
    }

    fn send(&self, path: &str, method: Method) -> Result<Answer, Fault> {
        let mut uri: Uri = format!("{}{path}", self.config.endpoint)
            .parse()
            .map_err(|_| bad_answer(path, "the address made from it is not valid"))?;
        let mut linked = Linked::default();
        for _ in 0..=REDIRECTS_MAX {
            let at_home = self.is_home(&uri);
            let response = self.send_once(&uri, method)?;
            let (parts, body) = response.into_parts();
            if at_home {
                linked.take_from(&parts.headers);
            }
            let status = parts.status.as_u16();
            match status {
                200 | 206 | 416 => return Ok(Answer { status, headers: parts.headers, linked, body }),
                301 | 302 | 303 | 307 | 308 => {
                    uri = next_hop(&uri, text_of(&parts.headers, "location"))
                        .map_err(|why| bad_answer(path, &why))?;
                    if method == Method::Describe && !self.is_home(&uri) {
                        return Ok(Answer { status, headers: parts.headers, linked, body });
                    }
                }
                _ => return Err(refused(status, &parts.headers, at_home, &uri)),
            }
        }
        Err(bad_answer(path, &format!("it was redirected more than {REDIRECTS_MAX} times")))
    }

    fn is_home(&self, uri: &Uri) -> bool {
        Origin::of(uri).as_ref() == Some(&self.home)
    }

    /// The token, if the address is the endpoint's and it may be sent at all.
    pub fn token_for(&self, uri: &Uri) -> Option<&Token> {
        self.config.token_sent().filter(|_| self.is_home(uri))
    }

    fn send_once(&self, uri: &Uri, method: Method) -> Result<ureq::http::Response<Body>, Fault> {
        let mut request = match method {
            Method::Read { .. } => self.agent.get(uri),
            Method::Describe => self.agent.head(uri),
        }
        .header("accept-encoding", "identity");
        if let Some(token) = self.token_for(uri) {
            request = request.header("authorization", token.bearer());
        }
        if let Method::Read { offset: offset @ 1.. } = method {
            request = request.header("range", format!("bytes={offset}-"));
        }
        request.call().map_err(|error| self.not_sent(error, uri))
    }

    /// What it means that a request got no response.
    fn not_sent(&self, error: ureq::Error, uri: &Uri) -> Fault {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof};
        let host = visible(uri.host().unwrap_or_default());
        let proxy =
            self.agent.config().proxy().filter(|_| !Origin::of(uri).is_some_and(|at| at.is_loopback()));
        let through = proxy.map_or(String::new(), |proxy| {
            format!(" (asked through the proxy {}:{})", visible(proxy.host()), proxy.port())
        });
        let again = |why: &str, reached| {
            let why = format!("{host}{through}: {}", visible(why));
            Fault::Again { why, status: None, after: None, reached }
        };
        let fatal = |error: &dyn fmt::Display| {
            let hint = "If a proxy with a certificate of its own is on the way, set SSL_CERT_FILE to that certificate.";
            let why = format!("{host}{through}: {}", visible(&error.to_string()));
            let endpoint = self.config.endpoint.clone();
            Fault::Fatal(HubError::Unreachable { endpoint, why, hint: hint.to_owned() })
        };
        match error {
            ureq::Error::HostNotFound => again("the name is not known", false),
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                again("no answer", false)
            }
            ureq::Error::Timeout(_) => again("the server fell silent", true),
            ureq::Error::Io(error) => match error.kind() {
                InvalidData => fatal(&error),
                // The connection stood. Any other kind is of a host that is not found or not reached.
                BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => {
                    again(&error.to_string(), true)
                }
                _ => again(&error.to_string(), false),
            },
            error @ (ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_)) => {
                again(&error.to_string(), false)
            }
            ureq::Error::Protocol(error) => again(&error.to_string(), true),
            error => fatal(&error),
        }
    }

    /// The refusal of something of `repo`, as an error for the user.
    pub fn refusal(&self, repo: &RepoSpec, what: &str, refusal: Refusal) -> HubError {
        let Refusal { status, code, message } = refusal;
        let token = self.config.token_report();
        let endpoint = self.config.endpoint.clone();
        let said = if message.is_empty() { String::new() } else { format!(": {message}") };
        match (status, code.as_str(), self.config.token_sent()) {
            (401 | 404, "RepoNotFound", _) => {
                HubError::NoSuchRepo { repo: repo.id().to_owned(), endpoint, status, token }
            }
            (404, "RevisionNotFound", _) => HubError::NoSuchRevision {
                repo: repo.id().to_owned(),
                revision: repo.revision().to_owned(),
                endpoint,
            },
            (404, "EntryNotFound", _) => HubError::BadAnswer {
                what: what.to_owned(),
                why: "the repository lists it but does not have it (HTTP 404)".to_owned(),
            },
            (404, ..) => HubError::NoSuchRepo { repo: repo.id().to_owned(), endpoint, status, token },
            (401, code, Some(token)) if code != "GatedRepo" => HubError::TokenRefused {
                source_name: token.origin.clone(),
                status,
                hint: format!("It may be mistyped or expired; create another at {endpoint}/settings/tokens."),
            },
            (401 | 403, code, _) => HubError::Denied(Box::new(Denied {
                repo: repo.id().to_owned(),
                what: match (status, code) {
                    (_, "GatedRepo") => "gated",
                    (401, _) => "gated, private or misspelt",
                    _ => "gated or private",
                },
                status,
                said,
                page: format!("{endpoint}/{}", repo.id()),
                endpoint,
                token,
            })),
            _ => HubError::Answered { what: what.to_owned(), status, said, attempts: 1 },
        }
    }
}

/// The path of a file's bytes below the endpoint.
pub fn resolve_path(repo: &RepoSpec, commit: &Commit, file: &str) -> String {
    format!("/{}/resolve/{commit}/{}", repo.id(), percent_encoded(file, b"/"))
}

impl Linked {
    fn take_from(&mut self, headers: &HeaderMap) {
        let text = |name| text_of(headers, name);
        if let Some(id) = text("x-linked-etag").or_else(|| text("etag")).and_then(BlobId::parse) {
            self.id = Some(id);
        }
        if let Some(size) = text("x-linked-size").and_then(|size| size.parse().ok()) {
            self.size = Some(size);
        }
        if let Some(commit) = text("x-repo-commit") {
            self.commit = Some(visible(commit));
        }
    }
}

/// What a failed read of a body means; `ureq` wraps its own errors in it.
pub fn body_fault(error: io::Error) -> String {
    match ureq::Error::from(error) {
        ureq::Error::Timeout(_) => "the server fell silent".to_owned(),
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection was cut".to_owned()
        }
        error => visible(&error.to_string()),
    }
}

pub fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

fn refused(status: u16, headers: &HeaderMap, at_home: bool, uri: &Uri) -> Fault {
    let busy = matches!(status, 408 | 425 | 429 | 500..=599);
    // Elsewhere than at the hub a refusal means that the signed address is too old: the hub gives a new one.
    if busy || !at_home {
        let host = uri.host().unwrap_or("the server");
        let why = format!("{} answered HTTP {status}", visible(host));
        return Fault::Again { why, status: Some(status), after: pause_asked(headers), reached: true };
    }
    Fault::Refused(Refusal {
        status,
        code: visible(text_of(headers, "x-error-code").unwrap_or_default()),
        message: visible(text_of(headers, "x-error-message").unwrap_or_default()),
    })
}

/// `Retry-After: SECONDS`, or the `t=SECONDS` of a `RateLimit` header that says nothing remains.
fn pause_asked(headers: &HeaderMap) -> Option<Duration> {
    let retry_after = text_of(headers, "retry-after").and_then(|text| text.parse().ok());
    let rate_limit = || {
        let fields = || text_of(headers, "ratelimit").into_iter().flat_map(|text| text.split(';'));
        let field = |name| fields().find_map(|field| field.trim().strip_prefix(name));
        if field("r=")? == "0" { field("t=")?.parse().ok() } else { None }
    };
    retry_after.or_else(rate_limit).map(Duration::from_secs)
}

fn bad_answer(what: &str, why: &str) -> Fault {
    Fault::Fatal(HubError::BadAnswer { what: visible(what), why: why.to_owned() })
}

fn trusted_roots(config: &HubConfig) -> Result<Option<RootCerts>, HubError> {
    let Some(path) = &config.ca_file else {
        return Ok(None);
    };
    match roots::of(path) {
        Ok(roots) => Ok(Some(roots)),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(HubError::BadSetting { name: roots::VARIABLE.to_owned(), why: error.to_string() })
        }
        Err(error) => Err(HubError::disk("read (SSL_CERT_FILE)", path)(error)),
    }
}
