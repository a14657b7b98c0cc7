//! Room for the bodies that are being read, shared by those who send them.
//!
//! All bodies together have a limit. Within it a sender may take no more than it leaves free, so that there is room for the
//! next one however many send; only one body it may always have. And the last part is for bodies that are small: whoever
//! sends large ones slowly does not keep ordinary requests out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::TenantId;

/// Room is taken in pieces of this size; a body that fits one is small.
pub const UNIT_BYTES: usize = 64 << 10;
/// This part of the room is for small bodies.
const SMALL_PART: usize = 8;

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// Where a key says who it is.
    Tenant(TenantId),
    /// Else an address, and of IPv6 the network that one machine may choose from.
    Address(IpAddr),
}

impl Sender {
    pub fn at(address: IpAddr) -> Sender {
        Sender::Address(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !0 << 64)),
            address => address,
        })
    }
}

/// All room there is, in units.
#[derive(Debug)]
pub struct BodyRoom {
    units_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    units: usize,
    senders: HashMap<Sender, usize>,
}

/// The room of one body; free again when dropped.
#[derive(Debug)]
#[must_use]
pub struct BodyPermit {
    room: Arc<BodyRoom>,
    sender: Sender,
    units: usize,
}

impl BodyRoom {
    /// Room for `bytes`, and at least for two bodies of `body_bytes_max`.
    pub fn new(bytes: usize, body_bytes_max: usize) -> BodyRoom {
        let units_max = bytes.div_ceil(UNIT_BYTES).max(2 * body_bytes_max.div_ceil(UNIT_BYTES)).max(2);
        BodyRoom { units_max, held: Mutex::default() }
    }

    /// A body that begins.
    pub fn enter(self: &Arc<Self>, sender: Sender) -> BodyPermit {
        BodyPermit { room: self.clone(), sender, units: 0 }
    }

    /// Whether a body with so many units may have one more.
    fn has_room(&self, held: &Held, of_sender: usize, of_body: usize) -> bool {
        let all = held.units + 1;
        let small_part = if of_body == 0 { 0 } else { self.units_max / SMALL_PART };
        let left = (self.units_max - small_part).checked_sub(all);
        // It is the sender's only one, or what the sender would have is no more than what would be left.
        left.is_some_and(|left| of_sender == of_body || of_sender < left)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BodyPermit {
    /// Takes room for `bytes` in all; false where there is none, and then it has what it had.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let units = bytes.div_ceil(UNIT_BYTES);
        if units <= self.units {
            return true;
        }
        let mut held = self.room.held();
        while self.units < units {
            let of_sender = held.senders.get(&self.sender).copied().unwrap_or(0);
            if !self.room.has_room(&held, of_sender, self.units) {
                return false;
            }
            held.units += 1;
            *held.senders.entry(self.sender.clone()).or_default() += 1;
            self.units += 1;
        }
        true
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        let mut held = self.room.held();
        held.units -= self.units;
        if let Some(of_sender) = held.senders.get_mut(&self.sender) {
            *of_sender -= self.units;
            if *of_sender == 0 {
                held.senders.remove(&self.sender);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: usize = UNIT_BYTES;

    fn room(units: usize) -> Arc<BodyRoom> {
        Arc::new(BodyRoom::new(units * UNIT, UNIT))
    }

    fn sender(name: &str) -> Sender {
        Sender::Tenant(TenantId(name.into()))
    }

    /// Bodies of so many units that `name` gets in.
    fn fill(room: &Arc<BodyRoom>, name: &str, units: usize) -> Vec<BodyPermit> {
        let one = || {
            let mut permit = room.enter(sender(name));
            permit.grow(units * UNIT).then_some(permit)
        };
        std::iter::from_fn(one).collect()
    }

    #[test]
    fn who_sends_much_leaves_as_much_as_it_has() {
        let room = room(128);
        // 112 for large ones: 56 and what is left of it.
        let a = fill(&room, "a", 8);
        assert_eq!(a.len(), 7);
        let b = fill(&room, "b", 8);
        assert_eq!(b.len(), 3);
        // One it may always have, as long as there is any.
        let c = fill(&room, "c", 30);
        assert_eq!(c.len(), 1);
        assert!(!room.enter(sender("d")).grow(8 * UNIT));
        // Small ones come in still.
        let small = fill(&room, "e", 1);
        assert_eq!(small.len(), 9);
        let other = fill(&room, "f", 1);
        assert_eq!(other.len(), 4);
        drop((a, b, c, small, other));
        assert_eq!(room.held().units, 0);
        assert!(room.held().senders.is_empty());
    }

    #[test]
    fn a_body_as_large_as_any_has_room_whatever_the_limit() {
        let room = Arc::new(BodyRoom::new(1, 16 * UNIT));
        assert!(room.enter(sender("a")).grow(16 * UNIT));
    }

    #[test]
    fn one_machine_is_one_sender() {
        let at = |text: &str| Sender::at(text.parse().expect("an address"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_ne!(at("10.0.0.2"), at("10.0.0.1"));
    }
}
