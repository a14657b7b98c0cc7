//! A streamed answer: server-sent events, each with the moment at which it was read.
//!
//! Only `[DONE]` is an end. A stream that stops without it, or that carries an error, has failed, whatever came before.

use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use serde_json::Value;

use super::Failure;
use super::failure::message;

/// Of one line.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Read behind the end.
const TAIL_BYTES_MAX: u64 = 1 << 12;

pub struct Stream {
    reader: BufReader<ureq::BodyReader<'static>>,
    line: String,
}

pub struct Event {
    /// When it was read, before it was understood.
    pub at: Instant,
    pub body: Value,
}

impl Stream {
    pub fn new(body: ureq::Body) -> Stream {
        Stream { reader: BufReader::new(body.into_reader()), line: String::new() }
    }

    /// The next event; `None` behind `[DONE]`.
    pub fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            self.line.clear();
            let read = self.reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut self.line);
            let at = Instant::now();
            if read.map_err(Failure::of_read)? == 0 {
                return Err(Failure::Cut("no [DONE]".to_string()));
            }
            // Comments, other fields and empty lines say nothing.
            let Some(data) = self.line.trim_end().strip_prefix("data:") else { continue };
            let data = data.trim_start();
            if data == "[DONE]" {
                return Ok(None);
            }
            let body: Value = serde_json::from_str(data)
                .map_err(|error| Failure::NotOpenAi(format!("no JSON in the answer: {error}")))?;
            if !body["error"].is_null() {
                return Err(Failure::Said(message(&body, data)));
            }
            return Ok(Some(Event { at, body }));
        }
    }

    /// Reads what is behind `[DONE]`, so that the connection can be used again. It waits for the server's last byte.
    pub fn finish(self) {
        let _ = std::io::copy(&mut self.reader.take(TAIL_BYTES_MAX), &mut std::io::sink());
    }
}
