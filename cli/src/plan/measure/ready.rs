//! Several that begin each figure at the same time. Who fails or panics is not waited for: its `Member` is gone with it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// One of those who begin together, by its number.
pub struct Member {
    crowd: Arc<Crowd>,
    at: usize,
    of: usize,
}

#[derive(Default)]
struct Crowd {
    state: Mutex<State>,
    begun: Condvar,
}

#[derive(Default)]
struct State {
    members: usize,
    waiting: usize,
    /// How often all have begun.
    rounds: u64,
}

/// So many members, to be handed out before anybody begins.
pub fn members(count: usize) -> Vec<Member> {
    let crowd = Crowd::of(count);
    (0..count).map(|at| Member { crowd: crowd.clone(), at, of: count }).collect()
}

/// One who waits for nobody.
pub fn alone() -> Member {
    Member { crowd: Crowd::of(1), at: 0, of: 1 }
}

impl Member {
    /// Where in a circle of `len` it begins, so that all are as far from each other as can be.
    pub fn start(&self, len: usize) -> usize {
        self.at * len / self.of
    }

    /// Returns when all who are left have called it.
    pub fn wait(&self) {
        let mut state = self.crowd.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += 1;
        let round = state.rounds;
        self.crowd.begin(&mut state);
        while state.rounds == round {
            state = self.crowd.begun.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The others go on without it.
impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.crowd.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.members -= 1;
        self.crowd.begin(&mut state);
    }
}

impl Crowd {
    fn of(members: usize) -> Arc<Crowd> {
        let state = Mutex::new(State { members, ..State::default() });
        Arc::new(Crowd { state, ..Crowd::default() })
    }

    fn begin(&self, state: &mut State) {
        if state.waiting > 0 && state.waiting >= state.members {
            state.waiting = 0;
            state.rounds += 1;
            self.begun.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_is_gone_is_not_waited_for() {
        let (done, told) = channel();
        let begun = Arc::new(AtomicUsize::new(0));
        for (at, member) in members(4).into_iter().enumerate() {
            let (done, begun) = (done.clone(), begun.clone());
            std::thread::spawn(move || {
                for round in 0..50 {
                    // One never begins, one leaves in the middle.
                    if at == 0 || (at == 1 && round == 20) {
                        return;
                    }
                    begun.fetch_add(1, Ordering::SeqCst);
                    member.wait();
                    // Of those three, or the two that are left, all came this far.
                    let least = if round < 20 { 3 * (round + 1) } else { 60 + 2 * (round - 19) };
                    assert!(begun.load(Ordering::SeqCst) >= least, "round {round}");
                }
                let _ = done.send(at);
            });
        }
        let mut all: Vec<usize> =
            (0..2).map(|_| told.recv_timeout(Duration::from_secs(120)).expect("nobody hangs")).collect();
        all.sort_unstable();
        assert_eq!(all, [2, 3]);
    }
}
