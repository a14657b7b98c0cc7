//! `gaterail keys`: who may use a server.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use gaterail_router::auth::{KeyFile, KeyLimits, KeyRecord, NewKey};

use crate::error::CliError;
use crate::terminal;

const TENANT_BYTES_MAX: usize = 64;

/// Make, list and revoke the keys of `gaterail serve`
///
/// A key is shown once, when it is made; only its hash is kept. A running server takes changes within a second.
#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    action: Action,

    /// The file of keys; gaterail/keys.json in the user's configuration by default
    #[arg(long, value_name = "FILE", env = "GATERAIL_KEYS", global = true)]
    keys: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// Make a key and show it
    Add {
        /// Whose key it is. Keys of one tenant share their place in the batch and their cached prompts
        tenant: String,
        /// Requests that the key may send in a minute
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
        /// Tokens of prompts and answers that it may have in a minute
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        tokens_per_minute: Option<u64>,
        /// Requests that it may have at once
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        streams: Option<u32>,
        /// It may also spread the server's experts in another way (`gaterail rebalance`)
        #[arg(long)]
        operator: bool,
    },
    /// Show all keys, without their secrets
    List,
    /// Make a key useless, for good
    Revoke {
        /// The key's id, as `list` shows it
        id: String,
    },
}

pub fn run(args: &KeysArgs) -> Result<(), CliError> {
    let path = match &args.keys {
        Some(path) => path.clone(),
        None => default_path()?,
    };
    let file = KeyFile::new(path);
    match &args.action {
        Action::Add { tenant, requests_per_minute, tokens_per_minute, streams, operator } => {
            let limits = KeyLimits {
                requests_per_minute: *requests_per_minute,
                tokens_per_minute: *tokens_per_minute,
                streams: *streams,
            };
            add(&file, tenant, limits, *operator)
        }
        Action::List => list(&file),
        Action::Revoke { id } => revoke(&file, id),
    }
}

/// `gaterail` in the user's configuration.
pub fn config_folder() -> Result<PathBuf, CliError> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    let none =
        || CliError::Refused("there is no place for configuration: set HOME or XDG_CONFIG_HOME".to_string());
    Ok(base.ok_or_else(none)?.join("gaterail"))
}

pub fn default_path() -> Result<PathBuf, CliError> {
    Ok(config_folder()?.join("keys.json"))
}

fn add(file: &KeyFile, tenant: &str, limits: KeyLimits, operator: bool) -> Result<(), CliError> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    if tenant.is_empty() || tenant.len() > TENANT_BYTES_MAX || !tenant.bytes().all(usable) {
        let detail = format!("a tenant has 1 to {TENANT_BYTES_MAX} letters, digits, or any of -_.@");
        return Err(CliError::Usage(detail));
    }
    let key = NewKey::make(tenant, limits, now())
        .map_err(|error| CliError::Refused(format!("the system has no random numbers: {error}")))?;
    let record = KeyRecord { operator, ..key.record };
    file.update(|keys| keys.push(record)).map_err(refused)?;
    terminal::note(&format!("The key of {tenant}; it is not shown again:"));
    terminal::print(&format!("{}\n", key.text))
}

fn list(file: &KeyFile) -> Result<(), CliError> {
    let keys = file.load().map_err(refused)?;
    if keys.is_empty() {
        terminal::note(&format!("no keys in {}", file.path().display()));
        return Ok(());
    }
    let mut text = format!(
        "{:<10} {:<20} {:>12} {:>12} {:>8}  {}\n",
        "ID", "TENANT", "REQUESTS/MIN", "TOKENS/MIN", "STREAMS", "STATE"
    );
    for KeyRecord { id, tenant, revoked, operator, limits, .. } in &keys {
        let shown = |limit: Option<u64>| limit.map_or("-".to_string(), |limit| limit.to_string());
        let state = match (revoked, operator) {
            (Some(_), _) => "revoked",
            (None, true) => "active, operator",
            (None, false) => "active",
        };
        text += &format!(
            "{:<10} {:<20} {:>12} {:>12} {:>8}  {state}\n",
            terminal::visible(id),
            terminal::visible(tenant),
            shown(limits.requests_per_minute.map(u64::from)),
            shown(limits.tokens_per_minute),
            shown(limits.streams.map(u64::from)),
        );
    }
    terminal::print(&text)
}

fn revoke(file: &KeyFile, id: &str) -> Result<(), CliError> {
    // Whoever pastes the whole key means the key.
    let id = id.strip_prefix("gr-").and_then(|rest| rest.split('-').next()).unwrap_or(id);
    let found = file.update(|keys| {
        let key = keys.iter_mut().find(|key| key.id == id)?;
        Some(*key.revoked.get_or_insert_with(now))
    });
    match found.map_err(refused)? {
        Some(_) => {
            terminal::note(&format!("{id} is revoked"));
            Ok(())
        }
        None => Err(CliError::Refused(format!("there is no key {id:?}; `gaterail keys list` shows all"))),
    }
}

fn refused(error: gaterail_router::auth::KeyFileError) -> CliError {
    CliError::Refused(error.to_string())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
