//! Requests as clients write them, in OpenAI's words: read, checked, and refused by the name of the field that is wrong.
//!
//! In: the bytes of a body. Out: [`ChatRequest`], [`CompletionRequest`] and their like, every number within its bounds; or
//! an [`ApiError`]. Nothing here knows sockets or the engine.

mod chat;
mod completion;
mod error;
mod fields;
mod generation;
mod limits;
mod sampling;
mod tokens;
mod unsupported;

pub use chat::{ChatRequest, read_messages};
pub use completion::{CompletionRequest, Prompt};
pub use error::{ApiError, ErrorKind};
pub use fields::Fields;
pub use generation::{Generation, Streaming};
pub use limits::RequestLimits;
pub use sampling::{RequestedSampling, ServerDefaults};
pub use tokens::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
