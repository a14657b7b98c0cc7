//! From settings to what they mean: each checked once, an error names the setting and where it was set.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use gaterail_kernels::ops::KvForm;
use gaterail_router::EngineLimits;
use gaterail_router::http::{Hosts, ListenLimits};
use gaterail_router::serving::{LogFormat, ServerOptions};

use super::workers::WorkerSettings;
use crate::device::{self, DeviceArg};
use crate::error::CliError;
use crate::packed_cache::{self, PackedCacheArg};
use crate::settings::Settings;
use crate::tls::TlsFiles;
use crate::weights::{KvArg, WeightsArg};

/// More of anything is surely a mistake.
const COUNT_MAX: usize = 1 << 20;
const SECONDS_MAX: f64 = 7.0 * 24.0 * 3600.0;

pub struct ServeConfig {
    /// `None`: the demo model.
    pub model: Option<String>,
    pub names: Vec<String>,
    pub listen: SocketAddr,
    pub grpc_listen: Option<SocketAddr>,
    /// Of both.
    pub tls: TlsFiles,
    pub weights: WeightsArg,
    pub kv: KvArg,
    pub packed_cache: PackedCacheArg,
    pub device: DeviceArg,
    pub threads: Option<usize>,
    pub step_tokens: usize,
    pub kv_bytes: Option<u64>,
    pub memory_check: bool,
    pub api_keys: Vec<String>,
    pub keys: PathBuf,
    pub insecure: bool,
    /// Whether the model's makers' sampling is the default.
    pub makers_defaults: bool,
    pub log: LogFormat,
    pub drain: Duration,
    pub drain_grace: Duration,
    pub engine: EngineLimits,
    pub sockets: ListenLimits,
    pub server: ServerOptions,
    pub workers: WorkerSettings,
}

impl ServeConfig {
    pub fn new(settings: &Settings) -> Result<ServeConfig, CliError> {
        let count = |name: &str| -> Result<Option<usize>, CliError> {
            settings.parsed_by(name, |text| match text.parse() {
                Ok(count) if (1..=COUNT_MAX).contains(&count) => Ok(count),
                _ => Err(format!("it has to be a whole number from 1 to {COUNT_MAX}")),
            })
        };
        let seconds = |name: &str, otherwise: Duration| -> Result<Duration, CliError> {
            Ok(settings.parsed_by(name, parse_seconds)?.unwrap_or(otherwise))
        };
        let log = settings.parsed_by("log", |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            "off" => Ok(LogFormat::Off),
            _ => Err("it has to be text, json or off".to_string()),
        })?;
        let makers_defaults = settings.parsed_by("generation-config", |text| match text {
            "auto" => Ok(true),
            "off" | "vllm" => Ok(false),
            _ => Err("it has to be auto or off".to_string()),
        })?;
        let queue_tokens = settings.parsed::<usize>("max-queue-tokens", "a whole number")?;
        let batch_max = count("max-batch")?.unwrap_or(16);
        let step_tokens = count("step-tokens")?.unwrap_or(512);
        if step_tokens < batch_max {
            let detail = format!("--step-tokens {step_tokens} is less than --max-batch {batch_max}");
            return Err(CliError::Usage(detail));
        }
        let plain = ServerOptions::default();
        let sockets = ListenLimits::default();
        let engine = EngineLimits::default();
        let mut requests = plain.requests.clone();
        requests.body_bytes_max = settings.parsed_by("max-body", parse_bytes)?.unwrap_or(32 << 20) as usize;
        let listen = listen_address(settings)?;
        let bodies = settings.parsed_by("max-bodies", parse_bytes)?;
        Ok(ServeConfig {
            model: settings.text("model").map(str::to_owned),
            names: settings.list("served-model-name").to_vec(),
            listen,
            grpc_listen: settings.parsed_by("grpc-listen", parse_address)?,
            tls: TlsFiles {
                cert: settings.text("tls-cert").map(PathBuf::from),
                key: settings.text("tls-key").map(PathBuf::from),
                ..TlsFiles::default()
            },
            weights: settings
                .parsed_by("weights", |text| WeightsArg::from_str(text, true))?
                .unwrap_or(WeightsArg::Auto),
            kv: settings
                .parsed_by("kv-cache-dtype", |text| KvArg::from_str(text, true))?
                .unwrap_or(KvArg::Auto),
            packed_cache: settings
                .parsed_by("packed-cache", packed_cache::parse)?
                .unwrap_or(PackedCacheArg::Auto),
            device: settings.parsed_by("device", device::parse)?.unwrap_or(DeviceArg::Auto),
            threads: count("threads")?,
            step_tokens,
            kv_bytes: settings.parsed_by("kv-memory", parse_bytes)?,
            memory_check: !settings.switch("no-memory-check"),
            api_keys: settings.list("api-key").to_vec(),
            keys: match settings.text("keys") {
                Some(path) => path.into(),
                None => crate::keys::default_path()?,
            },
            insecure: settings.switch("insecure"),
            makers_defaults: makers_defaults.unwrap_or(true),
            log: log.unwrap_or(LogFormat::Text),
            drain: seconds("drain-seconds", Duration::from_secs(30))?,
            drain_grace: seconds("drain-grace-seconds", Duration::ZERO)?,
            engine: EngineLimits {
                batch_max,
                rows_max: step_tokens,
                context_max: count("max-context")?,
                queue_requests_max: count("max-queue")?.unwrap_or(engine.queue_requests_max),
                queue_tokens_max: queue_tokens.unwrap_or(engine.queue_tokens_max),
                choices_max: requests.choices_max,
                stall_max: seconds("stall-seconds", engine.stall_max)?,
                prefix_cache: !settings.switch("no-prefix-cache"),
                ..engine
            },
            workers: WorkerSettings::new(settings, parse_address, parse_bytes, parse_seconds)?,
            sockets: ListenLimits {
                connections_max: count("max-connections")?.unwrap_or(sockets.connections_max),
                header_time_max: seconds("header-seconds", sockets.header_time_max)?,
                write_stall_max: seconds("stall-seconds", sockets.write_stall_max)?,
                ..sockets
            },
            server: ServerOptions {
                requests,
                bodies_bytes_max: bodies.map_or(plain.bodies_bytes_max, |bytes| bytes as usize),
                body_time_max: seconds("body-seconds", plain.body_time_max)?,
                request_time_max: seconds("request-seconds", plain.request_time_max)?,
                keep_alive: seconds("keep-alive-seconds", plain.keep_alive)?,
                origins: settings.list("cors-origin").to_vec(),
                hosts: hosts(settings, listen),
                metric_aliases: !settings.switch("no-metric-aliases"),
                ..plain
            },
        })
    }

    pub fn kv_form(&self) -> KvForm {
        self.kv.form(self.weights)
    }

    /// Addresses that other machines can reach.
    pub fn public(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        [Some(self.listen), self.grpc_listen].into_iter().flatten().filter(|address| !is_own(address.ip()))
    }
}

