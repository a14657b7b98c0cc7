//! This program's own file, for whoever starts it once more.

use std::path::PathBuf;

/// The file of what runs; the system's name for it where that file was replaced or removed, since another one may be of another
/// version. To be asked each time.
pub fn own() -> PathBuf {
    let path = std::env::current_exe().ok().filter(|path| path.exists());
    path.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}
