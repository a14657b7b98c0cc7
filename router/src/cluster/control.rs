//! Control: the one thread that knows who is there. Everything that happens reaches it as an input, in order; the roster
//! decides, and its actions are carried out here: messages to workers, plans to the engine.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Receiver as Faults;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{Channel, Cut, ExchangeKind};
use gaterail_cluster::membership::{
    Action, Begun, Case, Considered, Event, Fitting, Refused, Roster, Wish, WorkerAbout,
};
use gaterail_proto::grpc::v1::from_router::What;
use gaterail_proto::grpc::v1::{FromRouter, Goodbye, Prepare, Retire};
use gaterail_proto::{Epoch, ExpertInventory, Placement, RouterId, WorkerId};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::change::{ChangeStatus, Changes};
use super::hits::Heat;
use super::options::ClusterOptions;
use super::own::{Own, OwnExperts, OwnPrepared};
use super::plans::{Fault, OwnShard, Plan, Plans};
use super::pulse::Pulse;
use super::routes::WORKERS_MAX;
use super::served::ServedExperts;
use super::sessions::{Outgoing, Serial, Sessions};
use super::stats::ExchangeStats;
use super::status::{ClusterStatus, Rates};
use crate::notes::Notes;

/// The roster is told the time this often.
const TICK: Duration = Duration::from_millis(50);
/// The router's own process, dismissed because it could not load, tries again after this.
const OWN_AGAIN: Duration = Duration::from_secs(2);
/// Whoever wants a rebalance has an answer after this.
const REBALANCE_MAX: Duration = Duration::from_secs(20);
/// The end of the process waits so long for goodbyes to be sent.
const GOODBYE_MAX: Duration = Duration::from_millis(500);

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

/// A wish that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebalancing {
    /// The plan that is being prepared; `None` where nothing has to be done, or not yet.
    pub epoch: Option<Epoch>,
    /// The plan in force.
    pub from: Option<Epoch>,
    /// The last plan before the wish, whatever became of it: those for the wish are above.
    pub planned: Epoch,
}

/// Why there is no answer to a wish.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RebalanceError {
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nobody waits for another's.
    #[error("another rebalance is being looked at")]
    Another,
    #[error("control has more to do than it can, or has ended")]
    Busy,
}

/// Tells control from other threads; never waits for it.
#[derive(Clone)]
pub struct Tell(mpsc::Sender<Input>);

impl Tell {
    /// `false` where control is gone, or has more to do than it should ever have.
    pub fn event(&self, event: Event) -> bool {
        self.0.try_send(Input::Event(event)).is_ok()
    }
}

/// The workers of one router, for everybody who serves them or asks after them.
pub struct Cluster {
    pub(super) router: RouterId,
    pub(super) options: ClusterOptions,
    pub(super) served: ServedExperts,
    pub(super) sessions: Sessions,
    pub(super) inputs: mpsc::Sender<Input>,
    status: watch::Receiver<Arc<ClusterStatus>>,
    pub(super) pulse: Arc<Pulse>,
    /// Workers that get weights take turns.
    pub(super) experts_turns: Arc<Semaphore>,
    /// One wish at a time is looked at.
    wishes: Arc<Semaphore>,
}

