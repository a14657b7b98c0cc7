//! What each tenant has had, in tokens: the virtual token counter of Sheng et al., "Fairness in Serving Large Language
//! Models" (OSDI 2024). Whoever has had least is served next. Who comes back after a pause begins at the least of those
//! who are there, so that nobody saves up.

use std::collections::HashMap;

use crate::api::TenantId;

/// What a token of a prompt and a token of an answer count, as in the paper.
pub const PROMPT_WEIGHT: u64 = 1;
pub const ANSWER_WEIGHT: u64 = 2;
/// Tenants that are remembered; beyond that the one that has had least of those who are away is forgotten.
const TENANTS_MAX: usize = 4096;

/// A tenant's place among the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantSlot(pub usize);

/// The counters of all tenants.
#[derive(Debug, Default)]
pub struct Fair {
    slots: HashMap<TenantId, TenantSlot>,
    counters: Vec<u64>,
    /// Requests of each that wait or run.
    present: Vec<usize>,
}

impl Fair {
    /// A request of `tenant` is there.
    pub fn enter(&mut self, tenant: &TenantId) -> TenantSlot {
        let slot = match self.slots.get(tenant) {
            Some(slot) => *slot,
            None => self.slot_for(tenant),
        };
        if self.present[slot.0] == 0
            && let Some(least) = self.least()
        {
            self.counters[slot.0] = self.counters[slot.0].max(least);
        }
        self.present[slot.0] += 1;
        slot
    }

    /// A request is gone.
    pub fn leave(&mut self, slot: TenantSlot) {
        assert!(self.present[slot.0] > 0, "a request left twice");
        self.present[slot.0] -= 1;
    }

    /// A tenant was served.
    pub fn charge(&mut self, slot: TenantSlot, tokens: usize, weight: u64) {
        self.counters[slot.0] = self.counters[slot.0].saturating_add(tokens as u64 * weight);
    }

    /// By slot.
    pub fn counters(&self) -> &[u64] {
        &self.counters
    }

    /// The least counter of those who are there.
    fn least(&self) -> Option<u64> {
        let there = self.counters.iter().zip(&self.present).filter(|(_, present)| **present > 0);
        there.map(|(counter, _)| *counter).min()
    }

    fn slot_for(&mut self, tenant: &TenantId) -> TenantSlot {
        let away = |slot: &usize| self.present[*slot] == 0;
        let reused = match self.counters.len() {
            TENANTS_MAX.. => (0..self.counters.len()).filter(away).min_by_key(|slot| self.counters[*slot]),
            _ => None,
        };
        let slot = match reused {
            Some(slot) => {
                self.slots.retain(|_, of| of.0 != slot);
                TenantSlot(slot)
            }
            None => {
                self.counters.push(0);
                self.present.push(0);
                TenantSlot(self.counters.len() - 1)
            }
        };
        self.counters[slot.0] = 0;
        self.slots.insert(tenant.clone(), slot);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId(name.into())
    }

    #[test]
    fn who_comes_back_has_saved_nothing() {
        let mut fair = Fair::default();
        let a = fair.enter(&tenant("a"));
        fair.charge(a, 100, ANSWER_WEIGHT);
        let b = fair.enter(&tenant("b"));
        assert_eq!(fair.counters(), [200, 200]);
        fair.charge(b, 50, PROMPT_WEIGHT);
        fair.leave(b);
        fair.charge(a, 10, PROMPT_WEIGHT);
        // Nor is what it has had forgotten.
        assert_eq!(fair.enter(&tenant("b")), b);
        assert_eq!(fair.counters(), [210, 250]);
        fair.leave(b);
        fair.charge(a, 1000, PROMPT_WEIGHT);
        fair.enter(&tenant("b"));
        assert_eq!(fair.counters(), [1210, 1210]);
    }

    #[test]
    fn tenants_are_forgotten_one_at_a_time() {
        let mut fair = Fair::default();
        let first = fair.enter(&tenant("first"));
        fair.charge(first, 1, 1);
        for i in 0..2 * TENANTS_MAX {
            let slot = fair.enter(&tenant(&i.to_string()));
            fair.charge(slot, i, 1);
            fair.leave(slot);
        }
        assert_eq!((fair.counters().len(), fair.slots.len()), (TENANTS_MAX, TENANTS_MAX));
        assert_eq!(fair.slots[&tenant("first")], first);
    }
}
