//! Models from a Hugging Face hub, into the cache layout that its own library uses.
//!
//! In: `ORG/NAME[@REVISION]`. Out: the folder of a complete snapshot. The flow of a pull, file by file:
//!
//! ```text
//! args ─> config ─> name ─> pull ─┬─ listing   what the hub has                 (client, retry)
//!                                 ├─ select    what Gaterail needs of it
//!                                 ├─ download  one file: resume, check, rename  (client, cache, checksum)
//!                                 └─ local     is the snapshot whole?           (cache)
//! ```
//!
//! The server is not trusted: `name` parses every file name and commit before a path is built from it,
//! `limits` bounds every answer, `checksum` decides whether bytes are kept, and only `client` sees the token.
//! Nor are others who may write to the cache: `open` creates and opens files through no link.

mod args;
mod cache;
mod checksum;
mod client;
mod config;
mod download;
mod error;
mod limits;
mod listing;
mod local;
mod name;
mod open;
mod origin;
mod pull;
mod retry;
mod select;

#[cfg(test)]
mod tests;

pub use args::{PullArgs, run};
pub use config::HubConfig;
pub use error::HubError;
pub use local::{resolve_local, why_not_local};
