//! What crosses the border of the engine. Plain values: no socket, no thread.
//!
//! | file | |
//! |---|---|
//! | [`request`] | what is asked |
//! | [`event`] | what is answered, piece by piece |
//! | [`refusal`] | why a request is not even queued |
//! | [`limits`] | how much of everything there may be |
//! | [`load`] | gauges and counters |

pub mod event;
pub mod limits;
pub mod load;
pub mod refusal;
pub mod request;

pub use event::{Event, Failure, FinishReason, Piece, PromptLogprob, StopCause, Timing, Usage};
pub use limits::{EngineLimits, ModelCard};
pub use load::LoadSnapshot;
pub use refusal::Refusal;
pub use request::{GenerateRequest, RequestId, TenantId};
