//! The nouns that cross a process boundary: ids, routing, inventories, shards.
#![forbid(unsafe_code)]
