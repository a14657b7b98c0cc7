//! `gaterail status`: who computes for a server, and where its steps spend their time.
//!
//! | file | |
//! |---|---|
//! | [`table`] | the page as people read it |

mod table;

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use clap::Args;
use gaterail_router::http::ClusterPage;
use serde_json::Value;

use crate::endpoint::{Endpoint, Limits};
use crate::error::CliError;
use crate::terminal;

/// Where `gaterail serve` listens.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8000";
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// A watched server that does not answer may be about to start again.
const FAILURES_MAX: u32 = 30;
/// Clears a terminal and goes to its upper left corner.
const HOME: &str = "\u{1b}[H\u{1b}[2J";

/// Show a server's workers, and where its steps spend their time
///
/// Figures per second are those of the last second; the shares of a step those of the last second in which there were steps.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The server, with or without /v1
    #[arg(value_name = "URL", default_value = DEFAULT_URL)]
    url: String,

    /// Show it again and again
    #[arg(long, short = 'w')]
    watch: bool,

    /// Seconds between two pages of --watch
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_every, requires = "watch")]
    every: Duration,

    /// For programs: the page as JSON, one line each with --watch
    #[arg(long)]
    json: bool,

    /// The key that the server wants
    #[arg(long, value_name = "KEY", env = "GATERAIL_STATUS_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

pub fn run(args: &StatusArgs) -> Result<(), CliError> {
    let limits = Limits { request: Some(REQUEST_MAX), connections: 1 };
    let endpoint = Endpoint::new(&base_url(&args.url), args.api_key.clone(), limits)?;
    let mut failures = 0;
    loop {
        match fetch(&endpoint) {
            Ok((page, value)) => {
                failures = 0;
                show(args, &page, &value)?;
            }
            Err(why) if args.watch && failures < FAILURES_MAX => {
                failures += 1;
                terminal::note(&terminal::visible(&format!("gaterail: {why}")));
            }
            Err(why) => return Err(CliError::Refused(why)),
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(args.every);
    }
}

/// A server as it was named, with `/v1`.
pub fn base_url(url: &str) -> String {
    let url = url.trim_end_matches('/').trim_end_matches("/v1");
    if url.contains("://") { format!("{url}/v1") } else { format!("http://{url}/v1") }
}

/// What `/cluster` says, read and as it is.
pub fn fetch(endpoint: &Endpoint) -> Result<(ClusterPage, Value), String> {
    let url = endpoint.root_url("/cluster");
    let value = endpoint.get(&url).map_err(|failure| failure.to_string())?;
    let page = serde_json::from_value(value.clone())
        .map_err(|error| format!("{url} is not what this version reads: {error}"))?;
    Ok((page, value))
}

fn show(args: &StatusArgs, page: &ClusterPage, value: &Value) -> Result<(), CliError> {
    if args.json {
        return terminal::print(&format!("{value}\n"));
    }
    let text = terminal::visible(&table::text(page));
    let clear = if args.watch && stdout().is_terminal() { HOME } else { "" };
    terminal::print(&format!("{clear}{text}"))
}

fn parse_every(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected seconds, 0.1 to 3600".to_string()),
    }
}
