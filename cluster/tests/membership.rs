//! A roster's answers to what happens, case by case.

use std::time::{Duration, Instant};

use gaterail_cluster::membership::{Action, Event, Machine, Policy, Roster, WorkerAbout};
use gaterail_proto::{Epoch, ExpertInventory, LayerExperts, LayerId, WorkerId};

fn inventory() -> ExpertInventory {
    let layer = |layer| LayerExperts { layer: LayerId(layer), experts: 8, units: 4, expert_bytes: 1000 };
    ExpertInventory { layers: (1..4).map(layer).collect() }
}

fn about(id: u64) -> WorkerAbout {
    let machine = Machine {
        device: "cpu".to_string(),
        threads: 1,
        memory_bytes: 1 << 20,
        read_bytes_per_second: 1e10,
        int8_operations_per_second: 1e11,
        pid: id as u32,
    };
    WorkerAbout { id: WorkerId(id), name: format!("worker-{id}"), machine, host: String::new() }
}

/// A roster, the time, and answers that come at once.
struct Bench {
    roster: Roster,
    now: Instant,
}

impl Bench {
    fn new(policy: Policy) -> Bench {
        Bench { roster: Roster::new(policy, inventory()), now: Instant::now() }
    }

    /// What is done, without notes, when everybody who is asked prepares at once.
    fn on(&mut self, event: Event) -> Vec<Action> {
        let mut done = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.roster.on(event, self.now) {
                if let Action::Prepare { worker, epoch, .. } = action {
                    events.push(Event::Prepared { worker, epoch });
                }
                if !matches!(action, Action::Note(_)) {
                    done.push(action);
                }
            }
        }
        done
    }
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

#[test]
fn the_first_plan_waits_for_those_who_are_expected() {
    let mut bench = Bench::new(Policy { expected: 2, ..Policy::default() });
    assert_eq!(bench.on(Event::Joined(about(1))), []);
    let done = bench.on(Event::Joined(about(2)));
    assert_eq!(activated(&done), [(1, 2)]);
    assert!(bench.roster.view().serving);
    assert_eq!(bench.on(Event::Switched { epoch: Epoch(1) }), [Action::Retire { before: Epoch(1) }]);
}

#[test]
fn those_who_are_there_begin_when_the_wait_is_over() {
    let mut bench = Bench::new(Policy { expected: 2, ..Policy::default() });
    bench.on(Event::Joined(about(1)));
    bench.now += Duration::from_secs(31);
    let heard = Event::Heard { worker: WorkerId(1), calls: 0, held_bytes: 0 };
    assert_eq!(activated(&bench.on(heard)), [(1, 1)]);
}
