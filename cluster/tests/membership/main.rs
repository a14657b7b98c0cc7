//! A roster's answers to what happens, case by case.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gaterail_cluster::membership::{
    Action, Begun, Event, Machine, Policy, Refused, Roster, RosterView, Search, Wish, WorkerAbout,
    WorkerState,
};
use gaterail_cluster::placement::{Mode, Popularity};
use gaterail_proto::{Epoch, ExpertInventory, LayerExperts, LayerId, WorkerId};

mod deaths;
mod failing;
mod joining;
mod searching;
mod wishes;

fn inventory() -> ExpertInventory {
    let layer = |layer| LayerExperts { layer: LayerId(layer), experts: 8, units: 4, expert_bytes: 1000 };
    ExpertInventory { layers: (1..4).map(layer).collect() }
}

fn about(id: u64) -> WorkerAbout {
    let machine = Machine {
        device: "cpu".to_string(),
        card: None,
        threads: 1,
        memory_bytes: 1 << 20,
        read_bytes_per_second: 1e10,
        int8_operations_per_second: 1e11,
        pid: id as u32,
    };
    WorkerAbout {
        id: WorkerId(id),
        name: format!("worker-{id}"),
        machine,
        host: String::new(),
        packed: Arc::default(),
    }
}

/// A roster, the time, and workers that prepare at once unless they are told not to.
struct Bench {
    roster: Roster,
    now: Instant,
    answering: bool,
    /// Plans are found at once, or when `find` is called.
    finding: bool,
    searches: Vec<Search>,
}

impl Bench {
    fn new(policy: Policy) -> Bench {
        Bench {
            roster: Roster::new(policy, inventory()),
            now: Instant::now(),
            answering: true,
            finding: true,
            searches: Vec::new(),
        }
    }

    /// With so many workers, and all of them in the active plan.
    fn serving(workers: u64, copies: u32) -> Bench {
        let mut bench = Bench::new(Policy { expected: workers as usize, copies, ..Policy::default() });
        let done: Vec<Action> = (1..=workers).flat_map(|id| bench.on(Event::Joined(about(id)))).collect();
        assert_eq!(activated(&done), [(1, workers as usize)]);
        bench.on(Event::Switched { epoch: Epoch(1) });
        bench
    }

    fn view(&self) -> RosterView {
        self.roster.view(self.now)
    }

    /// What is done, without notes.
    fn on(&mut self, event: Event) -> Vec<Action> {
        let actions = self.roster.on(event, self.now);
        self.answered(actions)
    }

    /// Time passes in which all but some are heard.
    fn pass(&mut self, duration: Duration, silent: &[u64]) -> Vec<Action> {
        let (mut done, end) = (Vec::new(), self.now + duration);
        while self.now < end {
            self.now += Duration::from_millis(100);
            for worker in self.roster.view(self.now).workers.iter().map(|worker| worker.about.id) {
                if !silent.contains(&worker.0) {
                    done.extend(self.on(Event::Heard { worker, calls: 0, held_bytes: 0 }));
                }
            }
            let actions = self.roster.tick(self.now);
            done.extend(self.answered(actions));
        }
        done
    }

    fn answered(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let (mut done, mut answers) = (Vec::new(), Vec::new());
        for action in actions {
            if let Action::Search(search) = action {
                self.searches.push(*search);
                continue;
            }
            if let Action::Prepare { worker, epoch, .. } = action {
                answers.push(Event::Prepared { worker, epoch });
            }
            if !matches!(action, Action::Note(_)) {
                done.push(action);
            }
        }
        if self.answering {
            answers.into_iter().for_each(|answer| done.extend(self.on(answer)));
        }
        if self.finding {
            done.extend(self.find());
        }
        done
    }

    /// Whatever is looked for is found now.
    fn find(&mut self) -> Vec<Action> {
        let Some(search) = self.searches.pop() else { return Vec::new() };
        assert!(self.searches.is_empty(), "one is looked for at a time");
        let actions = self.roster.found(search.found(), self.now);
        self.answered(actions)
    }
}

fn lost(worker: u64) -> Event {
    Event::Lost { worker: WorkerId(worker), why: "killed".to_string() }
}

fn prepares(actions: &[Action]) -> Vec<(u64, u64, usize)> {
    let prepares = actions.iter().filter_map(|action| match action {
        Action::Prepare { worker, epoch, shard } => Some((worker.0, epoch.0, shard.slices.len())),
        _ => None,
    });
    prepares.collect()
}

fn dismissed(actions: &[Action]) -> Vec<(u64, bool)> {
    let dismissals = actions.iter().filter_map(|action| match action {
        Action::Dismiss { worker, again, .. } => Some((worker.0, *again)),
        _ => None,
    });
    dismissals.collect()
}

fn activated(actions: &[Action]) -> Vec<(u64, usize)> {
    let activations = actions.iter().filter_map(|action| match action {
        Action::Activate { epoch, placement } => {
            placement.check(&inventory()).unwrap();
            Some((epoch.0, placement.workers.len()))
        }
        _ => None,
    });
    activations.collect()
}

/// Epochs that workers hold after more was done.
fn holding(held: &mut Vec<Epoch>, done: &[Action]) {
    for action in done {
        match action {
            Action::Activate { epoch, .. } => held.push(*epoch),
            Action::Retire { before } => held.retain(|epoch| epoch >= before),
            _ => {}
        }
    }
}