impl Cluster {
    /// Starts control. `plans` is shared with the engine, whose faults come by `faults`; `note` is told what an operator wants
    /// to know, on a thread where it may wait. `own` is what the router's process may hold itself.
    pub fn start(
        router: RouterId,
        options: ClusterOptions,
        served: ServedExperts,
        own: Option<OwnExperts>,
        (plans, faults): (Arc<Plans>, Faults<Fault>),
        stats: Arc<ExchangeStats>,
        note: impl Fn(&str) + Send + 'static,
    ) -> std::io::Result<Arc<Cluster>> {
        let (inputs, received) = mpsc::channel(options.limits.inputs_max);
        let holds_own = own.is_some();
        let rates = Rates::default();
        let roster = Roster::new(options.policy.clone(), served.inventory.clone());
        let nobody =
            ClusterStatus::new(router, &served.message, roster.view(Instant::now()), |_| None, &rates);
        let (publish, status) = watch::channel(Arc::new(nobody));
        let pulse = Arc::new(Pulse::default());
        let control = Control {
            roster,
            router,
            model: served.message.clone(),
            inventory: served.inventory.clone(),
            members: HashMap::new(),
            epoch: None,
            own: own.map(|own| Own::new(router, own, served.clone(), inputs.downgrade())),
            own_again: None,
            plans,
            stats,
            rates,
            publish,
            pulse: pulse.clone(),
            ticked: Instant::now(),
            waits_for: None,
            switched: None,
            changes: Changes::default(),
            heat: Heat::new(Instant::now()),
            notes: Notes::to(note)?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new()
            .name("cluster-control".into())
            .spawn(move || runtime.block_on(control.run(received)))?;
        let engine = inputs.clone();
        // Ends with the engine.
        std::thread::Builder::new().name("cluster-faults".into()).spawn(move || {
            for fault in faults {
                if engine.blocking_send(Input::Fault(fault)).is_err() {
                    return;
                }
            }
        })?;
        // No plan has more workers, this process included.
        let workers_max = options.limits.workers_max.min(WORKERS_MAX - usize::from(holds_own));
        let sessions = Sessions::new(workers_max);
        let experts_turns = Arc::new(Semaphore::new(options.limits.experts_streams_max));
        let wishes = Arc::new(Semaphore::new(1));
        Ok(Arc::new(Cluster {
            router,
            options,
            served,
            sessions,
            inputs,
            status,
            pulse,
            experts_turns,
            wishes,
        }))
    }

    /// For whoever has something to tell: the engine, an operator.
    pub fn tell(&self) -> Tell {
        Tell(self.inputs.clone())
    }

    /// Something else is wanted from now on: answered as soon as it is clear whether it can be had, long before it is.
    pub async fn rebalance(&self, wish: Wish) -> Result<Rebalancing, RebalanceError> {
        let permit = self.wishes.clone().try_acquire_owned().map_err(|_| RebalanceError::Another)?;
        let looked_at = async {
            let considered = self.ask(|answer| Input::Consider { wish, answer }).await?;
            // Takes long, so that control has no time for it; and goes on when nobody waits any more.
            let checked = tokio::task::spawn_blocking(move || (considered.check(), permit)).await;
            let (fitting, _permit) = checked.map_err(|_| RebalanceError::Busy)?;
            let fitting = fitting?;
            self.ask(|answer| Input::Rebalance { fitting, answer }).await
        };
        tokio::time::timeout(REBALANCE_MAX, looked_at).await.unwrap_or(Err(RebalanceError::Busy))
    }

    async fn ask<T>(
        &self,
        input: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Input,
    ) -> Result<T, RebalanceError> {
        let (answer, answered) = oneshot::channel();
        self.inputs.try_send(input(answer)).map_err(|_| RebalanceError::Busy)?;
        Ok(answered.await.map_err(|_| RebalanceError::Busy)??)
    }

    /// Who is there and what they do, as it was a moment ago; `None` when control has ended.
    pub fn status(&self) -> Option<ClusterStatus> {
        // Whoever asks, and how often, is nothing to control.
        self.status.has_changed().ok()?;
        Some((**self.status.borrow()).clone())
    }

    /// Says goodbye to all workers; nobody is taken in any more.
    pub async fn stop(&self) {
        self.sessions.close();
        let (answer, stopped) = oneshot::channel();
        if self.inputs.send(Input::Stop(answer)).await.is_ok() {
            let _ = tokio::time::timeout(GOODBYE_MAX, stopped).await;
        }
    }
}

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