/// Where others can reach it, under any name, an operator has to list the names if there are to be no others.
fn hosts(settings: &Settings, listen: SocketAddr) -> Option<Hosts> {
    let names = settings.list("allowed-hosts").iter().flat_map(|names| names.split(','));
    let listed: Vec<String> =
        names.map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect();
    (is_own(listen.ip()) || !listed.is_empty()).then(|| Hosts { listed, own: vec![listen.ip()] })
}

fn is_own(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// `--listen`, with `--host` and `--port` in its place where they are given.
fn listen_address(settings: &Settings) -> Result<SocketAddr, CliError> {
    let listen = settings.parsed_by("listen", parse_address)?;
    let mut address = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8000)));
    let host = settings.parsed_by("host", |host| parse_address(&format!("{}:0", bracketed(host))))?;
    if let Some(host) = host {
        address.set_ip(host.ip());
    }
    if let Some(port) = settings.parsed::<u16>("port", "a port, 0 to 65535")? {
        address.set_port(port);
    }
    Ok(address)
}

/// An IPv6 address as it stands before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_string() }
}

/// `127.0.0.1:8000`, `[::1]:8000`, `localhost:8000`, `:8000`.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let expected = "it has to be HOST:PORT, such as 127.0.0.1:8000";
    let whole = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.to_string() };
    if let Ok(address) = whole.parse() {
        return Ok(address);
    }
    let found = whole.to_socket_addrs().map_err(|error| format!("{expected} ({error})"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    // Where a name has both, IPv4 is what most clients try.
    found.sort_by_key(|address| !address.is_ipv4());
    found.first().copied().ok_or_else(|| expected.to_string())
}

/// `4096`, `64KiB`, `4GiB`, `4GB`, `4G`; the last two are powers of ten and of two, as people mean them.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = || "it has to be a number of bytes, such as 4GiB".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(expected()),
    };
    let bytes = number * scale as f64;
    if (1.0..=1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(expected()) }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it has to be a number of seconds".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_units() {
        for (text, expected) in
            [("4096", 4096), ("64KiB", 65536), ("1.5g", 3 << 29), ("2GB", 2_000_000_000), ("1 MiB", 1 << 20)]
        {
            assert_eq!(parse_bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "x", "4XB", "-1", "1e3", "0"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            (":9", "127.0.0.1:9"),
            ("[::1]:8000", "[::1]:8000"),
            ("localhost:80", "127.0.0.1:80"),
        ] {
            assert_eq!(parse_address(text).unwrap(), expected.parse().unwrap(), "{text}");
        }
        assert!(parse_address("nonsense").is_err());
        assert!(is_own("127.0.0.53".parse().unwrap()) && is_own("::1".parse().unwrap()));
        assert!(is_own("::ffff:127.0.0.1".parse().unwrap()) && !is_own("0.0.0.0".parse().unwrap()));
    }
}
