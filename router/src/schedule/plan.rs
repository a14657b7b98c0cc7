//! The decision, as a pure function.
//!
//! 1. Who waits gets in, the tenant that has had least first, while there is a place and there are pages for all of its
//!    tokens beside one for everybody who runs. A sequence whose client does not read gives up its place to whoever
//!    wants it; and a tenant that runs nothing takes one from the tenant that runs most.
//! 2. Everybody who decodes gets a row. When pages run out for that, somebody loses theirs: who is paused, else the newest
//!    of the tenant that holds most, but never the oldest of all, which therefore gets to its end.
//! 3. What is left of the rows goes to prompts, again to the tenant that has had least.

use super::view::{Running, Shared, View, Waiting};

/// What is to be done in a step, in this order. Numbers are places in the view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Of those who run: their pages are taken away.
    pub preempt: Vec<usize>,
    /// Of those who wait: they get pages for all of their tokens.
    pub admit: Vec<usize>,
    /// What is computed.
    pub rows: Vec<Share>,
}

/// Rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub who: Who,
    pub rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Running(usize),
    Waiting(usize),
}

/// Decides the next step.
pub fn schedule(view: &View) -> Plan {
    let mut planner = Planner::new(view);
    planner.admit();
    planner.decode();
    planner.prefill();
    planner.plan
}

/// What became of a sequence that runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Granted,
    Preempted,
}

struct Planner<'a> {
    view: &'a View,
    fates: Vec<Fate>,
    /// Pages of each that runs, held by it alone until now, which somebody who gets in with this plan has, too. They are
    /// not free when it goes.
    shared: Vec<usize>,
    /// Sequences of each tenant that run.
    places: Vec<usize>,
    counters: Vec<u64>,
    pages: usize,
    rows: usize,
    logits: usize,
    plan: Plan,
}

