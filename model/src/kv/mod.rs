//! The KV cache: pages of 64 positions per layer, and the tables that say which pages a sequence has.

mod cache;
mod pages;

pub use cache::{KvCache, LayerKv, page_bytes};
pub use pages::{NoPages, PagePool, PageTable};
