//! Until all experts are somewhere: what every worker is doing, for whoever looks.

use std::time::{Duration, Instant};

use gaterail_router::cluster::{ClusterStatus, WorkerStatus};

use super::choice::Team;
use super::open::Workers;
use crate::error::CliError;
use crate::progress::{self, ByteProgress, bytes_text};
use crate::terminal;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Who joined already is said this often, where it takes long.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Waits for the first plan in force. It ends early where no worker will ever be there.
pub fn until_placed(workers: &Workers, team: &Team) -> Result<ClusterStatus, CliError> {
    let started = Instant::now();
    let mut shown = progress::on_stderr("load");
    let (mut drawn, mut said) = (false, None);
    if team.spawn == 0 {
        terminal::note(&format!(
            "gaterail: waiting for {} worker(s):  {}",
            team.expected, workers.join_command
        ));
    }
    loop {
        let status = workers.cluster.status();
        let Some(status) = status else {
            return Err(CliError::Refused("the control of workers ended; its message is above".to_string()));
        };
        let now = progress_of(&status, started.elapsed());
        if status.serving {
            if drawn {
                shown.finish(&ByteProgress { done: now.total, ..now });
            }
            return Ok(status);
        }
        if let Some(trouble) = workers.supervisor.as_ref().and_then(|supervisor| supervisor.trouble()) {
            return Err(CliError::Refused(trouble));
        }
        if now.total > 0 {
            drawn = true;
            shown.update(&now);
        }
        let there = status.workers.len();
        let due =
            said.is_none_or(|(before, at): (usize, Instant)| before != there || at.elapsed() > SAY_EVERY);
        if due && there < team.expected && started.elapsed() > SAY_EVERY {
            terminal::note(&format!("gaterail: {there} of {} workers are there", team.expected));
            said = Some((there, Instant::now()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// All that is being loaded, and how far everybody is.
fn progress_of(status: &ClusterStatus, elapsed: Duration) -> ByteProgress {
    let loading = || status.workers.iter().filter_map(|at| at.loading);
    let total: u64 = loading().map(|at| at.bytes_total).sum();
    let done: u64 = loading().map(|at| at.bytes).sum();
    let items: Vec<String> = status.workers.iter().map(how_far).collect();
    let rate = (done as f64 / elapsed.as_secs_f64().max(1e-3)) as u64;
    ByteProgress {
        total,
        done,
        moved: done,
        rate,
        item: items.join(", "),
        elapsed,
        ..ByteProgress::default()
    }
}

fn how_far(worker: &WorkerStatus) -> String {
    let name = terminal::visible(&worker.name);
    match worker.loading {
        Some(at) => format!("{name} {} of {}", bytes_text(at.bytes), bytes_text(at.bytes_total)),
        None => format!("{name} {}", worker.state),
    }
}
