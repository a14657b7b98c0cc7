//! What everybody else holds of control: its workers' session room, its status, wishes. Nobody here waits for it but who wishes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver as Faults;
use std::time::{Duration, Instant};

use gaterail_cluster::membership::{Event, Refused, Roster, Wish};
use gaterail_proto::{Epoch, RouterId};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{Control, Input};
use crate::cluster::change::Changes;
use crate::cluster::hits::Heat;
use crate::cluster::options::ClusterOptions;
use crate::cluster::own::{Own, OwnExperts};
use crate::cluster::plans::{Fault, Plans};
use crate::cluster::pulse::Pulse;
use crate::cluster::routes::WORKERS_MAX;
use crate::cluster::served::ServedExperts;
use crate::cluster::sessions::Sessions;
use crate::cluster::stats::ExchangeStats;
use crate::cluster::status::{ClusterStatus, Rates};
use crate::notes::Notes;

/// Whoever wants a rebalance has an answer after this.
const REBALANCE_MAX: Duration = Duration::from_secs(20);
/// The end of the process waits so long for goodbyes to be sent.
const GOODBYE_MAX: Duration = Duration::from_millis(500);

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
    pub(in crate::cluster) router: RouterId,
    pub(in crate::cluster) options: ClusterOptions,
    pub(in crate::cluster) served: ServedExperts,
    pub(in crate::cluster) sessions: Sessions,
    pub(in crate::cluster) inputs: mpsc::Sender<Input>,
    status: watch::Receiver<Arc<ClusterStatus>>,
    pub(in crate::cluster) pulse: Arc<Pulse>,
    /// Workers that get weights take turns.
    pub(in crate::cluster) experts_turns: Arc<Semaphore>,
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
            inputs: inputs.downgrade(),
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
