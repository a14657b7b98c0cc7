//! The last page of a prompt that several choices share: alike up to where their answers begin. And its full pages, where
//! there is no cache in which they would be found by what they say.
//!
//! The first choice goes on writing behind the prompt's end, and so does whoever gets the page after it: no position of
//! the prompt is written again. So the page can be copied at any time, and who finds it with nobody takes it as it is.
//! Nobody holds a page for its tail: one that is let go stays findable until its room is needed, as full pages do.

use gaterail_kernels::ops::PAGE_POSITIONS;

use super::{Hit, Pages};

/// What a prompt has on a page: its end on one that it does not fill, or all of a full one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    page: u32,
    /// Never given twice; the page loses it when it is given to somebody else.
    name: u64,
    /// Of the prompt, before the page and on it.
    start: usize,
    positions: usize,
}

/// A tail that follows the full pages of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailHit {
    tail: Tail,
    /// Whether nobody has the page and it cannot be taken, for it is full and findable: until it is copied it is one less
    /// that can be had.
    pub lone: bool,
}

/// How a sequence gets a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The page is its own now.
    Whole(u32),
    /// The page is held for it, and has to be let go when it is copied.
    ToCopy(u32),
}

impl TailHit {
    pub fn positions(&self) -> usize {
        self.tail.positions
    }
}

impl Pages {
    /// A prompt of `prompt` tokens, which begins a sequence with these pages, can be found from now on, as far as it could
    /// not be already.
    pub fn mark(&mut self, pages: &[u32], prompt: usize) -> Vec<Tail> {
        let mut tails = Vec::new();
        for (page, start) in pages.iter().zip((0..prompt).step_by(PAGE_POSITIONS)) {
            let positions = (prompt - start).min(PAGE_POSITIONS);
            if positions < PAGE_POSITIONS || !self.keep {
                self.tails += 1;
                self.pages[*page as usize].tail = Some(self.tails);
                tails.push(Tail { page: *page, name: self.tails, start, positions });
            }
        }
        tails
    }

    /// Adds a prompt's tails to a hit, as far as they go on from there for at most `most` positions and still are what
    /// they were.
    pub fn find_tails(&self, hit: &mut Hit, tails: &[Tail], most: usize) {
        hit.tail = None;
        let mut pushed = false;
        for tail in tails {
            let found = hit.pages.len() * PAGE_POSITIONS;
            if tail.start != found || found + tail.positions > most || !self.has(tail) {
                continue;
            }
            if tail.positions == PAGE_POSITIONS {
                hit.pages.push(tail.page);
                pushed = true;
                continue;
            }
            let page = &self.pages[tail.page as usize];
            let lone = page.holders == 0 && page.known.is_some();
            // One that needs all pages would wait for one more for ever. (Its last token is never found, so that it has one more.)
            if !lone || (most + 1).div_ceil(PAGE_POSITIONS) < self.total() {
                hit.tail = Some(TailHit { tail: *tail, lone });
            }
        }
        if pushed {
            self.count(hit);
        }
    }

    /// Takes the tail of a hit. Others may have taken or lost the page since it was looked up.
    pub fn take_tail(&mut self, hit: TailHit) -> Option<Taken> {
        let TailHit { tail, lone } = hit;
        if !self.has(&tail) {
            return None;
        }
        let page = &self.pages[tail.page as usize];
        let taken = match (page.holders, page.known.is_some()) {
            (0, false) => Taken::Whole(tail.page),
            // No room was made for that.
            (0, true) if !lone => return None,
            _ => Taken::ToCopy(tail.page),
        };
        self.hold_one(tail.page);
        Some(taken)
    }

    /// The tail is not wanted any more.
    pub fn forget_tail(&mut self, tail: Tail) {
        if !self.has(&tail) {
            return;
        }
        let page = &mut self.pages[tail.page as usize];
        page.tail = None;
        if page.holders == 0 && page.known.is_none() {
            self.idle.remove(&page.let_go);
            self.free.push(tail.page);
        }
    }

