//! Ctrl-C: the first ends the run and shows what is measured so far, the second the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::error::CliError;

/// As shells have it.
const INTERRUPTED: i32 = 130;

/// Takes the signal over from the system; true as soon as it has come.
pub fn watch() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let shared = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::io("watching for Ctrl-C"))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if shared.swap(true, Relaxed) {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
    });
    Ok(stop)
}
