//! All pages: who holds them, and what full ones say.
//!
//! A full page is known by its tokens and by the page before it, down to a root that is the tenant and the salt of the
//! request: a chain in which every link is compared and not only hashed, so that no collision can leak or mix anything.
//! What a position stores depends on the tokens up to it alone (contract 3), so that two pages with one name hold the
//! same bytes, and the later one gives way to the earlier.
//!
//! Pages that nobody holds stay findable until their room is needed; those that were let go first go first, and of one
//! sequence the last page before the ones it follows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gaterail_kernels::ops::PAGE_POSITIONS;

use crate::api::TenantId;

mod tail;

pub use tail::{Tail, TailHit, Taken};

/// Who may share pages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Salt {
    pub tenant: TenantId,
    pub extra: Option<Arc<str>>,
}

/// What a page follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Parent {
    Root(Salt),
    /// The name of a full page; never given twice.
    Page(u64),
}

/// What makes two pages the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    parent: Parent,
    tokens: [u32; PAGE_POSITIONS],
}

/// A full page that can be found.
#[derive(Clone, Debug)]
struct Known {
    name: u64,
    content: Arc<Content>,
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// Sequences that hold it.
    holders: u32,
    known: Option<Known>,
    /// The tail that ends on it, by its name.
    tail: Option<u64>,
    /// When the last holder let it go: its place in `Pages::idle`.
    let_go: u64,
}

/// Full pages from the beginning of a text that are there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    pub pages: Vec<u32>,
    /// The names of the pages, by which it is seen whether they still say the same.
    names: Vec<u64>,
    /// What the next page follows.
    pub parent: Parent,
    /// Those that nobody holds at the moment.
    pub idle: usize,
    /// Those that one sequence alone holds. Whoever holds a page holds what it follows: it is the same one for all.
    pub held_once: usize,
    /// Behind all of them.
    pub tail: Option<TailHit>,
    /// What had happened to the pages when all this was looked up.
    at: Changes,
}

impl Hit {
    /// Positions that need not be computed.
    pub fn positions(&self) -> usize {
        self.pages.len() * PAGE_POSITIONS + self.tail.map_or(0, |tail| tail.positions())
    }

    /// Pages that taking it takes from those that can be had, though it does not get them.
    pub fn beside(&self) -> usize {
        usize::from(self.tail.is_some_and(|tail| tail.lone))
    }
}

/// How often the pages changed in what makes a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    /// A page became known: a hit may go on.
    known: u64,
    /// A page was forgotten: a hit may have lost its end.
    forgotten: u64,
    /// A known page has a holder more or less.
    held: u64,
}

/// The pages of one lane.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Pages without a holder that are known or have a tail, by the time they were let go.
    idle: BTreeMap<u64, u32>,
    index: HashMap<Arc<Content>, u32>,
    keep: bool,
    changes: Changes,
    /// Tails there were.
    tails: u64,
    clock: u64,
}

impl Pages {
    /// `total` free pages; with `keep`, full ones stay findable.
    pub fn new(total: usize, keep: bool) -> Pages {
        Pages {
            pages: vec![Page::default(); total],
            free: (0..total as u32).rev().collect(),
            idle: BTreeMap::new(),
            index: HashMap::new(),
            keep,
            changes: Changes::default(),
            tails: 0,
            clock: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that can be had: the free ones, and those that nobody holds.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Pages that are kept though nobody holds them.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// The full pages with which `tokens` begins.
    pub fn find(&self, salt: &Salt, tokens: &[u32]) -> Hit {
        let mut hit = Hit {
            pages: Vec::new(),
            names: Vec::new(),
            parent: Parent::Root(salt.clone()),
            idle: 0,
            held_once: 0,
            tail: None,
            at: self.changes,
        };
        self.go_on(&mut hit, tokens);
        hit
    }

    /// Makes of an earlier hit for the same tokens what `find` would say now. Takes no time where nothing has changed, and
    /// else none for the tokens of pages that are still there.
    pub fn find_again(&self, hit: &mut Hit, salt: &Salt, tokens: &[u32]) {
        if !self.keep {
            *hit = self.find(salt, tokens);
        }
        if hit.at == self.changes {
            return;
        }
        if hit.at.forgotten != self.changes.forgotten {
            let says = |(page, name): (&u32, &u64)| self.name(*page) == Some(*name);
            let still = hit.pages.iter().zip(&hit.names).take_while(|link| says(*link)).count();
            hit.pages.truncate(still);
            hit.names.truncate(still);
            hit.parent = match hit.names.last() {
                Some(name) => Parent::Page(*name),
                None => Parent::Root(salt.clone()),
            };
        }
        self.go_on(hit, tokens);
    }

    /// Follows the chain from where a hit ends.
    fn go_on(&self, hit: &mut Hit, tokens: &[u32]) {
        hit.at = self.changes;
        if !self.keep {
            return;
        }
        for tokens in tokens.as_chunks::<PAGE_POSITIONS>().0.iter().skip(hit.pages.len()) {
            let content = Content { parent: hit.parent.clone(), tokens: *tokens };
            // What is in the index is known.
            let Some(&page) = self.index.get(&content) else { break };
            let Some(name) = self.name(page) else { break };
            hit.parent = Parent::Page(name);
            hit.pages.push(page);
            hit.names.push(name);
        }
        self.count(hit);
    }

    fn count(&self, hit: &mut Hit) {
        let with = |holders: u32| {
            hit.pages.iter().filter(|page| self.pages[**page as usize].holders == holders).count()
        };
        (hit.idle, hit.held_once) = (with(0), with(1));
    }

    fn name(&self, page: u32) -> Option<u64> {
        self.pages[page as usize].known.as_ref().map(|known| known.name)
    }

    /// Holds the pages of a hit.
    pub fn hold(&mut self, hit: &Hit) {
        for &page in &hit.pages {
            let at = &self.pages[page as usize];
            assert!(at.known.is_some() || at.tail.is_some(), "page {page} of a hit is gone");
            self.hold_one(page);
        }
    }

    fn hold_one(&mut self, page: u32) {
        let at = &mut self.pages[page as usize];
        if at.holders == 0 {
            self.idle.remove(&at.let_go);
        }
        at.holders += 1;
        self.changes.held += u64::from(at.known.is_some());
    }

    /// A page to write, held once; of the idle ones the one that was let go first. `None` when all are held.
    pub fn fresh(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                self.forget(page);
                page
            }
        };
        self.pages[page as usize].holders = 1;
        Some(page)
    }

