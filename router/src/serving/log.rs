//! One line for every request, when it ends: what it took and how it ended, never what it said.
//!
//! Lines go through a queue to a thread of their own: whoever reads standard error slowly holds up nothing. Lines that
//! the queue cannot take are counted and the count is told with the next one.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use serde_json::{Map, Value};

const LINES_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `name=value` words.
    Text,
    Json,
    Off,
}

#[derive(Clone)]
pub struct RequestLog {
    format: LogFormat,
    lines: Option<SyncSender<String>>,
    lost: Arc<AtomicU64>,
}

impl RequestLog {
    /// A log that nobody reads.
    pub fn off() -> RequestLog {
        RequestLog { format: LogFormat::Off, lines: None, lost: Arc::default() }
    }

    /// Lines go to `out` from a thread that ends with the log.
    pub fn to(format: LogFormat, mut out: impl Write + Send + 'static) -> RequestLog {
        if format == LogFormat::Off {
            return RequestLog::off();
        }
        let (sender, lines) = sync_channel::<String>(LINES_MAX);
        std::thread::spawn(move || {
            for line in lines {
                // A log that cannot be written is no reason to stop.
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            }
        });
        RequestLog { format, lines: Some(sender), lost: Arc::default() }
    }

    pub fn write(&self, mut fields: Map<String, Value>) {
        let Some(lines) = &self.lines else { return };
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            fields.insert("lost_lines".into(), lost.into());
        }
        let line = match self.format {
            LogFormat::Json => Value::Object(fields).to_string(),
            _ => words(&fields),
        };
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            self.lost.fetch_add(lost + 1, Relaxed);
        }
    }
}

/// `name=value`, strings quoted where they have to be: nothing that a client sent can end a line or begin another word.
fn words(fields: &Map<String, Value>) -> String {
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'=')
    };
    let word = |(name, value): (&String, &Value)| match value {
        Value::String(text) if plain(text) => format!("{name}={text}"),
        Value::String(text) => format!("{name}={text:?}"),
        other => format!("{name}={other}"),
    };
    fields.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_write_lines() {
        let fields = Map::from_iter([
            ("id".to_string(), Value::from("a\nb=\u{1b}[2J")),
            ("tokens".to_string(), Value::from(3)),
            ("route".to_string(), Value::from("/v1/models")),
        ]);
        assert_eq!(words(&fields), r#"id="a\nb=\u{1b}[2J" tokens=3 route=/v1/models"#);
    }
}