impl Planner<'_> {
    fn new(view: &View) -> Planner<'_> {
        let mut places = vec![0; view.counters.len()];
        view.running.iter().for_each(|running| places[running.tenant.0] += 1);
        Planner {
            view,
            fates: vec![Fate::Open; view.running.len()],
            shared: vec![0; view.running.len()],
            places,
            counters: view.counters.clone(),
            pages: view.pages,
            rows: view.limits.rows,
            logits: view.limits.logits,
            plan: Plan::default(),
        }
    }

    fn admit(&mut self) {
        // Who waits next, by tenant; a tenant that found no place is out for this step.
        let mut queue: Vec<usize> = (0..self.view.waiting.len()).collect();
        let mut counters = self.counters.clone();
        loop {
            let next = queue.iter().copied().min_by_key(|&at| {
                let tenant = self.view.waiting[at].tenant;
                (counters[tenant.0], tenant, at)
            });
            let Some(next) = next else { return };
            let waiting = self.view.waiting[next];
            if !self.make_place(waiting) {
                queue.retain(|&at| self.view.waiting[at].tenant != waiting.tenant);
                continue;
            }
            // Whoever has had least waits for pages, and nobody gets past it: else it might wait for ever.
            if !self.make_pages(waiting) {
                return;
            }
            self.pages -= self.cost(waiting);
            if let Some(Shared { with, pages }) = waiting.shared {
                self.shared[with] = self.shared[with].max(pages);
            }
            self.places[waiting.tenant.0] += 1;
            counters[waiting.tenant.0] += waiting.pending as u64;
            self.plan.admit.push(next);
            queue.retain(|&at| at != next);
        }
    }

    fn make_place(&mut self, waiting: Waiting) -> bool {
        while self.places.iter().sum::<usize>() >= self.view.limits.sequences {
            let Some(victim) = self.gives_way_to(waiting) else { return false };
            self.preempt(victim);
        }
        true
    }

    fn make_pages(&mut self, waiting: Waiting) -> bool {
        loop {
            // Everybody who runs may need a page soon.
            let running: usize = self.places.iter().sum();
            if self.pages >= self.cost(waiting) + running {
                return true;
            }
            let Some(victim) = self.gives_way_to(waiting) else { return false };
            self.preempt(victim);
        }
    }

    /// Pages that it takes, with those that were shared until their holder lost them. What two share with one is the
    /// beginning of one text, so that the longer part holds the shorter.
    fn cost(&self, waiting: Waiting) -> usize {
        let left = match waiting.shared {
            Some(Shared { with, pages }) if self.fates[with] == Fate::Preempted => {
                pages.saturating_sub(self.shared[with])
            }
            _ => 0,
        };
        waiting.cost + left
    }

    /// Who gives up its place or its pages to somebody who waits.
    fn gives_way_to(&self, waiting: Waiting) -> Option<usize> {
        let paused = |&at: &usize| self.fates[at] == Fate::Open && self.view.running[at].paused;
        if let Some(paused) = (0..self.fates.len()).rfind(paused) {
            return Some(paused);
        }
        if self.places[waiting.tenant.0] > 0 {
            return None;
        }
        // Whoever gets in with this plan has nothing yet that could be taken.
        let mut open = vec![0; self.places.len()];
        (0..self.fates.len())
            .filter(|&at| self.fates[at] == Fate::Open)
            .for_each(|at| open[self.view.running[at].tenant.0] += 1);
        let most = (0..open.len()).max_by_key(|&tenant| (open[tenant], tenant))?;
        let of_most = |&at: &usize| self.fates[at] == Fate::Open && self.view.running[at].tenant.0 == most;
        if open[most] < 2 { None } else { (0..self.fates.len()).rfind(of_most) }
    }

    fn decode(&mut self) {
        for at in 0..self.fates.len() {
            let running = self.view.running[at];
            let wants = self.fates[at] == Fate::Open && !running.paused && running.pending == 1;
            if wants && self.rows > 0 && self.logits > 0 && self.find_pages(at) {
                self.grant(Who::Running(at), 1, 1);
            }
        }
    }

    /// Pages for what `at` is short of; false when it has lost its own instead.
    fn find_pages(&mut self, at: usize) -> bool {
        while self.pages < self.view.running[at].short {
            let Some(victim) = self.victim() else { return false };
            self.preempt(victim);
            if victim == at {
                return false;
            }
        }
        self.pages -= self.view.running[at].short;
        true
    }

    /// Who loses its pages to one who runs.
    fn victim(&self) -> Option<usize> {
        let open = |at: &usize| self.fates[*at] == Fate::Open;
        if let Some(paused) = (0..self.fates.len()).filter(open).rfind(|&at| self.view.running[at].paused) {
            return Some(paused);
        }
        let oldest = (0..self.fates.len()).find(|&at| self.fates[at] != Fate::Preempted)?;
        let mut held = vec![0; self.places.len()];
        for (at, running) in self.view.running.iter().enumerate() {
            if self.fates[at] != Fate::Preempted {
                held[running.tenant.0] += running.held;
            }
        }
        let candidates = (0..self.fates.len()).filter(open).filter(|&at| at != oldest);
        candidates.max_by_key(|&at| (held[self.view.running[at].tenant.0], at))
    }

    fn preempt(&mut self, at: usize) {
        let Running { tenant, held, .. } = self.view.running[at];
        self.fates[at] = Fate::Preempted;
        self.places[tenant.0] -= 1;
        self.pages += held.saturating_sub(self.shared[at]);
        self.plan.preempt.push(at);
    }

    fn prefill(&mut self) {
        let mut prompts: Vec<(Who, usize, usize, bool)> = Vec::new();
        for (at, running) in self.view.running.iter().enumerate() {
            if self.fates[at] == Fate::Open && !running.paused && running.pending > 1 {
                prompts.push((Who::Running(at), running.tenant.0, running.pending, running.every_logit));
            }
        }
        for &at in &self.plan.admit {
            let waiting = self.view.waiting[at];
            prompts.push((Who::Waiting(at), waiting.tenant.0, waiting.pending, waiting.every_logit));
        }
        while self.rows > 0 && self.logits > 0 && !prompts.is_empty() {
            let least = prompts.iter().enumerate().min_by_key(|(at, prompt)| (self.counters[prompt.1], *at));
            let Some((at, _)) = least else { return };
            let (who, tenant, pending, every_logit) = prompts.remove(at);
            if let Who::Running(at) = who
                && !self.find_pages(at)
            {
                prompts
                    .retain(|prompt| !matches!(prompt.0, Who::Running(at) if self.fates[at] != Fate::Open));
                continue;
            }
            let rows = pending.min(self.rows).min(if every_logit { self.logits } else { pending });
            self.counters[tenant] += rows as u64;
            self.grant(who, rows, if every_logit { rows } else { 1 });
        }
    }

    fn grant(&mut self, who: Who, rows: usize, logits: usize) {
        if let Who::Running(at) = who {
            self.fates[at] = Fate::Granted;
        }
        self.rows -= rows;
        self.logits -= logits;
        self.plan.rows.push(Share { who, rows });
    }
}
