//! Broadcast or gather: whether a worker gets all rows of a batch or those alone that it needs, decided by bytes. A pure function.
//!
//! With all rows nothing is picked out, and their sums come home in place; rows that the worker does not need travel in vain and
//! cost it room in its sums. To gather is to copy every row once more than else.

use super::channel::ExchangeKind;
use super::frame::RowForm;

/// Which rows a worker gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// Every row of the batch (broadcast and reduce).
    All,
    /// Those for which it computes something (gather and scatter).
    Chosen,
}

/// One worker's part of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub kind: ExchangeKind,
    pub form: RowForm,
    /// H
    pub width: usize,
    /// K
    pub top_k: usize,
    /// T
    pub rows: usize,
    /// How many of them it needs.
    pub needed: usize,
}

/// Bytes that memory moves for one byte that travels: written and read. A gRPC stream takes ten times as long as shared memory for
/// them on loopback (`router/notes/2026-11-20-workers.md`), and longer over a network.
fn bytes_moved(kind: ExchangeKind) -> u64 {
    match kind {
        ExchangeKind::Local | ExchangeKind::SharedMemory => 2,
        ExchangeKind::Grpc => 20,
    }
}

impl Traffic {
    /// The cheaper road.
    pub fn road(&self) -> Road {
        if self.moved(Road::Chosen) < self.moved(Road::All) { Road::Chosen } else { Road::All }
    }

    /// Bytes that a road moves, as far as roads differ: replies have the same rows on both.
    fn moved(&self, road: Road) -> u64 {
        let row = (self.form.row_bytes(self.width) + 8 * self.top_k) as u64;
        // A worker's sums of 8 bytes are set to zero, and looked through before they travel.
        let sums = 16 * self.width as u64;
        let travels = row * bytes_moved(self.kind) + sums;
        match road {
            Road::All => self.rows as u64 * travels,
            Road::Chosen => self.needed as u64 * (travels + row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 1,000 rows, the most of which it still pays to pick out.
    fn most(kind: ExchangeKind, form: RowForm) -> usize {
        let at = |needed| Traffic { kind, form, width: 2048, top_k: 8, rows: 1000, needed };
        let most = (0..=1000).rev().find(|&needed| at(needed).road() == Road::Chosen).unwrap_or(0);
        assert!((0..=most).all(|needed| at(needed).road() == Road::Chosen), "one bound for {kind}");
        most
    }

    #[test]
    fn what_is_nearly_everything_is_not_picked_out() {
        let int8 = RowForm::int8(32).expect("groups of 32");
        let found = [ExchangeKind::Local, ExchangeKind::SharedMemory, ExchangeKind::Grpc]
            .map(|kind| (most(kind, RowForm::F32), most(kind, int8)));
        assert_eq!(found, [(856, 940), (856, 940), (959, 971)]);
    }

    #[test]
    fn nothing_is_picked_out_of_one_row_that_is_needed() {
        for kind in [ExchangeKind::Local, ExchangeKind::SharedMemory, ExchangeKind::Grpc] {
            let one = Traffic { kind, form: RowForm::F32, width: 64, top_k: 2, rows: 1, needed: 1 };
            assert_eq!(one.road(), Road::All);
        }
    }
}
