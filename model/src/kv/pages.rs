//! Who has which page. Pure bookkeeping: no device, no clock.

use gaterail_kernels::ops::PAGE_POSITIONS;

/// The pages of one sequence, in the order of its positions.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct PageTable {
    pages: Vec<u32>,
}

/// The pool has too few pages left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more KV pages are needed, {free} of {total} are free")]
pub struct NoPages {
    pub needed: usize,
    pub free: usize,
    pub total: usize,
}

/// The free pages.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<u32>,
    total: usize,
}

impl PagePool {
    pub fn new(total: usize) -> PagePool {
        // A slot, page times positions, is a u32.
        let total = total.min(u32::MAX as usize / PAGE_POSITIONS);
        PagePool { free: (0..total as u32).rev().collect(), total }
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Gives `table` pages for `positions` positions, all or none.
    pub fn grow(&mut self, table: &mut PageTable, positions: usize) -> Result<(), NoPages> {
        let needed = positions.div_ceil(PAGE_POSITIONS).saturating_sub(table.pages.len());
        if needed > self.free.len() {
            return Err(NoPages { needed, free: self.free.len(), total: self.total });
        }
        let at = self.free.len() - needed;
        table.pages.extend(self.free.drain(at..).rev());
        Ok(())
    }

    /// Takes all pages of a sequence back.
    pub fn release(&mut self, table: PageTable) {
        self.free.extend(table.pages.into_iter().rev());
        assert!(self.free.len() <= self.total, "a page was released twice");
    }
}

impl PageTable {
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Positions that have a page.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_POSITIONS
    }

    /// `page * PAGE_POSITIONS + offset` of a position.
    pub fn slot(&self, position: usize) -> u32 {
        self.pages[position / PAGE_POSITIONS] * PAGE_POSITIONS as u32 + (position % PAGE_POSITIONS) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_is_all_or_nothing_and_release_gives_all_back() {
        let mut pool = PagePool::new(4);
        let (mut a, mut b) = (PageTable::default(), PageTable::default());
        pool.grow(&mut a, 65).unwrap();
        pool.grow(&mut a, 128).unwrap();
        assert_eq!(a.pages(), [0, 1]);
        assert_eq!(pool.grow(&mut b, 129), Err(NoPages { needed: 3, free: 2, total: 4 }));
        assert!(b.pages().is_empty());
        pool.grow(&mut b, 1).unwrap();
        assert_eq!(a.slot(64), b.slot(0) - 64);
        pool.release(a);
        pool.release(b);
        assert_eq!(pool.free(), 4);
    }
}
