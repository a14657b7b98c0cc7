//! Progress on a terminal: one bar over all bytes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal;

use super::{ByteProgress, Progress, bytes_text, time_text};

const DRAWS_PER_SECOND: u8 = 5;
/// Longest item name beside the bar; of a longer one the end is shown, which tells shards apart.
const ITEM_CHARS_MAX: usize = 36;

pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub fn new() -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}");
        // The template is a constant of this file; a wrong one would show in any test of the bar.
        bar.set_style(style.expect("the template is valid").progress_chars("=> "));
        Self { bar }
    }
}

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Bar {
    fn update(&mut self, now: &ByteProgress) {
        self.bar.set_length(now.total);
        self.bar.set_position(now.done);
        self.bar.set_prefix(format!("{:>3}%", now.percent()));
        self.bar.set_message(beside(now));
        self.bar.tick();
    }

    fn note(&mut self, line: &str) {
        self.bar.suspend(|| terminal::note(line));
    }

    fn finish(&mut self, last: &ByteProgress) {
        self.update(last);
        if last.done == last.total {
            self.bar.finish_and_clear();
            if last.elapsed >= Duration::from_secs(1) {
                terminal::note(&format!("{} in {}", bytes_text(last.total), time_text(last.elapsed)));
            }
        } else {
            self.bar.abandon();
        }
    }
}

fn beside(now: &ByteProgress) -> String {
    let mut text = format!("{} / {}", bytes_text(now.done), bytes_text(now.total));
    if now.rate > 0 {
        text.push_str(&format!("  {}/s", bytes_text(now.rate)));
    }
    if let Some(left) = now.left() {
        text.push_str(&format!("  {} left", time_text(left)));
    }
    let chars = now.item.chars().count();
    if chars > ITEM_CHARS_MAX {
        let tail: String = now.item.chars().skip(chars - ITEM_CHARS_MAX + 1).collect();
        return format!("{text}  …{tail}");
    }
    format!("{text}  {}", now.item)
}
