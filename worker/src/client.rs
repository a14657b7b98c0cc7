//! A worker among its routers: joins each, and comes again when a connection ends.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use gaterail_proto::WorkerId;
use gaterail_proto::grpc::v1::Machine;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::error::WorkerError;
use crate::link::{self, Connection, Ended, Kept};
use crate::machine;
use crate::models::Models;
use crate::options::{WorkerLimits, WorkerOptions};

/// What all connections share.
pub struct Shared {
    pub id: WorkerId,
    pub options: WorkerOptions,
    /// Has to be the router's.
    pub version: String,
    pub machine: Machine,
    /// Empty where no memory can be shared.
    pub host: String,
    pub models: Arc<Models>,
}

/// An expert server.
pub struct Worker;

impl Worker {
    /// Measures the machine, then serves all routers until `shutdown`, or until none of them takes it any more. Runs inside
    /// an event loop, and computes and loads on threads of its own.
    pub async fn run(options: WorkerOptions, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
        let measuring = options.clone();
        let machine = tokio::task::spawn_blocking(move || machine::measured(&measuring));
        let machine = machine.await.map_err(|error| WorkerError::System(error.to_string()))??;
        let id = getrandom::u64().map_err(|error| WorkerError::System(error.to_string()))?;
        let version = env!("CARGO_PKG_VERSION").to_string();
        let host = gaterail_cluster::host().unwrap_or_default();
        let routers = options.join.clone();
        let shared =
            Arc::new(Shared { id: WorkerId(id), options, version, machine, host, models: Arc::default() });
        let (stop, stopped) = watch::channel(false);
        let mut links = JoinSet::new();
        for address in routers {
            links.spawn(serve(shared.clone(), address, stopped.clone()));
        }
        tokio::pin!(shutdown);
        let mut result = Ok(());
        loop {
            tokio::select! {
                ended = links.join_next() => match ended {
                    Some(Ok(ended)) => result = result.and(ended),
                    Some(Err(error)) => result = result.and(Err(WorkerError::System(error.to_string()))),
                    None => return result,
                },
                () = &mut shutdown, if !*stop.borrow() => {
                    let _ = stop.send(true);
                }
            }
        }
    }
}

/// One router, over as many connections as it takes.
async fn serve(
    shared: Arc<Shared>,
    address: String,
    mut stop: watch::Receiver<bool>,
) -> Result<(), WorkerError> {
    let mut kept: Kept = Vec::new();
    let ended = join_again(&shared, &address, &mut stop, &mut kept).await;
    forget(&mut kept);
    match ended {
        Ended::Refused(why) => Err(WorkerError::Refused { address, why }),
        Ended::Over(why) | Ended::Again(why) => {
            (shared.options.note)(&format!("{address}: {why}"));
            Ok(())
        }
        Ended::Broken(why) => Err(WorkerError::System(format!("{why}; a process that is started anew may"))),
        Ended::Stopped => Ok(()),
    }
}

/// Joins again and again, until there is no use in it.
async fn join_again(
    shared: &Shared,
    address: &str,
    stop: &mut watch::Receiver<bool>,
    kept: &mut Kept,
) -> Ended {
    let WorkerLimits { retry: (retry_min, retry_max), keep_max, .. } = shared.options.limits;
    let mut wait = retry_min;
    let mut said = String::new();
    let mut alone_since = Instant::now();
    loop {
        let Connection { joined, settled, ended } = link::run(shared, address, stop, kept).await;
        let Ended::Again(why) = ended else { return ended };
        if settled {
            wait = retry_min;
        }
        if joined {
            alone_since = Instant::now();
            said.clear();
        } else if alone_since.elapsed() > keep_max {
            forget(kept);
        }
        // Once for each new trouble, not with every attempt.
        if why != said {
            (shared.options.note)(&format!("{address}: {why}; it is tried again"));
            said = why;
        }
        tokio::select! {
            () = sleep(jittered(wait)) => {}
            _ = stop.wait_for(|stop| *stop) => return Ended::Stopped,
        }
        wait = (wait * 2).min(retry_max);
    }
}

fn forget(kept: &mut Kept) {
    kept.drain(..).for_each(|(router, model)| model.shards.forget(router));
}

/// Between half of the time and all of it, so that workers do not all come at once.
fn jittered(wait: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    wait / 2 + wait.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}
