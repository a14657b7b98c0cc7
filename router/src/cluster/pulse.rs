//! Whether the loop that hears workers moves: where it stands still, nobody's silence means anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The loop is felt this often.
const BEAT: Duration = Duration::from_millis(50);
/// A loop that is later than that stands still.
const LATE: Duration = Duration::from_millis(150);
/// One that stands still for longer never moves again, and excuses nobody.
const GONE: Duration = Duration::from_secs(10);

/// When the loop was felt last.
pub(super) struct Pulse {
    start: Instant,
    /// Milliseconds since the start.
    felt: AtomicU64,
    begun: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse { start: Instant::now(), felt: AtomicU64::new(0), begun: AtomicBool::new(false) }
    }
}

impl Pulse {
    /// Feels the loop that this runs in from now on, for as long as there is control.
    pub fn begin(self: &Arc<Pulse>) {
        if !self.begun.swap(true, Ordering::Relaxed) {
            self.feel();
            tokio::spawn(beat(Arc::downgrade(self)));
        }
    }

    /// Whether nothing that workers say can be heard.
    pub fn stands_still(&self, now: Instant) -> bool {
        let felt = self.start + Duration::from_millis(self.felt.load(Ordering::Relaxed));
        let late = now.saturating_duration_since(felt);
        self.begun.load(Ordering::Relaxed) && (LATE..GONE).contains(&late)
    }

    fn feel(&self) {
        self.felt.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

async fn beat(pulse: Weak<Pulse>) {
    loop {
        tokio::time::sleep(BEAT).await;
        let Some(pulse) = pulse.upgrade() else { return };
        pulse.feel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_is_held_up_stands_still() {
        let pulse = Arc::new(Pulse::default());
        let felt = || pulse.start + Duration::from_millis(pulse.felt.load(Ordering::Relaxed));
        assert!(!pulse.stands_still(felt() + LATE), "nobody is there to be heard");
        pulse.begin();
        let first = felt();
        // One thread, and it is held up.
        std::thread::sleep(2 * BEAT);
        assert_eq!(felt(), first);
        assert!(!pulse.stands_still(first + LATE - Duration::from_millis(1)), "soon");
        assert!(pulse.stands_still(first + LATE) && pulse.stands_still(first + GONE / 2));
        assert!(!pulse.stands_still(first + GONE), "for ever");
        let moved = async {
            while felt() == first {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), moved).await.expect("it moves again");
        assert!(!pulse.stands_still(felt()));
    }
}
