//! A roster against workers that come, die, fall silent, fail and come back, all drawn from one seed.
//!
//! What must hold whatever happens is checked at every action; a failure names its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gaterail_cluster::membership::{
    Action, Event, Machine, Policy, Roster, SEARCHES_MAX, Search, Wish, WorkerAbout, WorkerState,
};
use gaterail_cluster::placement::{Mode, Popularity, Seat, Wanted, place};
use gaterail_proto::{Epoch, ExpertInventory, LayerExperts, LayerId, Placement, ShardSpec, WorkerId};

mod churn;

/// A generator of numbers from a seed (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both possible.
    fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.within(1, n) == 1
    }
}

/// A worker's process, as the simulation knows it.
struct Process {
    about: WorkerAbout,
    /// It hears and says nothing.
    stopped: bool,
    calls: u64,
    waited_for: bool,
    /// What it was asked to prepare, and when it will have.
    asked: Vec<(Epoch, Instant)>,
}

/// A search, and when it ends.
struct Looking {
    search: Search,
    end: Instant,
    /// It is to recover: when it was asked for not all experts were served.
    recovers: bool,
    /// `World::asks` then: where that has grown its result is for nobody.
    nth: u64,
}

struct World {
    draw: Draw,
    now: Instant,
    policy: Policy,
    roster: Roster,
    inventory: ExpertInventory,
    /// Alive; `members` are those of them that the roster knows.
    processes: BTreeMap<WorkerId, Process>,
    members: BTreeSet<WorkerId>,
    next_id: u64,
    asked: BTreeMap<(WorkerId, Epoch), ShardSpec>,
    answered: BTreeSet<(WorkerId, Epoch)>,
    activated: Epoch,
    placement: Option<Arc<Placement>>,
    planned: Epoch,
    activations: usize,
    /// How often there was room only without what survivors held.
    cramped: usize,
    /// What is being looked for, and when it will be found.
    searches: Vec<Looking>,
    /// Searches and plans so far.
    asks: u64,
    /// How long looking and preparing take, in milliseconds; by the draw if nobody says.
    search_takes: Option<u64>,
    prepare_takes: Option<u64>,
    /// Searches that were followed by another at once, and that another one was asked for beside.
    anew: usize,
    outranked: usize,
    /// Those who are left do not suffice, and nothing has happened since that was found.
    nothing_found: bool,
    lines: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut draw = Draw(seed);
        let units = draw.within(1, 4) as u32;
        let experts = draw.within(2, 8) as u32;
        let layer = |layer| LayerExperts { layer: LayerId(layer), experts, units, expert_bytes: 1200 };
        let inventory = ExpertInventory { layers: (0..2).map(layer).collect() };
        let mode = match draw.within(0, 2) {
            0 => Mode::Ep,
            1 => Mode::Tp,
            _ => Mode::Mixed { ep: 2, tp: draw.within(1, 3) as usize },
        };
        let policy = Policy {
            mode,
            copies: draw.within(1, 3) as u32,
            replica_bytes: draw.within(0, 1) * 3000,
            expected: draw.within(1, 3) as usize,
            join_wait: Duration::from_secs(3),
            ..Policy::default()
        };
        World {
            draw,
            now: Instant::now(),
            roster: Roster::new(policy.clone(), inventory.clone()),
            policy,
            inventory,
            processes: BTreeMap::new(),
            members: BTreeSet::new(),
            next_id: 1,
            asked: BTreeMap::new(),
            answered: BTreeSet::new(),
            activated: Epoch(0),
            placement: None,
            planned: Epoch(0),
            activations: 0,
            cramped: 0,
            searches: Vec::new(),
            asks: 0,
            search_takes: None,
            prepare_takes: None,
            anew: 0,
            outranked: 0,
            nothing_found: false,
            lines: Vec::new(),
        }
    }

    fn experts_bytes(&self) -> u64 {
        self.inventory.layers.iter().map(|at| u64::from(at.experts) * at.expert_bytes).sum()
    }

    fn spawn(&mut self, memory_bytes: u64) {
        let id = WorkerId(self.draw.next() | 1);
        let machine = Machine {
            device: "cpu".to_string(),
            card: None,
            threads: 1,
            memory_bytes,
            read_bytes_per_second: self.draw.within(1, 3) as f64 * 1e10,
            int8_operations_per_second: 1e11,
            pid: self.next_id as u32,
        };
        let about = WorkerAbout {
            id,
            name: format!("worker-{}", self.next_id),
            machine,
            host: String::new(),
            packed: Arc::default(),
        };
        self.next_id += 1;
        let process = Process { about, stopped: false, calls: 0, waited_for: false, asked: Vec::new() };
        self.processes.insert(id, process);
        self.join(id);
    }

    fn join(&mut self, id: WorkerId) {
        let process = self.processes.get_mut(&id).unwrap();
        process.asked.clear();
        process.waited_for = false;
        let about = process.about.clone();
        self.members.insert(id);
        self.tell(Event::Joined(about));
    }

    fn some(&mut self) -> Option<WorkerId> {
        let count = self.processes.len() as u64;
        let nth = if count == 0 { return None } else { self.draw.within(0, count - 1) };
        self.processes.keys().nth(nth as usize).copied()
    }

    fn tell(&mut self, event: Event) {
        self.lines.push(format!("> {event:?}"));
        if let Event::Lost { worker, .. } = &event {
            self.nothing_found &= !self.members.remove(worker);
        }
        self.nothing_found &= !matches!(event, Event::Joined(_));
        if let Event::Prepared { worker, epoch } = event
            && self.members.contains(&worker)
        {
            self.answered.insert((worker, epoch));
        }
        let actions = self.roster.on(event, self.now);
        self.obey(actions);
    }

    fn tick(&mut self) {
        let actions = self.roster.tick(self.now);
        self.obey(actions);
    }

    /// Where not all experts are served any more, a plan is being prepared or looked for among those who are there: nothing else is
    /// waited for, unless as much is being looked for as may be, or nothing was found for them.
    fn check_recovery(&mut self) {
        let view = self.roster.view(self.now);
        let is_idle =
            view.epoch.is_none() || view.serving || view.pending.is_some() || view.workers.is_empty();
        if is_idle || self.nothing_found {
            return;
        }
        let there: BTreeSet<WorkerId> = view.workers.iter().map(|worker| worker.about.id).collect();
        let for_these = |at: &Looking| at.search.workers().all(|worker| there.contains(&worker));
        let looks = |at: &Looking| self.is_awaited(at) && for_these(at);
        assert!(
            self.searches.len() == SEARCHES_MAX || self.searches.iter().any(looks),
            "nothing is done for those who are left"
        );
    }

    /// Whether what comes of a search can recover: no later one, and no plan, was asked for since.
    fn is_awaited(&self, at: &Looking) -> bool {
        at.recovers && at.nth == self.asks
    }

    fn obey(&mut self, actions: Vec<Action>) {
        let any = !actions.is_empty();
        self.carry_out(actions);
        if any {
            self.check_recovery();
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match &action {
                Action::Note(note) => self.lines.push(format!("  # {note}")),
                action => {
                    let text: String = format!("{action:?}").chars().take(200).collect();
                    self.lines.push(format!("  {text}"));
                }
            }
            match action {
                Action::Prepare { worker, epoch, shard } => self.asked_to_prepare(worker, epoch, shard),
                Action::Activate { epoch, placement } => {
                    assert!(epoch > self.activated, "epochs only grow");
                    placement.check(&self.inventory).expect("a whole placement");
                    for (index, &worker) in placement.workers.iter().enumerate() {
                        assert!(self.members.contains(&worker), "{worker} is not there");
                        assert!(self.answered.contains(&(worker, epoch)), "{worker} has not prepared");
                        let shard = placement.shard(index);
                        assert_eq!(self.asked.get(&(worker, epoch)), Some(&shard), "as it was asked");
                        let bytes = |slice: &gaterail_proto::ExpertSlice| {
                            let at = &self.inventory.layers[slice.layer.0 as usize];
                            at.expert_bytes * u64::from(slice.units.end - slice.units.start)
                                / u64::from(at.units)
                        };
                        let held: u64 = shard.slices.iter().map(bytes).sum();
                        assert!(held <= self.processes[&worker].about.machine.memory_bytes, "memory");
                    }
                    self.activated = epoch;
                    self.placement = Some(placement.clone());
                    self.activations += 1;
                }
                // The active one stays, unless it is not whole and there is no room beside it.
                Action::Retire { before } => {
                    assert!(
                        before <= self.activated
                            || before == self.planned && !self.roster.view(self.now).serving
                    );
                    self.cramped += usize::from(before > self.activated);
                }
                Action::Dismiss { worker, .. } => {
                    assert!(self.members.remove(&worker), "{worker} was not there");
                    self.nothing_found = false;
                    // A stopped one finds out when it goes on; others leave, or join anew some time.
                    if !self.processes[&worker].stopped && self.draw.one_in(2) {
                        self.processes.remove(&worker);
                    }
                }
                Action::Search(search) => {
                    self.outranked += usize::from(!self.searches.is_empty());
                    self.nothing_found = false;
                    // Some at once, some when other things have happened.
                    let takes = self.search_takes.unwrap_or_else(|| match self.draw.one_in(3) {
                        true => self.draw.within(1, 300),
                        false => 0,
                    });
                    self.asks += 1;
                    let (end, recovers) =
                        (self.now + Duration::from_millis(takes), !self.roster.view(self.now).serving);
                    self.searches.push(Looking { search: *search, end, recovers, nth: self.asks });
                    assert!(self.searches.len() <= SEARCHES_MAX, "{} searches", self.searches.len());
                }
                Action::Explain(_) | Action::Note(_) => {}
            }
        }
        self.find();
    }

    fn asked_to_prepare(&mut self, worker: WorkerId, epoch: Epoch, shard: ShardSpec) {
        assert!(self.members.contains(&worker), "{worker} is not there");
        assert!(epoch >= self.planned && epoch > self.activated, "epochs only grow");
        self.asks += u64::from(epoch > self.planned);
        self.planned = epoch;
        let before = self.asked.insert((worker, epoch), shard);
        assert!(before.is_none(), "{worker} is asked twice for epoch {epoch}");
        let takes = self.prepare_takes.unwrap_or_else(|| self.draw.within(0, 1500));
        let takes = Duration::from_millis(takes);
        self.processes.get_mut(&worker).unwrap().asked.push((epoch, self.now + takes));
    }

    /// Time passes: heartbeats, answers, and the roster's own look at the clock.
    fn pass(&mut self, duration: Duration, failing: bool) {
        let end = self.now + duration;
        while self.now < end {
            self.now += Duration::from_millis(100);
            let ids: Vec<WorkerId> = self.processes.keys().copied().collect();
            for id in ids {
                let Some(process) = self.processes.get_mut(&id) else { continue };
                if process.stopped || !self.members.contains(&id) {
                    continue;
                }
                process.calls += 1;
                let heard = Event::Heard { worker: id, calls: process.calls, held_bytes: 0 };
                let ready = |&(_, at): &(Epoch, Instant)| at <= self.now;
                let done: Vec<Epoch> = process.asked.iter().filter(|at| ready(at)).map(|at| at.0).collect();
                process.asked.retain(|at| !ready(at));
                self.tell(heard);
                for epoch in done {
                    if !self.members.contains(&id) {
                        break;
                    }
                    let event = match failing && self.draw.one_in(6) {
                        true => Event::PrepareFailed { worker: id, epoch, detail: "no file".to_string() },
                        false => Event::Prepared { worker: id, epoch },
                    };
                    self.tell(event);
                }
            }
            self.find();
            self.tick();
        }
    }

    fn find(&mut self) {
        while let Some(at) = self.searches.iter().position(|at| at.end <= self.now) {
            let at = self.searches.remove(at);
            let is_there = |worker| self.members.contains(&worker);
            let for_these = self.is_awaited(&at) && at.search.workers().all(is_there);
            let search = at.search;
            self.lines.push("> found".to_string());
            let actions = self.roster.found(search.found(), self.now);
            // Something had happened meanwhile, or what came of it takes another search.
            self.anew += usize::from(actions.iter().any(|action| matches!(action, Action::Search(_))));
            self.carry_out(actions);
            let is_there = |worker| self.members.contains(&worker);
            let looks =
                self.searches.iter().any(|at| self.is_awaited(at) && at.search.workers().all(is_there));
            let view = self.roster.view(self.now);
            self.nothing_found |= for_these && !looks && view.pending.is_none() && !view.serving;
            self.check_recovery();
        }
    }

    fn something(&mut self) {
        let bytes = self.experts_bytes();
        match self.draw.within(0, 15) {
            0..=3 if self.processes.len() < 7 => {
                let memory = self.draw.within(bytes / 3, bytes * 3);
                self.spawn(memory);
            }
            4 | 5 => {
                let Some(worker) = self.some() else { return };
                self.processes.remove(&worker);
                self.tell(Event::Lost { worker, why: "killed".to_string() });
            }
            6 => {
                let Some(worker) = self.some() else { return };
                self.processes.get_mut(&worker).unwrap().stopped ^= true;
            }
            7 => self.come_back(),
            8 => {
                let worker = self.some().unwrap_or(WorkerId(7));
                let epoch = Epoch(self.draw.within(0, self.planned.0 + 3));
                // Only who was asked answers; others are stale or strangers.
                if !self.asked.contains_key(&(worker, epoch)) {
                    let answer = match self.draw.one_in(2) {
                        true => Event::Prepared { worker: WorkerId(7), epoch },
                        false => Event::PrepareFailed { worker, epoch, detail: "stale".to_string() },
                    };
                    self.tell(answer);
                }
            }
            9 => {
                let Some(worker) = self.some() else { return };
                let waiting = self.draw.one_in(2);
                self.tell(Event::Waiting { worker, waiting });
            }
            10 => {
                let Some(worker) = self.some() else { return };
                let epoch = self.planned;
                self.tell(Event::Loading { worker, epoch, bytes: self.draw.0 % 100, total: 100 });
            }
            11 => {
                let hits = self.inventory.slices().map(|_| self.draw.within(0, 9) as f64).collect();
                self.tell(Event::Popularity(Popularity(hits)));
            }
            12 => {
                let mode = [Mode::Ep, Mode::Tp][self.draw.within(0, 1) as usize];
                let copies = self.draw.one_in(2).then(|| self.draw.within(1, 3) as u32);
                self.tell(Event::Rebalance(Wish { mode: Some(mode), copies, ..Wish::default() }));
            }
            13 => {
                let Some(worker) = self.some() else { return };
                if self.draw.one_in(3) {
                    self.tell(Event::Leaving { worker });
                }
            }
            _ => self.tell(Event::Switched { epoch: self.activated }),
        }
    }

    /// Who was stopped goes on; who was dismissed meanwhile joins again, with all that it had.
    fn come_back(&mut self) {
        let ids: Vec<WorkerId> = self.processes.keys().copied().collect();
        for id in ids {
            self.processes.get_mut(&id).unwrap().stopped = false;
            if !self.members.contains(&id) {
                self.join(id);
            }
        }
    }

    /// Nothing more happens, and enough workers are there: a plan gets active, and everybody is in it.
    fn calm_down(&mut self) {
        self.come_back();
        let memory = self.experts_bytes() * 4;
        self.spawn(memory);
        self.spawn(memory);
        self.tell(Event::Rebalance(Wish { mode: Some(Mode::Ep), copies: Some(1), ..Wish::default() }));
        self.pass(Duration::from_secs(90), false);
        let view = self.roster.view(self.now);
        assert!(view.serving && view.pending.is_none(), "no plan: {view:?}");
        assert_eq!(view.epoch, Some(self.activated));
        for worker in &view.workers {
            assert_eq!(worker.state, WorkerState::Serving, "{}", worker.about.name);
        }
        assert!(view.copies >= 1, "{view:?}");
    }
}

