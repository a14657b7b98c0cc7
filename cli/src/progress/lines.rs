//! Progress where there is no terminal: one line every five seconds, and one at the end.

use std::io::Write;
use std::time::Duration;

use super::{ByteProgress, Progress, bytes_text, status_text, time_text};

const EVERY: Duration = Duration::from_secs(5);

pub struct Lines<W> {
    /// Opens every line: `pull`, `load`.
    verb: &'static str,
    out: W,
    /// When the next line is due, counted from the start of the work.
    due: Duration,
}

impl<W: Write> Lines<W> {
    pub fn new(verb: &'static str, out: W) -> Self {
        Self { verb, out, due: EVERY }
    }

    /// A closed stderr is no reason to stop the work.
    fn line(&mut self, text: &str) {
        let _ = self.out.write_all(format!("{}: {text}\n", self.verb).as_bytes());
    }
}

impl<W: Write> Progress for Lines<W> {
    fn update(&mut self, now: &ByteProgress) {
        if now.elapsed >= self.due {
            self.due = now.elapsed + EVERY;
            self.line(&status_text(now));
        }
    }

    fn note(&mut self, line: &str) {
        self.line(line);
    }

    fn finish(&mut self, last: &ByteProgress) {
        let (done, total) = (bytes_text(last.done), bytes_text(last.total));
        let time = time_text(last.elapsed);
        if last.done == last.total {
            self.line(&format!("{done} complete after {time} ({} moved)", bytes_text(last.moved)));
        } else {
            self.line(&format!("ended at {done} of {total} after {time}"));
        }
    }
}
