//! Progress of work that is counted in pieces: a bar on a terminal, else a line every few seconds.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Count;

const DRAWS_PER_SECOND: u8 = 5;

pub enum Tally {
    Bar(ProgressBar),
    Lines(Count),
}

impl Tally {
    pub fn new(verb: &'static str, what: &'static str, total: usize) -> Tally {
        if !stderr().is_terminal() {
            return Tally::Lines(Count::new(verb, what, total));
        }
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        let style = ProgressStyle::with_template("[{bar:24}] {pos} of {len} {msg}, {elapsed} so far");
        // The template is a constant of this file.
        bar.set_style(style.expect("the template is valid").progress_chars("=> "));
        bar.set_message(what);
        Tally::Bar(bar)
    }

    pub fn show(&mut self, done: usize) {
        match self {
            Tally::Bar(bar) => {
                bar.set_position(done as u64);
                bar.tick();
            }
            Tally::Lines(count) => count.show(done),
        }
    }

    /// What comes next is not written beside the bar.
    pub fn finish(self) {
        if let Tally::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
