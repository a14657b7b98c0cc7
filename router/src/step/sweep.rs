//! Who is gone before a step: clients that hung up, deadlines that passed, clients that read nothing.

use std::time::Instant;

use super::core::Core;
use crate::api::Failure;
use crate::model::Model;

impl<M: Model> Core<M> {
    pub(super) fn sweep(&mut self, now: Instant) {
        let mut cancelled = Vec::new();
        let mut failed = Vec::new();
        for (request, active) in &mut self.requests {
            if active.events.is_closed() {
                cancelled.push(*request);
                continue;
            }
            active.paused = if active.has_room() { None } else { active.paused.or(Some(now)) };
            if active.deadline.is_some_and(|deadline| deadline <= now) {
                failed.push((*request, Failure::Deadline));
            } else if active.paused_for(now) >= self.limits.stall_max && active.paused.is_some() {
                failed.push((*request, Failure::Stalled { after: self.limits.stall_max }));
            }
        }
        self.counters.cancelled += cancelled.len() as u64;
        cancelled.into_iter().for_each(|request| self.remove(request));
        failed.into_iter().for_each(|(request, failure)| self.fail(request, failure));
    }
}