    /// Makes a page findable that is full now, and returns the page to go on with: an older one that says the same, or
    /// this one. And what the next page follows.
    pub fn complete(&mut self, page: u32, parent: Parent, tokens: [u32; PAGE_POSITIONS]) -> (u32, Parent) {
        if !self.keep {
            return (page, parent);
        }
        let content = Content { parent, tokens };
        if let Some(&older) = self.index.get(&content) {
            self.hold_one(older);
            let name = self.name(older).unwrap_or(0);
            self.let_go(page);
            return (older, Parent::Page(name));
        }
        self.changes.known += 1;
        let name = self.changes.known;
        let content = Arc::new(content);
        self.index.insert(content.clone(), page);
        let at = &mut self.pages[page as usize];
        assert!(at.holders == 1 && at.known.is_none(), "page {page} was completed twice");
        at.known = Some(Known { name, content });
        (page, Parent::Page(name))
    }

    /// Lets the pages of a sequence go, the last one first.
    pub fn release(&mut self, pages: Vec<u32>) {
        pages.into_iter().rev().for_each(|page| self.let_go(page));
    }

    /// How many of `pages` have no other holder.
    pub fn held_once(&self, pages: &[u32]) -> usize {
        pages.iter().filter(|&&page| self.pages[page as usize].holders == 1).count()
    }

    /// Forgets what idle pages say: all of them are free then.
    pub fn clear(&mut self) {
        while let Some((_, page)) = self.idle.pop_first() {
            self.forget(page);
            self.free.push(page);
        }
    }

    fn let_go(&mut self, page: u32) {
        let at = &mut self.pages[page as usize];
        assert!(at.holders > 0, "page {page} was released twice");
        at.holders -= 1;
        self.changes.held += u64::from(at.known.is_some());
        if at.holders > 0 {
            return;
        }
        if at.known.is_some() || at.tail.is_some() {
            self.clock += 1;
            at.let_go = self.clock;
            self.idle.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
    }

    fn forget(&mut self, page: u32) {
        self.pages[page as usize].tail = None;
        if let Some(known) = self.pages[page as usize].known.take() {
            self.index.remove(&known.content);
            self.changes.forgotten += 1;
        }
    }

    /// Checks that every page is in one place only, given the tables of all sequences and how many of the pages in each
    /// are full and will not be written again. Returns what is wrong.
    pub fn audit<'a>(&self, tables: impl Iterator<Item = (&'a [u32], usize)>) -> Result<(), String> {
        let mut holders = vec![0u32; self.pages.len()];
        let mut written = vec![0u32; self.pages.len()];
        for (pages, full) in tables {
            for (at, &page) in pages.iter().enumerate() {
                holders[page as usize] += 1;
                written[page as usize] += u32::from(at >= full);
            }
        }
        let mut free = vec![0u32; self.pages.len()];
        self.free.iter().chain(self.idle.values()).for_each(|&page| free[page as usize] += 1);
        for (index, page) in self.pages.iter().enumerate() {
            let wrong = |what: &str| Err(format!("page {index}: {what}"));
            if page.holders != holders[index] {
                return wrong(&format!("{} holders are counted, {} hold it", page.holders, holders[index]));
            }
            if free[index] != u32::from(page.holders == 0) {
                return wrong(&format!("{} holders, {} times free", page.holders, free[index]));
            }
            if written[index] > 0 && (page.holders > 1 || page.known.is_some()) {
                return wrong("written by one sequence and found or held by others");
            }
            if self.idle.get(&page.let_go) == Some(&(index as u32))
                && page.known.is_none()
                && page.tail.is_none()
            {
                return wrong("kept, and cannot be found");
            }
            let found = page.known.as_ref().map(|known| self.index.get(&known.content));
            if found.is_some_and(|found| found != Some(&(index as u32))) {
                return wrong("known by a name that leads elsewhere");
            }
        }
        if self.index.len() != self.pages.iter().filter(|page| page.known.is_some()).count() {
            return Err("the index names pages that are not known".to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
