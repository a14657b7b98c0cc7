//! Control: the one thread that knows who is there. Everything that happens reaches it as an input, in order; the roster
//! decides, and its actions are carried out by `actions`. What others hold of it is in `handle`.

mod actions;
mod handle;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{Channel, Cut, ExchangeKind};
use gaterail_cluster::membership::{
    Begun, Considered, Event, Fitting, Found, Refused, Roster, Wish, WorkerAbout,
};
use gaterail_proto::{Epoch, ExpertInventory, RouterId, WorkerId};
use tokio::sync::{mpsc, oneshot, watch};

use super::change::{ChangeStatus, Changes};
use super::hits::Heat;
use super::own::{Own, OwnPrepared};
use super::plans::{Fault, Plans};
use super::pulse::Pulse;
use super::sessions::{Outgoing, Serial};
use super::stats::ExchangeStats;
use super::status::{ClusterStatus, Rates};
use crate::notes::Notes;

pub use handle::{Cluster, RebalanceError, Rebalancing, Tell};

/// The roster is told the time this often.
const TICK: Duration = Duration::from_millis(50);

/// What happened.
pub(super) enum Input {
    /// A worker can compute from now on.
    Joined(Box<Joined>),
    /// It said something that concerns the roster.
    Said {
        worker: WorkerId,
        serial: Serial,
        event: Event,
    },
    /// A plan that was looked for.
    Found(Box<Found>),
    /// Its stream is over.
    Left {
        worker: WorkerId,
        serial: Serial,
        why: String,
    },
    /// From the engine.
    Event(Event),
    /// What an operator wants: is there anything to find out about it?
    Consider {
        wish: Wish,
        answer: oneshot::Sender<Result<Considered, Refused>>,
    },
    /// It was found to fit.
    Rebalance {
        fitting: Fitting,
        answer: oneshot::Sender<Result<Rebalancing, Refused>>,
    },
    /// A worker has loaded so many bytes for an epoch.
    Loaded {
        worker: WorkerId,
        serial: Serial,
        epoch: Epoch,
        bytes: u64,
    },
    Fault(Fault),
    /// The router's own shard is there, or cannot be.
    Own(OwnPrepared),
    Stop(oneshot::Sender<()>),
}

/// A worker whose rows can travel.
pub(super) struct Joined {
    pub about: WorkerAbout,
    pub serial: Serial,
    pub outgoing: Outgoing,
    pub channel: Box<dyn Channel>,
}

/// What the one thread knows.
struct Control {
    roster: Roster,
    router: RouterId,
    model: gaterail_proto::grpc::v1::Model,
    inventory: ExpertInventory,
    members: HashMap<WorkerId, Member>,
    /// The plan in force.
    epoch: Option<Epoch>,
    own: Option<Own>,
    /// When the router's own process is taken in again, if the roster has dismissed it.
    own_again: Option<Instant>,
    plans: Arc<Plans>,
    stats: Arc<ExchangeStats>,
    rates: Rates,
    publish: watch::Sender<Arc<ClusterStatus>>,
    pulse: Arc<Pulse>,
    /// When the last tick was.
    ticked: Instant,
    /// The worker that the engine waits for, and since when.
    waits_for: Option<(WorkerId, Instant)>,
    /// The plan that the engine uses.
    switched: Option<Epoch>,
    changes: Changes,
    heat: Heat,
    notes: Notes,
    /// Where threads that work for control tell it what they found.
    inputs: mpsc::WeakSender<Input>,
}

/// A worker that is there.
pub(super) struct Member {
    serial: Serial,
    outgoing: Outgoing,
    cut: Cut,
    /// The plan that was in force when it joined.
    joined_in: Option<Epoch>,
    pub exchange: ExchangeKind,
    pub heard: Instant,
}

