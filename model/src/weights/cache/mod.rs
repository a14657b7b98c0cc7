//! Packed weights kept in files, so that a model is packed once.
//!
//! `key` says what a file belongs to, `index` what stands in it, `reader` and `writer` move the bytes, `folder` holds all
//! files within their limit; `matrix` is what is to be written. `store` is what the loader speaks to. A file is read, not mapped: a mapping has small pages,
//! which decode reads a third slower than the arena's. Whatever is wrong with a file, it is ignored and packed again.

mod folder;
mod index;
mod key;
mod matrix;
mod reader;
mod store;
mod writer;

pub use folder::{CachedFile, clear, list};
pub use index::{Entry, Index, parse_cache};
pub use key::CacheKey;
pub use store::{CacheOutcome, PackedCache, PendingWrite, Written};

pub(super) use index::Place;
pub(crate) use store::Store;
pub(super) use store::packed_places;

/// Why a file of the cache cannot be used or made: a sentence for a person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CacheError(pub String);

impl CacheError {
    fn io(what: &str) -> impl Fn(std::io::Error) -> CacheError {
        move |error| CacheError(format!("{what}: {error}"))
    }
}
