//! Where the hub is, where the cache is, which token is used: the environment, read once.
//!
//! The variables and their order are those of Hugging Face's own library, so that both share one cache.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::limits::{Patience, TOKEN_BYTES_MAX};
use super::origin::Origin;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// All that a pull takes from its surroundings.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// `scheme://host[:port][/path]`, without a slash at the end.
    pub endpoint: String,
    /// The folder with `models--ORG--NAME` in it.
    pub cache_dir: PathBuf,
    pub token: Option<Token>,
    /// The places where a token was looked for, for the message when one is missing.
    pub token_places: Vec<String>,
    /// Answer from the cache only.
    pub offline: bool,
    /// Certificates to trust in place of the built-in ones (a company's proxy).
    pub ca_file: Option<PathBuf>,
    pub patience: Patience,
}

impl HubConfig {
    /// `flag` is the `--token` of the command line.
    pub fn from_env(flag: Option<&str>) -> Result<Self, HubError> {
        Self::from_vars(&|name| std::env::var(name).ok(), flag)
    }

    /// As `from_env`, of any set of variables.
    pub fn from_vars(var: &dyn Fn(&str) -> Option<String>, flag: Option<&str>) -> Result<Self, HubError> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let user_home = var("HOME").map(PathBuf::from);
        let path = |text: String| expanded(&text, user_home.as_deref());

        let home = match (var("HF_HOME"), var("XDG_CACHE_HOME"), &user_home) {
            (Some(home), _, _) => path(home),
            (None, Some(xdg), _) => path(xdg).join("huggingface"),
            (None, None, Some(user)) => user.join(".cache/huggingface"),
            (None, None, None) => {
                let why = "neither it nor HOME is set, so there is no place for the models".to_owned();
                return Err(HubError::BadSetting { name: "HF_HUB_CACHE".to_owned(), why });
            }
        };
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let token_path = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), path);
        let implicit = !is_true(var("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        let (token, token_places) = find_token(flag, &var, &token_path, implicit)?;

        Ok(Self {
            endpoint: endpoint(var("HF_ENDPOINT"))?,
            cache_dir: cache.map_or_else(|| home.join("hub"), path),
            token,
            token_places,
            offline: is_true(var("HF_HUB_OFFLINE").or_else(|| var("TRANSFORMERS_OFFLINE"))),
            ca_file: var("SSL_CERT_FILE").map(path),
            patience: Patience::default(),
        })
    }

    /// What becomes of the token.
    pub fn token_use(&self) -> TokenUse<'_> {
        let in_the_open = match self.endpoint.parse().ok().as_ref().and_then(Origin::of) {
            Some(home) => home.scheme == "http" && !home.is_loopback(),
            None => true,
        };
        match &self.token {
            None => TokenUse::None,
            Some(token) if !in_the_open => TokenUse::Sent(token),
            Some(token) if token.from_file => TokenUse::Withheld(token),
            Some(token) => TokenUse::SentInTheOpen(token),
        }
    }

    /// The token that requests to the endpoint carry.
    pub fn token_sent(&self) -> Option<&Token> {
        match self.token_use() {
            TokenUse::Sent(token) | TokenUse::SentInTheOpen(token) => Some(token),
            TokenUse::None | TokenUse::Withheld(_) => None,
        }
    }

    /// One sentence on the token: which one was sent, or where none was found.
    pub fn token_report(&self) -> String {
        match self.token_use() {
            TokenUse::Sent(token) | TokenUse::SentInTheOpen(token) => {
                format!("The token from {} was sent.", token.origin)
            }
            TokenUse::Withheld(token) => {
                format!("The token from {} was not sent, as the endpoint is not encrypted.", token.origin)
            }
            TokenUse::None => format!("No token was sent; looked in {}.", self.token_places.join(", ")),
        }
    }
}

/// A token is the hub's alone: over plain http to another machine only if the user has given it for this run.
#[derive(Debug)]
pub enum TokenUse<'a> {
    None,
    Sent(&'a Token),
    /// Given by the flag or the environment, and readable on the way.
    SentInTheOpen(&'a Token),
    /// Found in a file, and not sent.
    Withheld(&'a Token),
}

/// The user's secret. It has no `Display`, and its `Debug` shows where it is from only.
#[derive(Clone)]
pub struct Token {
    secret: String,
    /// `HF_TOKEN`, `--token`, or the path of a file.
    pub origin: String,
    /// Found without being given: it was stored by an earlier login, for the hub itself.
    from_file: bool,
}

impl Token {
    fn parse(text: &str, origin: String) -> Result<Option<Self>, HubError> {
        let secret = text.trim();
        if secret.is_empty() {
            return Ok(None);
        }
        if secret.len() as u64 > TOKEN_BYTES_MAX || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            let why = "what it holds is not a token (one word of letters and digits is expected)".to_owned();
            return Err(HubError::BadSetting { name: origin, why });
        }
        Ok(Some(Self { secret: secret.to_owned(), origin, from_file: false }))
    }

    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.origin)
    }
}

type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The first token found, and all places that were looked into up to then.
fn find_token(
    flag: Option<&str>,
    var: &Variables<'_>,
    token_path: &Path,
    implicit: bool,
) -> Result<(Option<Token>, Vec<String>), HubError> {
    let mut places = vec!["--token".to_owned()];
    if let Some(flag) = flag
        && let Some(token) = Token::parse(flag, "--token".to_owned())?
    {
        return Ok((Some(token), places));
    }
    if !implicit {
        places.push("nothing else, as HF_HUB_DISABLE_IMPLICIT_TOKEN is set".to_owned());
        return Ok((None, places));
    }
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        places.push(name.to_owned());
        if let Some(token) = Token::parse(&var(name).unwrap_or_default(), name.to_owned())? {
            return Ok((Some(token), places));
        }
    }
    let shown = token_path.display().to_string();
    places.push(shown.clone());
    let Ok(file) = File::open(token_path) else {
        return Ok((None, places));
    };
    let mut text = String::new();
    file.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text).map_err(HubError::disk("read", token_path))?;
    let token = Token::parse(&text, shown)?.map(|token| Token { from_file: true, ..token });
    Ok((token, places))
}

fn endpoint(given: Option<String>) -> Result<String, HubError> {
    let Some(given) = given else {
        return Ok(DEFAULT_ENDPOINT.to_owned());
    };
    let bad = |why: &str| HubError::BadSetting { name: "HF_ENDPOINT".to_owned(), why: why.to_owned() };
    let endpoint = given.trim().trim_end_matches('/').to_owned();
    let rest = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"))
        .ok_or_else(|| bad("it must start with https:// or http://"))?;
    if rest.is_empty() || rest.contains(['@', '?', '#', ' ']) {
        return Err(bad("it must be scheme://host[:port][/path] and nothing more"));
    }
    Ok(endpoint)
}

fn is_true(value: Option<String>) -> bool {
    value
        .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_ascii_uppercase().as_str()))
}

fn expanded(text: &str, user_home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix('~'), user_home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(text),
    }
}
