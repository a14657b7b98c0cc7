//! Which sequence has which pages of KV, and which pages are kept for prompts that begin alike. Pure bookkeeping: no
//! device, no clock.

mod pages;
mod table;

pub use pages::{Hit, Pages, Parent, Salt, Tail};
pub use table::{Begun, Table};