    fn has(&self, tail: &Tail) -> bool {
        self.pages[tail.page as usize].tail == Some(tail.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Parent, Salt};
    use super::*;
    use crate::api::TenantId;

    fn salt() -> Salt {
        Salt { tenant: TenantId("a".into()), extra: None }
    }

    fn hit(pages: &Pages, tail: Tail, most: usize) -> Option<TailHit> {
        let mut hit = pages.find(&salt(), &[]);
        pages.find_tails(&mut hit, &[tail], most);
        hit.tail
    }

    #[test]
    fn a_tail_is_copied_while_somebody_has_it_and_taken_when_nobody_has() {
        let mut pages = Pages::new(3, true);
        let page = pages.fresh().unwrap();
        let tail = pages.mark(&[page], 10)[0];
        // Not further than is wanted, and not behind other pages.
        assert_eq!(hit(&pages, tail, 9), None);
        let found = hit(&pages, tail, 10).unwrap();
        assert_eq!((found.positions(), pages.take_tail(found)), (10, Some(Taken::ToCopy(page))));
        pages.release(vec![page]);
        assert_eq!(pages.available(), 2);
        pages.release(vec![page]);
        // It can be had, and others are had before it.
        assert_eq!((pages.available(), pages.idle()), (3, 1));
        let others = [pages.fresh().unwrap(), pages.fresh().unwrap()];
        assert!(!others.contains(&page));
        assert_eq!(pages.audit([(&others[..], 0)].into_iter()), Ok(()));
        assert_eq!(pages.take_tail(found), Some(Taken::Whole(page)));
        assert_eq!(pages.take_tail(found), Some(Taken::ToCopy(page)));
        pages.release(vec![page, page]);
        // Whoever gets the page writes over it.
        assert_eq!(pages.fresh(), Some(page));
        assert_eq!((hit(&pages, tail, 10), pages.take_tail(found)), (None, None));
        pages.forget_tail(tail);
        pages.release([&others[..], &[page]].concat());
        assert_eq!((pages.available(), pages.idle()), (3, 0));
    }

    #[test]
    fn without_a_cache_a_prompt_is_found_by_its_own_request_until_it_is_over() {
        let mut pages = Pages::new(4, false);
        let held = [pages.fresh().unwrap(), pages.fresh().unwrap()];
        let tails = pages.mark(&held, 70);
        pages.release(held.to_vec());
        let mut hit = pages.find(&salt(), &[0; 70]);
        assert_eq!(hit.positions(), 0);
        pages.find_tails(&mut hit, &tails, 70);
        assert_eq!((&hit.pages[..], hit.idle, hit.positions()), (&held[..1], 1, 70));
        pages.hold(&hit);
        pages.find_again(&mut hit, &salt(), &[0; 70]);
        pages.find_tails(&mut hit, &tails, 69);
        assert_eq!((hit.held_once, hit.positions()), (1, 64));
        pages.release(hit.pages);
        tails.into_iter().for_each(|tail| pages.forget_tail(tail));
        assert_eq!((pages.available(), pages.idle()), (4, 0));
    }

    #[test]
    fn a_tail_on_a_page_that_others_find_is_not_taken() {
        let mut pages = Pages::new(2, true);
        let page = pages.fresh().unwrap();
        let tail = pages.mark(&[page], 10)[0];
        let held = hit(&pages, tail, 10).unwrap();
        assert_eq!(pages.complete(page, Parent::Root(salt()), [7; PAGE_POSITIONS]).0, page);
        pages.release(vec![page]);
        // When it was looked up it was somebody's, so that no room was made for holding it.
        assert_eq!(pages.take_tail(held), None);
        let lone = hit(&pages, tail, 10).unwrap();
        assert!(lone.lone);
        // With two pages for its own it cannot have a third beside.
        assert_eq!((hit(&pages, tail, 64), hit(&pages, tail, 65)), (None, None));
        assert_eq!(pages.take_tail(lone), Some(Taken::ToCopy(page)));
        pages.release(vec![page]);
        pages.forget_tail(tail);
        assert_eq!((pages.available(), pages.idle()), (2, 1));
        assert_eq!(pages.find(&salt(), &[7; PAGE_POSITIONS]).pages, [page]);
    }
}
