//! What an operator says of workers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use gaterail_cluster::exchange::Road;
use gaterail_cluster::membership::Policy;
use gaterail_cluster::placement::Parallel;
use gaterail_router::cluster::WORKERS_MAX;

use crate::device::{self, DeviceArg};
use crate::error::CliError;
use crate::settings::Settings;
use crate::tls::TlsFiles;
use crate::worker::read_token;

const COPIES_MAX: u32 = 64;

#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Processes of this machine; `None`: nobody said anything.
    pub spawn: Option<usize>,
    /// Where they compute: one for each, or one for all.
    pub devices: Vec<DeviceArg>,
    /// `None`: nobody said anything.
    pub parallel: Option<Parallel>,
    pub copies: u32,
    /// For further copies of hot experts.
    pub replica_bytes: u64,
    /// Those follow what is hot for a gain of more than this part, and not more often than this.
    pub rebalance_gain_min: f64,
    pub rebalance_every: Duration,
    /// Whether this process holds experts, too.
    pub local: bool,
    pub listen: Option<SocketAddr>,
    pub token: Option<String>,
    /// What the port shows and asks for, where it is encrypted.
    pub tls: TlsFiles,
    /// Workers to wait for before the first plan.
    pub expected: Option<usize>,
    pub join_wait: Duration,
    pub silence_max: Duration,
    /// A request waits so long for workers that hold all experts.
    pub plan_max: Duration,
    pub shared_memory: bool,
    pub overlap: Overlap,
    /// Which rows a worker gets; `None`: what has fewer bytes.
    pub road: Option<Road>,
}

/// From how many rows on a batch is two micro-batches that take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    Auto,
    Off,
    From(usize),
}

/// Each half reads the weights of its experts anew: with fewer rows that costs more than is won.
const OVERLAP_ROWS: usize = 128;

impl WorkerSettings {
    pub fn new(
        settings: &Settings,
        address: impl Fn(&str) -> Result<SocketAddr, String>,
        bytes: impl Fn(&str) -> Result<u64, String>,
        seconds: impl Fn(&str) -> Result<Duration, String>,
    ) -> Result<WorkerSettings, CliError> {
        let policy = Policy::default();
        let count = |name: &str, least: usize, most: usize| {
            settings.parsed_by(name, |text| match text.parse() {
                Ok(count) if (least..=most).contains(&count) => Ok(count),
                _ => Err(format!("it has to be a whole number from {least} to {most}")),
            })
        };
        let token_file = settings.text("join-token-file").map(PathBuf::from);
        let token = match (settings.text("join-token"), token_file) {
            (Some(_), Some(_)) => {
                let why = "--join-token and --join-token-file say the same; give one of them";
                return Err(CliError::Usage(why.to_string()));
            }
            (Some(token), None) => Some(token.to_string()),
            (None, Some(file)) => Some(read_token(&file)?),
            (None, None) => None,
        };
        let local = settings.switch("local-experts");
        // Of one plan; this process may be one of them.
        let workers_max = WORKERS_MAX - usize::from(local);
        Ok(WorkerSettings {
            spawn: count("workers", 0, workers_max)?,
            devices: settings.parsed_each("worker-devices", device::parse)?,
            parallel: settings.parsed_by("parallel", |text| {
                text.parse::<Parallel>().map_err(|_| "it has to be ep, tp, ep:N,tp:M or auto".to_string())
            })?,
            copies: count("expert-copies", 1, COPIES_MAX as usize)?.unwrap_or(1) as u32,
            replica_bytes: settings.parsed_by("replica-memory", bytes)?.unwrap_or(0),
            rebalance_gain_min: settings
                .parsed_by("rebalance-gain", part)?
                .unwrap_or(policy.rebalance_gain_min),
            rebalance_every: settings
                .parsed_by("rebalance-seconds", &seconds)?
                .unwrap_or(policy.rebalance_every),
            local,
            listen: settings.parsed_by("cluster-listen", address)?,
            token,
            tls: tls_files(settings)?,
            expected: count("wait-for-workers", 1, workers_max)?,
            join_wait: settings.parsed_by("join-seconds", &seconds)?.unwrap_or(policy.join_wait),
            silence_max: settings
                .parsed_by("worker-silence-seconds", &seconds)?
                .unwrap_or(policy.silence_max),
            plan_max: settings
                .parsed_by("workers-gone-seconds", &seconds)?
                .unwrap_or(Duration::from_secs(120)),
            shared_memory: !settings.switch("no-shared-memory"),
            overlap: settings.parsed_by("overlap-rows", overlap)?.unwrap_or(Overlap::Off),
            road: settings.parsed_by("exchange-rows", road)?.flatten(),
        })
    }

    /// How a worker joins `address`, for people.
    pub fn join_command(&self, address: SocketAddr) -> String {
        let secret = self.tls.cert.is_some() || self.tls.certs.is_some();
        let certs = if secret { " --certs DIR" } else { "" };
        format!("gaterail worker --join {address}{certs}")
    }

    /// Rows from which on batches are split between two micro-batches. `auto` splits only where nobody who holds experts shares
    /// this machine's cores with the router: there the halves would take turns anyway.
    pub fn overlap_from(&self, shares_cores: bool) -> Option<usize> {
        match self.overlap {
            Overlap::Off => None,
            Overlap::From(rows) => Some(rows),
            Overlap::Auto => (!shares_cores).then_some(OVERLAP_ROWS),
        }
    }

    /// Whether all workers are on other machines, as far as one can know.
    pub fn is_remote(&self) -> bool {
        self.listen.is_some() && self.spawn.unwrap_or(0) == 0 && !self.local
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok(part),
        _ => Err("it has to be a part, from 0 to below 1".to_string()),
    }
}

/// The files of the port that workers join; they are of no use without one.
fn tls_files(settings: &Settings) -> Result<TlsFiles, CliError> {
    let path = |name: &str| settings.text(name).map(PathBuf::from);
    let files = TlsFiles {
        certs: path("cluster-certs"),
        cert: path("cluster-tls-cert"),
        key: path("cluster-tls-key"),
        ca: path("cluster-tls-ca"),
        worker_name: settings.text("cluster-worker-name").map(str::to_owned),
    };
    let any = [&files.certs, &files.cert, &files.key, &files.ca].iter().any(|file| file.is_some());
    if any && settings.text("cluster-listen").is_none() {
        let why =
            "certificates of the cluster are for a port that others join: give --cluster-listen HOST:PORT";
        return Err(CliError::Usage(why.to_string()));
    }
    Ok(files)
}

fn road(text: &str) -> Result<Option<Road>, String> {
    match text {
        "auto" => Ok(None),
        "all" => Ok(Some(Road::All)),
        "chosen" => Ok(Some(Road::Chosen)),
        _ => Err("it has to be auto, all or chosen".to_string()),
    }
}

fn overlap(text: &str) -> Result<Overlap, String> {
    match text {
        "auto" => Ok(Overlap::Auto),
        "off" => Ok(Overlap::Off),
        rows => match rows.parse() {
            Ok(rows) if rows >= 2 => Ok(Overlap::From(rows)),
            _ => Err("it has to be auto, off, or a number of rows from 2 on".to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn rows_auto_or_off() {
        assert_eq!(overlap("off"), Ok(super::Overlap::Off));
        assert_eq!(overlap("64"), Ok(super::Overlap::From(64)));
        assert!(overlap("1").is_err() && overlap("on").is_err());
    }
}
