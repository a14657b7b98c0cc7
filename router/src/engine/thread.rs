//! The loop: look what is new, step, show how it went.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inbox::{Ended, Inbox, Wait};
use crate::api::Failure;
use crate::model::Model;
use crate::step::{Core, Outcome};

/// An engine without work lets go this often what it does not need any more: who died may have left much.
const REST: Duration = Duration::from_millis(500);

/// Steps until it is told to end and nothing is left. A panic fails what is there and ends the thread.
pub(super) fn run<M: Model>(mut core: Core<M>, inbox: &Arc<Inbox>) {
    let stepped = catch_unwind(AssertUnwindSafe(|| serve(&mut core, inbox)));
    if stepped.is_err() {
        // What the panic left may be half done: a second one must not keep the callers from being told.
        let told = catch_unwind(AssertUnwindSafe(|| {
            let detail = "the engine panicked; its message is in the log".to_string();
            core.fail_all(&Failure::Step { detail });
            inbox.show(core.gauges(), Instant::now());
        }));
        inbox.stop(Ended::Panicked);
        drop(told);
        return;
    }
    inbox.show(core.gauges(), Instant::now());
    inbox.stop(Ended::Drained);
}

fn serve<M: Model>(core: &mut Core<M>, inbox: &Inbox) {
    let mut wait = Wait::Rest(REST);
    loop {
        let orders = inbox.take(core.take_dequeued(), wait);
        if wait == Wait::Rest(REST) && orders.new.is_empty() && orders.ending.is_none() {
            core.rest();
            continue;
        }
        for new in orders.new {
            core.accept(new.admitted, new.arrived, new.events);
        }
        if let Some(until) = orders.ending {
            if until.is_some_and(|until| until <= Instant::now()) {
                core.fail_all(&Failure::Draining);
            }
            if core.is_empty() {
                return;
            }
        }
        wait = match core.step(Instant::now()) {
            Outcome::Ran => Wait::No,
            Outcome::Blocked => {
                core.rest();
                Wait::At(Core::<M>::poll_interval())
            }
            Outcome::Empty => Wait::Rest(REST),
        };
        inbox.show(core.gauges(), Instant::now());
    }
}