impl Control {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut ticked = Instant::now();
        if let Some(own) = &self.own {
            self.tell(Event::Joined(own.about.clone()));
        }
        loop {
            let wait = TICK.saturating_sub(ticked.elapsed());
            match tokio::time::timeout(wait, inputs.recv()).await {
                Ok(Some(Input::Stop(done))) => {
                    self.goodbye();
                    let _ = done.send(());
                    return;
                }
                Ok(Some(input)) => self.on(input),
                Ok(None) => return self.goodbye(),
                Err(_) => {}
            }
            // However much there is to hear, the time is told.
            if ticked.elapsed() >= TICK {
                self.tick();
                ticked = Instant::now();
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if let Some(own) = &self.own {
            let (worker, held_bytes) = (own.about.id, own.held_bytes());
            self.tell(Event::Heard { worker, calls: 0, held_bytes });
        }
        if self.own_again.is_some_and(|at| at <= now) {
            self.own_again = None;
            let about = self.own.as_ref().map(|own| own.about.clone());
            about.into_iter().for_each(|about| self.tell(Event::Joined(about)));
        }
        self.look_at_engine();
        let since = now.saturating_duration_since(std::mem::replace(&mut self.ticked, now));
        // All heartbeats come through the front's loop: while that stands still nobody is heard.
        if self.pulse.stands_still(now) {
            self.roster.deaf(since);
        }
        self.rates.sample(&self.stats, now);
        let settled = self.changes.look(&self.stats, now).map(ChangeStatus::line);
        settled.into_iter().for_each(|line| self.notes.tell(line));
        if self.stats.hits().is_some_and(|hits| self.heat.look(hits, now)) {
            self.tell(Event::Popularity(self.heat.popularity()));
        }
        let actions = self.roster.tick(now);
        self.carry_out(actions);
        self.publish.send_replace(Arc::new(self.status()));
    }

    /// What the engine does, which has no time to tell.
    fn look_at_engine(&mut self) {
        if let Some(epoch) = self.plans.in_use().filter(|epoch| self.switched.is_none_or(|at| at < *epoch)) {
            self.switched = Some(epoch);
            self.plans.forget_replaced(epoch);
            self.changes.switched(epoch, &self.stats, Instant::now());
            self.tell(Event::Switched { epoch });
        }
        let (before, now) = (self.waits_for, self.plans.waiting());
        if before != now {
            self.waits_for = now;
            let told = before.map(|(worker, _)| Event::Waiting { worker, waiting: false });
            told.into_iter().for_each(|event| self.tell(event));
            let told = now.map(|(worker, _)| Event::Waiting { worker, waiting: true });
            told.into_iter().for_each(|event| self.tell(event));
        }
    }

    fn on(&mut self, input: Input) {
        match input {
            Input::Joined(joined) => self.joined(*joined),
            Input::Said { worker, serial, event } => {
                let member = self.members.get_mut(&worker).filter(|member| member.serial == serial);
                let Some(member) = member else { return };
                member.heard = Instant::now();
                self.tell(event);
            }
            Input::Left { worker, serial, why } => {
                if self.members.get(&worker).is_some_and(|member| member.serial == serial) {
                    self.forget(worker);
                    self.tell(Event::Lost { worker, why });
                }
            }
            Input::Event(event) => self.tell(event),
            Input::Found(found) => {
                let actions = self.roster.found(*found, Instant::now());
                self.carry_out(actions);
            }
            // Whoever asked may not wait any more.
            Input::Consider { wish, answer } => drop(answer.send(self.roster.consider(wish))),
            Input::Rebalance { fitting, answer } => self.rebalance(fitting, answer),
            Input::Loaded { worker, serial, epoch, bytes } => {
                let is_meant = self.members.get(&worker).is_some_and(|member| member.serial == serial);
                if is_meant && self.roster.awaits(worker, epoch) {
                    self.changes.loaded(epoch, bytes);
                }
            }
            Input::Fault(fault) => self.fault(fault),
            Input::Own(prepared) => self.own_prepared(prepared),
            Input::Stop(_) => unreachable!("the loop ends with it"),
        }
    }

    fn tell(&mut self, event: Event) {
        let actions = self.roster.on(event, Instant::now());
        self.carry_out(actions);
    }

    fn rebalance(&mut self, fitting: Fitting, answer: oneshot::Sender<Result<Rebalancing, Refused>>) {
        let (begun, actions) = self.roster.rebalance(fitting, Instant::now());
        self.carry_out(actions);
        let from = self.epoch;
        let _ = answer.send(begun.map(|Begun { epoch, planned }| Rebalancing { epoch, from, planned }));
    }

    fn joined(&mut self, joined: Joined) {
        let Joined { about, serial, outgoing, channel } = joined;
        let worker = about.id;
        // A worker that comes again before its old stream was seen to end.
        self.forget(worker);
        let member = Member {
            serial,
            outgoing,
            cut: channel.cut(),
            joined_in: self.epoch,
            exchange: channel.kind(),
            heard: Instant::now(),
        };
        self.members.insert(worker, member);
        self.plans.join(worker, channel);
        self.tell(Event::Joined(about));
    }

    fn own_prepared(&mut self, prepared: OwnPrepared) {
        let Some(own) = &mut self.own else { return };
        let (worker, epoch) = (own.about.id, prepared.epoch);
        own.loaded(epoch);
        match prepared.loaded {
            Ok(loaded) => {
                own.keep(epoch, loaded);
                self.changes.loaded(epoch, prepared.bytes);
                self.tell(Event::Prepared { worker, epoch });
            }
            Err(detail) => self.tell(Event::PrepareFailed { worker, epoch, detail }),
        }
    }

    /// The engine found a worker to be of no use: its channel cannot be trusted any more, so that it has to come again.
    fn fault(&mut self, fault: Fault) {
        // A worker that came again after that plan is another one.
        let is_meant = |member: &Member| member.joined_in < Some(fault.epoch);
        if !self.members.get(&fault.worker).is_some_and(is_meant) {
            return;
        }
        self.dismiss(fault.worker, &fault.why, true);
        self.tell(Event::Lost { worker: fault.worker, why: fault.why });
    }

    fn status(&self) -> ClusterStatus {
        let exchange = |worker: &WorkerId| {
            if self.is_own(*worker) {
                return Some((ExchangeKind::Local, Duration::ZERO));
            }
            let member = self.members.get(worker)?;
            Some((member.exchange, member.heard.elapsed()))
        };
        let status = ClusterStatus::new(
            self.router,
            &self.model,
            self.roster.view(Instant::now()),
            exchange,
            &self.rates,
        );
        let heat = self.heat.status(&self.inventory);
        ClusterStatus { change: self.changes.status(), heat, ..status }
    }
}
