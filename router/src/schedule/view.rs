//! What a decision is made from: numbers only.

use super::fair::TenantSlot;

/// The state before a step.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub limits: StepLimits,
    /// The counter of each tenant, by its slot.
    pub counters: Vec<u64>,
    /// Sequences with pages, the oldest first.
    pub running: Vec<Running>,
    /// Sequences without pages; those of one tenant in their order. Need not be all.
    pub waiting: Vec<Waiting>,
    /// Pages that can be had.
    pub pages: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepLimits {
    /// Sequences that run at once.
    pub sequences: usize,
    /// Rows of a step.
    pub rows: usize,
    /// Rows of a step whose logits are wanted.
    pub logits: usize,
}

/// A sequence with pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Running {
    pub tenant: TenantSlot,
    /// Tokens whose KV is not there; 1 while it decodes.
    pub pending: usize,
    /// Whether the logits of every row are wanted, and not the last ones only.
    pub every_logit: bool,
    /// Pages that its pending tokens are short of.
    pub short: usize,
    /// Pages that would be free without it.
    pub held: usize,
    /// Its client does not take what there is.
    pub paused: bool,
}

/// Pages of one who runs that are part of what the cache has for one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Place among those who run.
    pub with: usize,
    /// Part of what that one holds.
    pub pages: usize,
}

/// A sequence without pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub tenant: TenantSlot,
    /// Tokens to compute, without those that the cache has.
    pub pending: usize,
    pub every_logit: bool,
    /// Pages that starting it takes from those that can be had.
    pub cost: usize,
    /// Pages that it would share with one who runs and holds them alone. They cost nothing while that one stays.
    pub shared: Option<Shared>,
}
