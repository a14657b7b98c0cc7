//! From logits to a token, as pure functions: the same logits, parameters, seed and position give the same token.
//!
//! | file | |
//! |---|---|
//! | [`params`] | what a request asks for, checked once |
//! | [`counts`] | how often each token stands in prompt and output |
//! | [`adjust`] | bias, minimum length and penalties, on the logits |
//! | [`scan`] | the passes over all logits: maxima, sums of exponentials, the largest ones |
//! | [`draw`] | temperature, min-p, top-k, top-p and the draw |
//! | [`noise`] | the random number of a position |
//! | [`sample`] | the order of all that |
//! | [`finish`] | whether a sequence ends with this token, and why |

pub mod adjust;
pub mod counts;
pub mod draw;
pub mod finish;
pub mod noise;
pub mod params;
pub mod sample;
pub mod scan;
#[cfg(test)]
mod tests;

pub use counts::TokenCounts;
pub use finish::{FinishReason, Progress, StopCause, finish};
pub use params::{SamplerError, SamplingParams};
pub use sample::{Sampled, Step, logprob_of, sample};
