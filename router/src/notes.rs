//! Lines for an operator, from threads that must not wait for whoever reads them.
//!
//! Lines go through a queue to a thread of their own. Those that the queue cannot take are counted, and the count is told as
//! soon as lines are read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

const LINES_MAX: usize = 1024;
/// Who waits for the end of a full queue looks this often.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The way to an operator.
#[derive(Clone)]
pub struct Notes {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

enum Item {
    Line(String),
    /// All lines before this one were written.
    Written(SyncSender<()>),
}

impl Notes {
    /// Lines go to `write`, which may take as long as it takes.
    pub fn to(write: impl Fn(&str) + Send + 'static) -> std::io::Result<Notes> {
        let (queue, items) = sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        std::thread::Builder::new().name("notes".into()).spawn(move || write_all(&items, &counted, write))?;
        Ok(Notes { queue, lost })
    }

    /// Never waits.
    pub fn tell(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Line(line)) {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits until what was told is written, but not for longer than `most`: a process that ends takes its lines with it.
    pub fn flush(&self, most: Duration) {
        let deadline = Instant::now() + most;
        let (written, done) = sync_channel(1);
        while let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Written(written.clone())) {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn write_all(items: &Receiver<Item>, lost: &AtomicU64, write: impl Fn(&str)) {
    for item in items {
        match item {
            Item::Line(line) => write(&line),
            Item::Written(written) => drop(written.try_send(())),
        }
        let lost = lost.swap(0, Relaxed);
        if lost > 0 {
            write(&format!("{lost} lines were lost: nobody read them in time"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_tells_never_waits_and_what_is_lost_is_counted() {
        let (go, gate) = channel::<()>();
        let written: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = written.clone();
        let notes = Notes::to(move |line| {
            // Nobody reads until the gate is dropped.
            let _ = gate.recv();
            seen.lock().unwrap().push(line.to_string());
        });
        let notes = notes.unwrap();
        let told = LINES_MAX + 100;
        (0..told).for_each(|line| notes.tell(line.to_string()));
        notes.flush(Duration::from_millis(20));
        assert!(written.lock().unwrap().is_empty(), "still nobody reads");
        drop(go);
        notes.flush(Duration::from_secs(60));
        let written = written.lock().unwrap();
        let lines = written.iter().filter(|line| line.parse::<usize>().is_ok()).count();
        let lost =
            written.iter().find_map(|line| line.strip_suffix(" lines were lost: nobody read them in time"));
        let lost: usize = lost.expect("a count").parse().unwrap();
        assert_eq!(lines + lost, told);
        assert!(lost >= 99, "{lost}");
    }
}
