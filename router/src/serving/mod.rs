//! What HTTP and gRPC share: the model as it is served, and the life of one request between a client and the engine.
//!
//! | file | |
//! |---|---|
//! | [`model`] | names, tokenizer, chat template, defaults; text to tokens beside the event loop |
//! | [`server`] | everything a request needs, and whether the server is ready, draining or stuck |
//! | [`room`] | room for the bodies that are being read, shared by who sends them |
//! | [`admit`] | from a checked request to the engine's tickets, or a refusal |
//! | [`scope`] | the account of one request: what it took, and how it ended |
//! | [`log`] | one line for every request |
//! | [`steps`] | where the time of steps goes |

pub mod admit;
#[cfg(test)]
pub mod house;
pub mod log;
pub mod model;
pub mod room;
pub mod scope;
pub mod server;
pub mod steps;
#[cfg(test)]
mod tests;

pub use admit::{Admission, Answers, Work, events};
pub use log::{LogFormat, RequestLog};
pub use model::{ModelAbout, Served, ServedParts};
pub use scope::Scope;
pub use server::{Entrance, Readiness, Rig, Server, ServerOptions};
pub use steps::{StepMeter, StepParts, StepStatus, StepTotals};