/// Runs a life, and shows its end where that is bad.
fn live<T>(mut world: World, seed: u64, life: impl FnOnce(&mut World) -> T) -> T {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(&mut world)));
    outcome.unwrap_or_else(|panic| {
        let tail = &world.lines[world.lines.len().saturating_sub(60)..];
        eprintln!("{}\nseed {seed}, {:?}", tail.join("\n"), world.policy);
        std::panic::resume_unwind(panic)
    })
}

fn run(seed: u64) -> [usize; 4] {
    live(World::new(seed), seed, |world| {
        for _ in 0..world.draw.within(10, 80) {
            world.something();
            let pause = Duration::from_millis(world.draw.within(0, 900));
            world.pass(pause, true);
        }
        world.calm_down();
        [world.activations, world.cramped, world.anew, world.outranked]
    })
}

#[test]
fn a_thousand_lives() {
    let lives: Vec<[usize; 4]> = (0..1000).map(run).collect();
    let sum = |at: usize| lives.iter().map(|life| life[at]).sum::<usize>();
    let [activations, cramped, anew, outranked] = [0, 1, 2, 3].map(sum);
    assert!(cramped > 0, "there was always room");
    assert!(anew > 100, "{anew} searches were followed by another");
    assert!(outranked > 20, "{outranked} searches began beside another");
    assert!(activations > 6_000, "{activations} activations are too few to show anything");
}
