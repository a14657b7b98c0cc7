//! A conversation in, the prompt that the model was trained on out.
//!
//! [`ChatTemplate`] finds and compiles the model's template and prepares the variables as transformers'
//! `apply_chat_template` does. [`rewrite`] turns the published template into one whose operations are bounded and
//! Python's: [`ops`], [`methods`], [`filters`], printed by [`show`] and [`json`]. [`budget`] is what a rendering may
//! spend, [`render`] runs it.

pub(crate) mod budget;
mod chat;
mod clock;
mod escapes;
mod expression;
mod filters;
mod json;
mod lazy;
mod methods;
mod ops;
pub(crate) mod render;
mod rewrite;
mod show;
#[cfg(test)]
mod tests;

pub use budget::{
    ALLOC_BYTES_MAX, CONTAINERS_MAX, Halt, NESTING_MAX, OPERATION_BYTES_MAX, OUTPUT_BYTES_MAX,
    RENDER_TIME_MAX,
};
pub use chat::{ChatInput, ChatTemplate};
pub use render::FUEL_MAX;
pub use rewrite::TEMPLATE_BYTES_MAX;
