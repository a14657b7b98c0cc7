//! `gaterail rebalance`: spreads a server's experts in another way while it serves, and says how that went.

use std::time::{Duration, Instant};

use clap::Args;
use gaterail_cluster::placement::Mode;
use gaterail_router::cluster::{ChangeStatus, ClusterStatus};
use gaterail_router::http::RebalancePage;
use serde_json::{Map, Value, json};

use crate::endpoint::{Endpoint, Failure, Limits};
use crate::error::CliError;
use crate::progress::bytes_text;
use crate::serve::config::parse_bytes;
use crate::status::{DEFAULT_URL, base_url, fetch};
use crate::terminal;

const REQUEST_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Where nothing is prepared for so long, nothing has to move.
const BEGIN_MAX: Duration = Duration::from_secs(5);

/// Spread a server's experts in another way while it serves
///
/// What is new is loaded beside what is served, and the server switches between two layers: answers go on, and stay what they
/// are. What does not fit is refused, with what would.
#[derive(Args, Debug)]
pub struct RebalanceArgs {
    /// The server, with or without /v1
    #[arg(value_name = "URL", default_value = DEFAULT_URL)]
    url: String,

    /// ep (whole experts), tp (each cut over all workers), or ep:N,tp:M (both)
    #[arg(long, value_name = "HOW")]
    parallel: Option<Mode>,

    /// Workers that hold each expert
    #[arg(long, visible_alias = "copies", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    expert_copies: Option<u32>,

    /// For further copies of the experts that are hit most, over all workers together; 0 for none
    #[arg(long, value_name = "BYTES", value_parser = parse_replica_bytes)]
    replica_memory: Option<u64>,

    /// Seconds to wait until it is done; 0 does not wait
    #[arg(long, value_name = "S", default_value = "600")]
    wait: u32,

    /// For programs: what was found, as JSON
    #[arg(long)]
    json: bool,

    /// The key that the server wants
    #[arg(long, value_name = "KEY", env = "GATERAIL_STATUS_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

pub fn run(args: &RebalanceArgs) -> Result<(), CliError> {
    let body = args.body()?;
    let limits = Limits { request: Some(REQUEST_MAX), connections: 1 };
    let endpoint = Endpoint::new(&base_url(&args.url), args.api_key.clone(), limits)?;
    let answer = endpoint.post(&endpoint.root_url("/cluster/rebalance"), &body);
    let answer = answer.map_err(|failure| match failure {
        // The server's own words, which have lines.
        Failure::Status { message, .. } => CliError::Refused(message),
        failure => CliError::Refused(failure.to_string()),
    })?;
    let page: RebalancePage = serde_json::from_value(answer)
        .map_err(|error| CliError::Refused(format!("not what this version reads: {error}")))?;
    if args.wait == 0 {
        return args.show(&json!(page), &begun(page));
    }
    let (change, cluster) = follow(&endpoint, page, Duration::from_secs(args.wait.into()))?;
    match change {
        Some(change) if change.state == "given up" => Err(CliError::Refused(told(&change))),
        _ if !args.is_followed(&cluster) => {
            let why = "it was given up, and is not tried again: the server spreads its experts as before; its log says why";
            Err(CliError::Refused(why.to_string()))
        }
        None => args.show(&json!(page), "nothing had to move"),
        Some(change) => args.show(&json!(change), &told(&change)),
    }
}

impl RebalanceArgs {
    fn body(&self) -> Result<Value, CliError> {
        let mut body = Map::new();
        body.extend(self.parallel.map(|mode| ("parallel".to_string(), json!(mode.to_string()))));
        body.extend(self.expert_copies.map(|copies| ("expert_copies".to_string(), json!(copies))));
        body.extend(self.replica_memory.map(|bytes| ("replica_memory".to_string(), json!(bytes))));
        if body.is_empty() {
            let why = "say what is wanted: --parallel, --expert-copies or --replica-memory";
            return Err(CliError::Usage(why.to_string()));
        }
        Ok(Value::Object(body))
    }

    /// Whether the server still wants what was asked for.
    fn is_followed(&self, cluster: &ClusterStatus) -> bool {
        self.parallel.is_none_or(|mode| cluster.mode == mode.to_string())
            && self.expert_copies.is_none_or(|copies| cluster.copies_wanted == copies)
    }

    fn show(&self, value: &Value, text: &str) -> Result<(), CliError> {
        let text = if self.json { value.to_string() } else { terminal::visible(text) };
        terminal::print(&format!("{text}\n"))
    }
}

/// Waits for the plan that was asked for, or one after it, to be in use; `None` where none is made. With the server's state then.
fn follow(
    endpoint: &Endpoint,
    asked: RebalancePage,
    most: Duration,
) -> Result<(Option<ChangeStatus>, ClusterStatus), CliError> {
    let started = Instant::now();
    // Since when nothing has been prepared.
    let mut quiet = started;
    loop {
        let (page, _) = fetch(endpoint).map_err(CliError::Refused)?;
        let cluster =
            page.cluster.ok_or_else(|| CliError::Refused("the server has no workers".to_string()))?;
        if cluster.pending.is_some() {
            quiet = Instant::now();
        }
        // What was planned before, whatever became of it, is not what was asked for.
        let change = cluster.change.clone().filter(|change| change.epoch > asked.planned);
        match change {
            Some(change) if matches!(&change.state[..], "done" | "given up") => {
                return Ok((Some(change), cluster));
            }
            None if asked.epoch.is_none() && quiet.elapsed() > BEGIN_MAX => {
                return Ok((None, cluster));
            }
            _ if started.elapsed() > most => {
                let why = "it is not done yet; gaterail status shows how far it is".to_string();
                return Err(CliError::Refused(why));
            }
            _ => std::thread::sleep(LOOK_EVERY),
        }
    }
}

fn begun(page: RebalancePage) -> String {
    match page.epoch {
        Some(epoch) => format!("epoch {epoch} is being prepared"),
        None => "nothing has to move, or not yet".to_string(),
    }
}

/// How a change went.
pub fn told(change: &ChangeStatus) -> String {
    let loaded = bytes_text(change.loaded_bytes);
    let how = format!("epoch {} ({}): {loaded} loaded in {:.2} s", change.epoch, change.why, change.seconds);
    match &change.state[..] {
        "loading" => format!("epoch {} ({}) is being loaded", change.epoch, change.why),
        "active" => format!("{how}; steps switch to it with the next one"),
        "given up" => {
            let next = match change.withdrawn {
                true => "it is not tried again, and the experts are spread as before",
                false => "the server tries again by itself",
            };
            format!("epoch {} was given up: {}; {next}", change.epoch, change.detail)
        }
        _ => format!(
            "{how}; in use; the longest step meanwhile took {:.1} ms ({:.1} ms before), {:.2} ms of one for the switch",
            change.longest_step_ms, change.step_ms_before, change.switch_ms
        ),
    }
}

fn parse_replica_bytes(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_bytes(text) }
}
