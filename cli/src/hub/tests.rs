//! The hub client against a hub on this machine: `server` is the hub, the other files are the cases.

mod display;
mod names;
mod origins;
mod refusals;
mod server;
mod shared;
mod store;
mod transfers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::last_words;
use super::config::HubConfig;
use super::error::HubError;
use super::limits::Patience;
use super::name::RepoSpec;
use super::pull::{PullRequest, Pulled, pull};
use super::select::FileChoice;
use crate::progress::{ByteProgress, Progress};
use server::Hub;

const REPO: &str = "acme/tiny-moe";
const CONFIG: &[u8] = br#"{"architectures":["OlmoeForCausalLM"]}"#;

/// A hub, an empty cache, and a configuration that joins them.
struct Rig {
    hub: Hub,
    home: tempfile::TempDir,
    config: HubConfig,
}

impl Rig {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let hub = Hub::start(REPO, files);
        let home = tempfile::tempdir().expect("a temporary folder");
        let config = config(&hub.endpoint, home.path(), &[("HF_TOKEN", "hf_secret")]);
        Self { hub, home, config }
    }

    fn pull(&self) -> Result<Pulled, HubError> {
        self.pull_as(REPO, FileChoice::Needed, None).0
    }

    fn pull_as(
        &self,
        name: &str,
        files: FileChoice,
        free_bytes: Option<u64>,
    ) -> (Result<Pulled, HubError>, Recorder) {
        let repo = RepoSpec::parse(name).expect("a good name");
        let request = PullRequest { repo, files, config: &self.config, free_bytes };
        let mut recorder = Recorder::default();
        (pull(&request, &mut recorder), recorder)
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("hub/models--acme--tiny-moe")
    }

    fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(server::COMMIT)
    }

    fn partial(&self, bytes: &[u8]) -> PathBuf {
        self.folder().join("blobs").join(format!("{}.incomplete", server::sha256(bytes)))
    }
}

/// Longer than anything here takes on a busy machine, where it is not the silence that is tested.
const LONG: Duration = Duration::from_secs(60);

/// The configuration that an environment with these variables gives, with little patience.
fn config(endpoint: &str, home: &Path, vars: &[(&str, &str)]) -> HubConfig {
    let fixed = [("HF_ENDPOINT", endpoint), ("HF_HOME", home.to_str().expect("a plain path"))];
    let var = |name: &str| {
        let found = vars.iter().chain(&fixed).find(|var| var.0 == name);
        found.map(|var| var.1.to_owned())
    };
    let mut config = HubConfig::from_vars(&var, None).expect("a good environment");
    config.patience = Patience {
        attempts_max: 4,
        progress_bytes: 10_000,
        attempts_total_max: 7,
        connect_attempts_max: 2,
        pause_first: Duration::from_millis(1),
        pause_max: Duration::from_millis(4),
        connect_timeout: LONG,
        response_timeout: LONG,
        read_timeout: LONG,
        listing_timeout: LONG,
    };
    config
}

/// A port where nothing listens, and nobody else will while the socket lives.
fn closed_port() -> (tokio::net::TcpSocket, std::net::SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = socket.local_addr().expect("its number");
    (socket, address)
}

/// A model of three shards, with the copies and the other formats that real repositories have beside it.
fn sharded() -> Vec<(&'static str, Vec<u8>)> {
    let index = r#"{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors",
        "b":"model-00002-of-00002.safetensors","c":"model-00001-of-00002.safetensors"}}"#;
    vec![
        (".gitattributes", b"* text".to_vec()),
        ("README.md", b"# Tiny".to_vec()),
        ("config.json", CONFIG.to_vec()),
        ("consolidated.00.safetensors", noise(5000, 9)),
        ("generation_config.json", b"{}".to_vec()),
        ("model-00001-of-00002.safetensors", noise(300_000, 1)),
        ("model-00002-of-00002.safetensors", noise(200_001, 2)),
        ("model.safetensors.index.json", index.as_bytes().to_vec()),
        ("original/consolidated.safetensors", noise(5000, 8)),
        ("pytorch_model.bin", noise(5000, 7)),
        ("tokenizer.json", noise(2000, 6)),
        ("tokenizer_config.json", b"{}\n".to_vec()),
        ("vision/encoder.safetensors", noise(1500, 5)),
    ]
}

/// The smallest model: one file of weights.
fn single(bytes: usize) -> Vec<(&'static str, Vec<u8>)> {
    vec![("config.json", CONFIG.to_vec()), ("model.safetensors", noise(bytes, 3))]
}

fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Keeps what it is told.
#[derive(Default)]
struct Recorder {
    updates: Vec<ByteProgress>,
    notes: Vec<String>,
    last: Option<ByteProgress>,
}

impl Progress for Recorder {
    fn update(&mut self, now: &ByteProgress) {
        self.updates.push(now.clone());
    }

    fn note(&mut self, line: &str) {
        self.notes.push(line.to_owned());
    }

    fn finish(&mut self, last: &ByteProgress) {
        assert!(self.last.is_none(), "finish comes once");
        self.last = Some(last.clone());
    }
}

/// The error's text, with all that it must say and none of what it must not.
#[track_caller]
fn check_error(outcome: Result<Pulled, HubError>, says: &[&str]) {
    let text = outcome.expect_err("the pull is to fail").to_string();
    for part in says {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(!text.contains("hf_secret"), "the token is in: {text}");
    assert!(!text.contains("signature="), "a signed address is in: {text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "control characters are in: {text:?}");
}
