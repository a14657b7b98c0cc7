//! The pages of one sequence, in the order of its positions.

use gaterail_kernels::ops::PAGE_POSITIONS;

use super::pages::{Hit, Pages, Parent, Salt, Taken};

/// Pages that a sequence holds: first full ones, which are never written again, then those that it writes.
#[derive(Debug)]
#[must_use]
pub struct Table {
    pages: Vec<u32>,
    /// Pages that are full.
    full: usize,
    /// What the first page that is not full follows.
    parent: Parent,
}

/// A table that begins with what was there.
#[must_use]
pub struct Begun {
    pub table: Table,
    /// Positions that are there, or will be when the page is copied.
    pub computed: usize,
    /// A page that is held until it is copied over the first one that is not full.
    pub copied: Option<u32>,
}

impl Table {
    pub fn new(salt: &Salt) -> Table {
        Table { pages: Vec::new(), full: 0, parent: Parent::Root(salt.clone()) }
    }

    /// Begins with the pages of a hit.
    pub fn begin(mut hit: Hit, pages: &mut Pages) -> Begun {
        pages.hold(&hit);
        let taken = hit.tail.and_then(|tail| pages.take_tail(tail));
        if taken.is_none() {
            hit.tail = None;
        }
        let computed = hit.positions();
        let mut table = Table { full: hit.pages.len(), pages: hit.pages, parent: hit.parent };
        let copied = match taken {
            Some(Taken::ToCopy(page)) => Some(page),
            Some(Taken::Whole(page)) => {
                table.pages.push(page);
                None
            }
            None => None,
        };
        Begun { table, computed, copied }
    }

    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Pages that are full and will not be written again.
    pub fn full(&self) -> usize {
        self.full
    }

    /// The first page that is not full.
    pub fn written_next(&self) -> Option<u32> {
        self.pages.get(self.full).copied()
    }

    /// Positions that have a page.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_POSITIONS
    }

    /// Pages that `positions` positions are short of.
    pub fn short_of(&self, positions: usize) -> usize {
        positions.div_ceil(PAGE_POSITIONS).saturating_sub(self.pages.len())
    }

    /// Takes pages for `positions` positions; false when there are too few, and then all it got stays with it.
    pub fn grow(&mut self, positions: usize, pages: &mut Pages) -> bool {
        for _ in 0..self.short_of(positions) {
            let Some(page) = pages.fresh() else { return false };
            self.pages.push(page);
        }
        true
    }

    /// The KV of `tokens` up to `computed` is written: pages that are full by that become findable.
    pub fn written(&mut self, tokens: &[u32], computed: usize, pages: &mut Pages) {
        while (self.full + 1) * PAGE_POSITIONS <= computed {
            let start = self.full * PAGE_POSITIONS;
            // There are as many tokens as positions computed.
            let Some(tokens) = tokens[start..].first_chunk::<PAGE_POSITIONS>() else { return };
            let (page, parent) = pages.complete(self.pages[self.full], self.parent.clone(), *tokens);
            self.pages[self.full] = page;
            self.parent = parent;
            self.full += 1;
        }
    }

    /// Lets all pages go.
    pub fn release(self, pages: &mut Pages) {
        pages.release(self.pages);
    }
}
