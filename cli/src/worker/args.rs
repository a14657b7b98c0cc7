//! What an operator says about a worker.

use std::path::PathBuf;

use clap::Args;
use gaterail_cluster::tls::ClientTls;

use crate::cores::Cores;
use crate::device::{self, DeviceArg};
use crate::error::CliError;
use crate::packed_cache::{self, PackedCacheArg};
use crate::serve::parse_bytes;
use crate::tls::TlsFiles;

/// A file with more is no token.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Left to the system and to the program itself.
const SPARED: (u64, u64) = (9, 10);

/// Hold experts for one router or several, and compute them
///
/// A worker calls its routers, tells them what it has, loads the experts that they give it, and answers their calls. It holds
/// no request: it may come and go at any time. SIGTERM lets the routers do without it first. Every flag is a variable, too:
/// GATERAIL_MEMORY for --memory; GATERAIL_WORKER_TLS_CERT for --tls-cert, since a server has one of that name.
#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Routers to join: the address that `gaterail serve --cluster-listen` has; several with commas, or several times
    #[arg(long, value_name = "HOST:PORT", env = "GATERAIL_JOIN", value_delimiter = ',', required = true, value_parser = parse_join)]
    pub join: Vec<Join>,

    /// Join over TLS: a folder with ca.pem, worker.pem and worker-key.pem, as `gaterail certs init` makes them
    #[arg(long, value_name = "DIR", env = "GATERAIL_CERTS")]
    certs: Option<PathBuf>,

    /// Join over TLS: the CA of the routers' certificates
    #[arg(long, value_name = "FILE", env = "GATERAIL_WORKER_TLS_CA")]
    tls_ca: Option<PathBuf>,

    /// The certificate that this worker shows, where a router asks for one
    #[arg(long, value_name = "FILE", env = "GATERAIL_WORKER_TLS_CERT")]
    tls_cert: Option<PathBuf>,

    /// The key of --tls-cert
    #[arg(long, value_name = "FILE", env = "GATERAIL_WORKER_TLS_KEY")]
    tls_key: Option<PathBuf>,

    /// What a router's --join-token says; better in the variable or a file than on the command line
    #[arg(
        long,
        value_name = "TOKEN",
        env = "GATERAIL_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,

    /// A file with the token alone
    #[arg(long, value_name = "FILE", env = "GATERAIL_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// What people call it; the host's name by default
    #[arg(long, value_name = "NAME", env = "GATERAIL_NAME")]
    name: Option<String>,

    /// Threads to compute with; one for each core by default
    #[arg(long, value_name = "N", env = "GATERAIL_THREADS", value_parser = device::parse_threads)]
    pub threads: Option<usize>,

    /// Cores to run on, such as 0 or 2-5; all that there are by default
    #[arg(long, value_name = "LIST", env = "GATERAIL_CORES")]
    pub cores: Option<Cores>,

    /// What experts may take, such as 8GiB; by default nine tenths of the memory that is free, on a GPU of the GPU's
    #[arg(long, value_name = "BYTES", env = "GATERAIL_MEMORY", value_parser = parse_bytes)]
    pub memory: Option<u64>,

    /// Where to compute: cpu, cuda:N (cuda is the first), or auto: the first card that no other worker has, else the CPU. A
    /// card computes experts in 4 and 8 bits
    #[arg(long, value_name = "DEVICE", env = "GATERAIL_DEVICE", value_parser = device::parse, default_value = "cpu")]
    pub device: DeviceArg,

    /// Where packed weights are kept for the next start: off, auto (the user's cache folder) or a folder
    #[arg(long, value_name = "WHERE", env = "GATERAIL_PACKED_CACHE", value_parser = packed_cache::parse, default_value = "auto")]
    pub packed_cache: PackedCacheArg,

    /// Where a router's model may lie on this machine, if not where the router has it; may be given several times
    #[arg(long, value_name = "PATH", env = "GATERAIL_MODEL", value_delimiter = ',')]
    pub model: Vec<PathBuf>,

    /// Read no model here: all weights come from the router
    #[arg(long, env = "GATERAIL_WEIGHTS_FROM_ROUTER")]
    pub weights_from_router: bool,

    /// Share no memory with a router of this machine: rows travel over the network
    #[arg(long, env = "GATERAIL_NO_SHARED_MEMORY")]
    pub no_shared_memory: bool,
}

