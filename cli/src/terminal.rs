//! Writing to a person: what cannot be written is no reason to panic, and what a file says cannot steer a terminal. Or to
//! a program, which reads standard error as objects of JSON, one a line.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{Write, stderr, stdout};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::json;

use crate::error::CliError;

/// Text for standard output. A reader that went away is an error like any other; `main` takes it as an end.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(CliError::io("writing to standard output"))
}

/// Whether a program reads standard error, of which a process has one.
static FOR_PROGRAMS: AtomicBool = AtomicBool::new(false);

/// From now on every line on standard error is an object of JSON, what a thread says that panics included.
pub fn speak_json() {
    FOR_PROGRAMS.store(true, Relaxed);
    std::panic::set_hook(Box::new(|panic| {
        let (thread, trace) = (std::thread::current(), Backtrace::capture());
        let mut text = format!("thread {} {panic}", thread.name().unwrap_or("without a name"));
        if trace.status() == BacktraceStatus::Captured {
            text += &format!("\n{trace}");
        }
        note(&text);
    }));
}

pub fn speaks_json() -> bool {
    FOR_PROGRAMS.load(Relaxed)
}

/// Words on standard error; lost if nobody takes them.
pub fn note(words: &str) {
    let mut line = if speaks_json() { as_json(words) } else { words.to_string() };
    line.push('\n');
    // In one piece: others write there, too.
    let _ = stderr().write_all(line.as_bytes());
}

/// Beside the log's `"event":"request"`.
fn as_json(words: &str) -> String {
    let words = words.strip_prefix("gaterail: ").unwrap_or(words);
    json!({"event": "note", "message": words.trim_end()}).to_string()
}

/// Standard error for those who write whole lines: each goes through `note`.
pub struct Noted;

impl Write for Noted {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        String::from_utf8_lossy(lines).lines().for_each(note);
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Text with its control characters made visible, but for ends of lines.
pub fn visible(text: &str) -> String {
    let shown =
        |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_for_programs_are_one_line() {
        let line = super::as_json("gaterail: one\n  \"two\" \u{1b}[2J\n");
        assert!(!line.contains('\n'), "{line}");
        let object: serde_json::Value = serde_json::from_str(&line).expect("an object");
        assert_eq!(object, serde_json::json!({"event": "note", "message": "one\n  \"two\" \u{1b}[2J"}));
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(super::visible("a\u{1b}[2J\u{7}\nb\u{9b}é"), "a\\u{1b}[2J\\u{7}\nb\\u{9b}é");
    }
}
