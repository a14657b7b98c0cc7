//! A mode's server: `gaterail serve` of this same program on a free port, ended when it is dropped.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use gaterail_router::auth::{KeyLimits, NewKey};
use gaterail_router::http::ClusterPage;
use rustix::process::{Pid, Signal, kill_process};

use super::args::Plan;
use crate::bench::load::UNDER_WAY_MAX;
use crate::endpoint::{Endpoint, Limits};
use crate::error::CliError;
use crate::itself;
use crate::plan::Contender;
use crate::worker::parent;

/// Rows of a step, as `gaterail serve` has them by default.
pub const STEP_TOKENS: u32 = 512;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A server has so long to end by itself.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Lines that are shown of one that did not start.
const LAST_LINES: usize = 12;

pub struct Server {
    child: Child,
    pub endpoint: Endpoint,
    lines: Receiver<String>,
    contender: Contender,
}

impl Server {
    /// Starts it and waits until it answers. `None`: Ctrl-C came first.
    pub fn start(plan: &Plan, contender: Contender, stop: &AtomicBool) -> Result<Option<Server>, CliError> {
        let key = NewKey::make("bench", KeyLimits::default(), 0)
            .map_err(|error| CliError::Refused(format!("the system has no random numbers: {error}")))?;
        let mut command = Command::new(itself::program());
        // What the operator set for his own server is not what is compared.
        let set = std::env::vars_os().map(|(name, _)| name);
        for name in set.filter(|name| name.to_str().is_some_and(|name| name.starts_with("GATERAIL_"))) {
            if name != "GATERAIL_CACHE" {
                command.env_remove(name);
            }
        }
        command
            .args(plan.flags(contender))
            .args(["--config", "/dev/null"])
            // Others can read a command line; and nobody else is to be served while we measure.
            .env("GATERAIL_API_KEY", &key.text)
            .env(parent::VARIABLE, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let limits = Limits { request: Some(plan.timeout), connections: UNDER_WAY_MAX };
        let nowhere = Endpoint::new("", None, limits)?;
        let mut child = command.spawn().map_err(CliError::io("starting this program once more"))?;
        let lines = child.stderr.take().map(read_lines).unwrap_or_else(|| channel().1);
        let mut server = Server { child, endpoint: nowhere, lines, contender };
        let Some(base) = server.address(plan.timeout, stop)? else { return Ok(None) };
        server.endpoint = Endpoint::new(&base, Some(key.text), limits)?;
        server.wait_until_ready(plan, stop).map(|ready| ready.then_some(server))
    }

    /// As the table that it shows when it is ready has it.
    fn address(&mut self, patience: Duration, stop: &AtomicBool) -> Result<Option<String>, CliError> {
        let until = Instant::now() + patience;
        let mut seen = Vec::new();
        while !stop.load(Relaxed) && Instant::now() < until {
            match self.lines.recv_timeout(LOOK_EVERY) {
                Ok(line) => {
                    let mut words = line.split_whitespace();
                    if let (Some("HTTP"), Some(url)) = (words.next(), words.next()) {
                        return Ok(Some(url.to_string()));
                    }
                    seen.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if stop.load(Relaxed) {
            return Ok(None);
        }
        let last = &seen[seen.len().saturating_sub(LAST_LINES)..];
        Err(CliError::Refused(format!("{}: the server did not start:\n{}", self.contender, last.join("\n"))))
    }

    /// All experts are in place, and requests are answered.
    fn wait_until_ready(&self, plan: &Plan, stop: &AtomicBool) -> Result<bool, CliError> {
        let until = Instant::now() + plan.timeout;
        loop {
            let page = self.page();
            if page.as_ref().is_ok_and(|page| page.status == "ready") {
                return Ok(true);
            }
            if stop.load(Relaxed) {
                return Ok(false);
            }
            if Instant::now() > until {
                let why = page.map_or_else(|error| error.to_string(), |page| page.status);
                return Err(CliError::Refused(format!("{}: the server is not ready: {why}", self.contender)));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What `/cluster` says, with the experts that rows went to.
    pub fn page(&self) -> Result<ClusterPage, CliError> {
        let wrong = |error: &dyn std::fmt::Display| {
            CliError::Refused(format!("{}: /cluster: {error}", self.contender))
        };
        let value =
            self.endpoint.get(&self.endpoint.root_url("/cluster?experts")).map_err(|error| wrong(&error))?;
        serde_json::from_value(value).map_err(|error| wrong(&error))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // It is not waited for yet, so that its number is no other's.
            let _ = kill_process(pid, Signal::TERM);
        }
        let until = Instant::now() + STOP_MAX;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        // Workers end with their server, however it ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        // It reads on when nobody listens: a server must not wait for its words to be read.
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}