/// A router's port for workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// `HOST:PORT`.
    pub address: String,
    /// Whether it was said how it is reached: `https://` or `http://`.
    secret: Option<bool>,
}

impl Join {
    /// Whether what is sent there stays on this machine, as far as its name says.
    pub fn is_own(&self) -> bool {
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = |ip: std::net::IpAddr| ip.to_canonical().is_loopback();
        host == "localhost" || host.parse().is_ok_and(loopback)
    }
}

impl WorkerArgs {
    pub fn tls_files(&self) -> TlsFiles {
        let path = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        TlsFiles {
            certs: path(&self.certs),
            cert: path(&self.tls_cert),
            key: path(&self.tls_key),
            ca: path(&self.tls_ca),
            worker_name: None,
        }
    }

    /// How all routers are reached.
    pub fn tls(&self) -> Result<Option<ClientTls>, CliError> {
        let tls = self.tls_files().client()?;
        match self.join.iter().find(|join| join.secret.is_some_and(|secret| secret != tls.is_some())) {
            None => Ok(tls),
            Some(Join { address, .. }) if tls.is_some() => Err(CliError::Usage(format!(
                "--join http://{address} is in clear, and certificates are for TLS: leave one of them away"
            ))),
            Some(Join { address, .. }) => Err(CliError::Usage(format!(
                "--join https://{address} needs to know whom to believe: --certs DIR, or --tls-ca FILE"
            ))),
        }
    }

    /// From whichever of the two places it was given in.
    pub fn token(&self) -> Result<Option<String>, CliError> {
        let Some(file) = &self.token_file else {
            return Ok(self.token.clone().filter(|token| !token.is_empty()));
        };
        read_token(file).map(Some)
    }

    pub fn name(&self) -> String {
        let own = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(own)
    }
}

/// A token that stands in a file by itself.
pub fn read_token(file: &std::path::Path) -> Result<String, CliError> {
    let what = || format!("reading the token in {}", file.display());
    let bytes = std::fs::metadata(file).map_err(CliError::io(what()))?.len();
    if bytes > TOKEN_BYTES_MAX {
        return Err(CliError::Refused(format!("{} has {bytes} bytes: that is no token", file.display())));
    }
    let text = std::fs::read_to_string(file).map_err(CliError::io(what()))?;
    match text.trim() {
        "" => Err(CliError::Refused(format!("{} is empty", file.display()))),
        token => Ok(token.to_string()),
    }
}

/// What experts may take of the memory that is free.
pub fn usual_memory(free: u64) -> u64 {
    free / SPARED.1 * SPARED.0
}

/// `HOST:PORT`, with a scheme or without; the name is looked up with every attempt, so that it need not be known yet.
fn parse_join(text: &str) -> Result<Join, String> {
    let (secret, text) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (Some(true), rest),
        (_, Some(rest)) => (Some(false), rest),
        _ => (None, text),
    };
    let wrong = || "expected HOST:PORT, such as 10.0.0.5:8100".to_string();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let known = |c: char| c.is_ascii_alphanumeric() || ".-_:[]%".contains(c);
    let fits = !host.is_empty() && host.chars().all(known) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if fits { Ok(Join { address: text.to_string(), secret }) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_are_hosts_with_ports() {
        for text in ["localhost:1", "10.0.0.1:65535", "[::1]:80", "http://router.example:8100", "https://r:1"]
        {
            assert!(parse_join(text).is_ok(), "{text}");
        }
        let own = |text| parse_join(text).expect(text).is_own();
        assert!(own("localhost:1") && own("[::1]:1") && own("https://127.0.0.2:1"));
        assert!(!own("10.0.0.1:1") && !own("router.example:1"));
        for text in ["", "localhost", ":1", "host:0", "host:65536", "host:x", "a b:1", "http://h:1/x"] {
            assert!(parse_join(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_stands_alone_in_its_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, "  secret\n").expect("written");
        assert_eq!(read_token(file.path()).expect("a token"), "secret");
        std::fs::write(&file, "\n").expect("written");
        assert!(read_token(file.path()).is_err());
        std::fs::write(&file, vec![b'x'; 5000]).expect("written");
        assert!(read_token(file.path()).is_err());
    }
}
