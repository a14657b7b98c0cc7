//! The end of a worker whose server is gone: the system kills it then, even where the server was killed itself or the worker
//! is stopped.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::error::CliError;

/// Names the process that started this one, and without which it should not be.
pub const VARIABLE: &str = "GATERAIL_SUPERVISOR";

/// Whether a server started this process, and starts it again.
pub fn is_there() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Ties this process to the one that `VARIABLE` names, where it names one.
pub fn end_with() -> Result<(), CliError> {
    let Some(parent) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let parent = parent.to_str().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| CliError::Refused(format!("tying a worker to its server: {error}")))?;
    // It may have died before it was asked to take this process along.
    if parent.is_none() || getppid() != parent {
        return Err(CliError::Refused("the server that started this worker is gone".to_string()));
    }
    Ok(())
}
