//! Who runs in the next step. In: plain values. Out: a plan, which is one too. Nothing here computes or waits.
//!
//! | file | |
//! |---|---|
//! | [`view`] | what a decision is made from |
//! | [`plan`] | the decision |
//! | [`fair`] | what each tenant has had |

pub mod fair;
pub mod plan;
#[cfg(test)]
mod tests;
pub mod view;

pub use fair::{Fair, TenantSlot};
pub use plan::{Plan, Share, Who, schedule};
pub use view::{Running, Shared, StepLimits, View, Waiting};
