//! Every limit of the hub client, by name. A server is not trusted to be brief, quick or right.

use std::time::Duration;

/// Longest answer of the listing call.
pub const LISTING_BYTES_MAX: u64 = 64 << 20;
/// Longest `model.safetensors.index.json`, and longest cached listing, that is read.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Most files that a repository may list.
pub const FILES_MAX: usize = 100_000;
/// Largest single file, 16 TiB.
pub const FILE_BYTES_MAX: u64 = 16 << 40;
/// Longest file name of a repository, folders included, and the longest of its parts (what Linux allows).
pub const PATH_BYTES_MAX: usize = 1024;
pub const PATH_PART_BYTES_MAX: usize = 255;
/// Most folders around a file.
pub const PATH_DEPTH_MAX: usize = 32;
/// Longest text of a server that is shown to the user, in characters.
pub const SERVER_TEXT_CHARS_MAX: usize = 300;
/// Longest token, and longest file that may hold one.
pub const TOKEN_BYTES_MAX: u64 = 4096;

/// Most hops from the hub to the host that has the bytes.
pub const REDIRECTS_MAX: usize = 5;
/// Files that are on their way at the same time.
pub const DOWNLOADS_PARALLEL: usize = 2;
/// Read and write unit of a download.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Times that a file is fetched whole again because its checksum was wrong.
pub const CHECKSUM_RETRIES_MAX: u32 = 1;
/// Room that must stay free on the disk.
pub const DISK_MARGIN_BYTES: u64 = 64 << 20;

/// Longest pause that a server may ask for with `Retry-After`; beyond it the error goes to the user.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// Longest wait for another process that is loading the same file, and how often it looks.
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(4 * 3600);
pub const LOCK_POLL: Duration = Duration::from_millis(200);
/// How often the progress is shown.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The limits on time and attempts. A value, so that a test need not wait.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Attempts in a row without progress before a transfer is given up.
    pub attempts_max: u32,
    /// What must have come for earlier failures to be forgotten: else a byte per connection would do for ever.
    pub progress_bytes: u64,
    /// Attempts for one file in one run, progress or not.
    pub attempts_total_max: u32,
    /// Attempts to reach a host that cannot be found or refuses, before any byte has come from it.
    pub connect_attempts_max: u32,
    /// Pause after the first failure; it doubles up to `pause_max`.
    pub pause_first: Duration,
    pub pause_max: Duration,
    pub connect_timeout: Duration,
    /// From the request to the end of the response's headers.
    pub response_timeout: Duration,
    /// Longest silence in the middle of a body.
    pub read_timeout: Duration,
    /// Longest time that the file list may take, however steadily it trickles.
    pub listing_timeout: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts_max: 6,
            progress_bytes: 1 << 20,
            attempts_total_max: 1000,
            connect_attempts_max: 2,
            pause_first: Duration::from_secs(1),
            pause_max: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(30),
            listing_timeout: Duration::from_secs(180),
        }
    }
}
