//! Sequences in any company, on any schedule, give what each gives alone.
//!
//! The model is a twin whose logits are a hash of all that KV holds for the row's positions: a page that was shared, taken
//! or kept wrongly shows in the next token. What a request gives alone is computed beside it, without pages or steps.
//!
//! | file | |
//! |---|---|
//! | [`twin`] | the model of hashes, and what a request gives alone |
//! | [`house`] | a core with its clients |
//! | `random` | any schedule |
//! | `pages` | pages that are shared, short, known |
//! | `share` | tenants |
//! | `ends` | clients, deadlines, steps and logits that end badly |

mod ends;
mod house;
mod pages;
mod random;
mod share;
mod twin;

use std::time::{Duration, Instant};

use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_model::sampler::SamplingParams;

use self::house::{House, longer, plain};
use self::twin::{POISON, STOP, mix};
use super::*;
use crate::api::*;
use crate::schedule::{Plan, Share, Who};
