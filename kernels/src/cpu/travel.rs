//! The loops of `ops::travel`: one row at a time.

use crate::cpu::lanes::{Lanes, by_isa};
use crate::ops::Seen;

by_isa! {
    /// The low 32 bits of a row of sums, and what the row is like.
    fn narrow(from: &[i64], to: &mut [i32], seen: &mut Seen) = narrow_row
}

#[inline(always)]
fn narrow_row<L: Lanes>(from: &[i64], to: &mut [i32], seen: &mut Seen) {
    let (mut any, mut wide) = (0i64, 0i64);
    for (from, to) in from.iter().zip(to) {
        *to = *from as i32;
        any |= *from;
        wide |= *from ^ i64::from(*to);
    }
    *seen = Seen { any: any != 0, wide: wide != 0 };
}

by_isa! {
    /// to <- to + from, whose bytes are i32; no more of them than `to` has elements.
    fn add_i32(from: &[u8], to: &mut [i64]) = add_i32_row
}

#[inline(always)]
fn add_i32_row<L: Lanes>(from: &[u8], to: &mut [i64]) {
    for (to, from) in to.iter_mut().zip(from.as_chunks::<4>().0) {
        // Sums of poisoned rows may be anything.
        *to = to.wrapping_add(i64::from(i32::from_le_bytes(*from)));
    }
}

by_isa! {
    /// to <- to + from, whose bytes are i64.
    fn add_i64(from: &[u8], to: &mut [i64]) = add_i64_row
}

#[inline(always)]
fn add_i64_row<L: Lanes>(from: &[u8], to: &mut [i64]) {
    for (to, from) in to.iter_mut().zip(from.as_chunks::<8>().0) {
        *to = to.wrapping_add(i64::from_le_bytes(*from));
    }
}