    /// Says what would fit, as soon as a thread has found it.
    fn explain(&self, case: Box<Case>) {
        let notes = self.notes.clone();
        let work = move || case.misfit().into_iter().for_each(|misfit| notes.tell(misfit.to_string()));
        if std::thread::Builder::new().name("cluster-ways".into()).spawn(work).is_err() {
            self.notes.tell("the experts do not fit as they should be spread".to_string());
        }
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

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Prepare { worker, epoch, shard } if self.is_own(worker) => {
                    self.own.iter_mut().for_each(|own| own.prepare(epoch, shard.clone()));
                }
                Action::Prepare { worker, epoch, shard } => {
                    let prepare = Prepare { epoch: epoch.0, layers: shard.to_message() };
                    if let Err(why) = self.send(worker, What::Prepare(prepare)) {
                        self.dismiss(worker, &why, true);
                        actions.extend(self.roster.on(Event::Lost { worker, why }, Instant::now()));
                    }
                }
                Action::Activate { epoch, placement } => {
                    let speeds = placement.workers.iter().map(|worker| self.speed(*worker)).collect();
                    let own = self.own_shard(epoch, &placement);
                    self.epoch = Some(epoch);
                    self.changes.activated(epoch, Instant::now());
                    self.plans.activate(Plan { epoch, placement, speeds, own });
                }
                Action::Retire { before } => {
                    self.own.iter_mut().for_each(|own| own.retire(before));
                    let all: Vec<WorkerId> = self.members.keys().copied().collect();
                    for worker in all {
                        // Who does not take it keeps more than it must, and is found when it has to prepare.
                        let _ = self.send(worker, What::Retire(Retire { before_epoch: before.0 }));
                    }
                }
                // This process cannot go; it is taken in again.
                Action::Dismiss { worker, .. } if self.is_own(worker) => {
                    self.own_again = Some(Instant::now() + OWN_AGAIN)
                }
                Action::Dismiss { worker, why, again } => self.dismiss(worker, &why, again),
                Action::Explain(case) => self.explain(case),
                Action::Note(note) => {
                    self.changes.note(&note, Instant::now());
                    self.notes.tell(note.to_string());
                }
            }
        }
    }

    fn is_own(&self, worker: WorkerId) -> bool {
        self.own.as_ref().is_some_and(|own| own.about.id == worker)
    }

    /// Of reading experts, which is what few rows take.
    fn speed(&self, worker: WorkerId) -> f64 {
        self.roster.speed(worker).unwrap_or(1.0).max(1.0)
    }

    fn own_shard(&self, epoch: Epoch, placement: &Placement) -> Option<OwnShard> {
        let own = self.own.as_ref()?;
        let index = placement.workers.iter().position(|worker| *worker == own.about.id)?;
        Some(OwnShard { index, shard: own.of(epoch)? })
    }

    fn send(&self, worker: WorkerId, what: What) -> Result<(), String> {
        let member = self.members.get(&worker).ok_or("it is not there")?;
        let sent = member.outgoing.messages.try_send(Ok(FromRouter { what: Some(what) }));
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "it takes no messages".to_string(),
            mpsc::error::TrySendError::Closed(_) => "its stream ended".to_string(),
        })
    }

    fn dismiss(&mut self, worker: WorkerId, why: &str, again: bool) {
        let _ = self.send(worker, What::Goodbye(Goodbye { why: why.to_string(), again }));
        self.forget(worker);
    }

    /// Closes all that belongs to a worker's stream.
    fn forget(&mut self, worker: WorkerId) {
        let Some(member) = self.members.remove(&worker) else { return };
        member.cut.now();
        self.plans.leave(worker);
        self.stats.forget(worker);
    }

    fn goodbye(&mut self) {
        self.plans.close();
        let all: Vec<WorkerId> = self.members.keys().copied().collect();
        all.into_iter().for_each(|worker| self.dismiss(worker, "the router ends", true));
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
