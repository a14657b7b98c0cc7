//! Workers that come, go and die faster than a plan is found.

use super::*;

/// A search takes so long that workers come and go four times meanwhile.
const SEARCH: Duration = Duration::from_secs(2);
const CHURN: Duration = Duration::from_millis(500);

impl World {
    /// Three stay; another one comes and goes, and comes and goes.
    fn churning(seed: u64) -> World {
        let mut world = World::new(seed);
        (world.search_takes, world.prepare_takes) = (Some(SEARCH.as_millis() as u64), Some(0));
        let memory = world.experts_bytes() * 4;
        (0..3).for_each(|_| world.spawn(memory));
        world
    }

    /// For so long. What those who stayed do afterwards, and the longest time that experts were not served.
    fn churn(&mut self, whole: Duration) -> (Vec<WorkerState>, Duration) {
        let (end, mut served) = (self.now + whole, self.now);
        let stay: Vec<WorkerId> = self.processes.keys().copied().collect();
        let mut longest = Duration::ZERO;
        while self.now < end {
            let guest = self.processes.keys().copied().find(|id| !stay.contains(id));
            // There is always one, and never the same for long.
            self.spawn(self.experts_bytes() * 4);
            if let Some(worker) = guest {
                self.processes.remove(&worker);
                self.tell(Event::Lost { worker, why: "killed".to_string() });
            }
            self.pass(CHURN, false);
            self.tell(Event::Switched { epoch: self.activated });
            if self.roster.view(self.now).serving {
                served = self.now;
            }
            longest = longest.max(self.now - served);
        }
        let workers = self.roster.view(self.now).workers;
        let stay = workers.iter().filter(|at| stay.contains(&at.about.id)).map(|at| at.state);
        (stay.collect(), longest)
    }
}

impl World {
    /// Everything is spread as it was wanted, over all who are there: experts are cut where they would be if nothing had been held.
    fn check_spread(&self) {
        // How groups are cut follows what was held before.
        if matches!(self.policy.mode, Mode::Mixed { .. }) {
            return;
        }
        let view = self.roster.view(self.now);
        let seat = |worker: WorkerId| Seat {
            worker,
            memory_bytes: self.processes[&worker].about.machine.memory_bytes,
            read_bytes_per_second: self.roster.speed(worker).expect("it is there"),
        };
        let seats: Vec<Seat> = view.workers.iter().map(|worker| seat(worker.about.id)).collect();
        let wanted = Wanted::new(&self.inventory, &seats, self.policy.mode);
        let Ok(anew) = place(&Wanted { copies: self.policy.copies, ..wanted }) else { return };
        let is_cut = |placement: &Placement| {
            let mut copies = placement.experts.iter().flat_map(|expert| &expert.copies);
            copies.any(|copy| copy.runs.len() > 1)
        };
        let active = self.placement.as_ref().expect("a plan");
        assert_eq!(is_cut(active), is_cut(&anew), "not spread by {}", self.policy.mode);
    }
}

#[test]
fn plans_are_made_however_fast_workers_come_and_go() {
    for seed in 0..100 {
        live(World::churning(seed), seed, |world| {
            // Two results are thrown away, and what comes next is made do with.
            let bound = world.policy.join_wait + 3 * SEARCH + 2 * CHURN;
            let first: BTreeSet<WorkerId> = world.processes.keys().copied().collect();
            let (stay, longest) = world.churn(Duration::from_secs(30));
            assert!(longest <= bound, "nothing served for {longest:?}");
            assert_eq!(stay, [WorkerState::Serving; 3], "who stays is never taken in");
            // So is who comes later, and stays.
            let guest = *world.processes.keys().find(|id| !first.contains(id)).expect("a guest");
            world.processes.remove(&guest);
            world.tell(Event::Lost { worker: guest, why: "killed".to_string() });
            world.spawn(world.experts_bytes() * 4);
            let (stay, _) = world.churn(Duration::from_secs(30));
            assert_eq!(stay, [WorkerState::Serving; 4], "who stays later is never taken in");
            // Somebody who stayed dies, and the guests come and go.
            let worker = *world.processes.keys().next().expect("somebody");
            world.processes.remove(&worker);
            world.tell(Event::Lost { worker, why: "killed".to_string() });
            let (_, longest) = world.churn(Duration::from_secs(30));
            assert!(longest <= bound, "nothing served for {longest:?} after a death");
            (world.search_takes, world.prepare_takes) = (None, None);
            world.pass(Duration::from_secs(30), false);
            world.check_spread();
            world.calm_down();
        });
    }
}

#[test]
fn a_death_in_the_middle_of_a_long_search_is_planned_without_waiting_for_it() {
    let mut waited = 0;
    for seed in 0..100 {
        live(World::churning(seed), seed, |world| {
            (world.policy.copies, world.search_takes) = (1, Some(0));
            world.tell(Event::Rebalance(Wish { mode: Some(Mode::Ep), copies: Some(1), ..Wish::default() }));
            world.pass(Duration::from_secs(10), false);
            assert!(world.roster.view(world.now).serving);
            // A guest, and a search for what could be with it that takes a minute.
            world.search_takes = Some(60_000);
            world.spawn(world.experts_bytes() * 4);
            world.pass(Duration::from_millis(200), false);
            assert_eq!(world.searches.len(), 1);
            let epoch = world.activated;
            // With one copy of everything somebody who served is missed; and one more, while that is looked for.
            for takes in [1_000, 1_000] {
                world.search_takes = Some(takes);
                let placed = world.roster.view(world.now).workers;
                let Some(worker) = placed.iter().find(|at| at.experts > 0).map(|at| at.about.id) else {
                    return;
                };
                world.processes.remove(&worker);
                world.tell(Event::Lost { worker, why: "killed".to_string() });
                world.pass(Duration::from_millis(500), false);
                waited += usize::from(!world.roster.view(world.now).serving);
            }
            world.pass(Duration::from_millis(1_100), false);
            let view = world.roster.view(world.now);
            assert!(view.serving && view.epoch > Some(epoch), "nothing is served: {view:?}");
        });
    }
    assert!(waited > 150, "{waited} deaths were felt");
}
