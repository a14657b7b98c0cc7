//! The form of a stream: `data:` events, comments while there is nothing to say, and an end that cannot be mistaken.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use crate::api::Event;
use crate::openai::ApiError;
use crate::serving::admit::failed;
use crate::serving::{Answers, Scope};

const PING: &[u8] = b": ping\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Makes a stream's bytes of events.
pub trait Script: Send + 'static {
    /// What an event of choice `choice` adds.
    fn on(&mut self, choice: usize, event: Event, out: &mut Chunks);
    /// What comes behind the last choice.
    fn end(&mut self, out: &mut Chunks);
}

/// Events that are about to be sent.
#[derive(Default)]
pub struct Chunks(Vec<u8>);

impl Chunks {
    pub fn push(&mut self, chunk: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, chunk).expect("plain values become JSON");
        self.0.extend_from_slice(b"\n\n");
    }
}

struct Run<S> {
    answers: Answers,
    script: S,
    /// Closed before the stream says that it is over: whoever has read that may ask again at once.
    scope: Option<Scope>,
    keep_alive: Duration,
    over: bool,
}

/// The answer as a stream. Nothing is sent before the client asks for it, and when the client goes all of it goes: the
/// tickets are dropped, which cancels.
pub fn response(answers: Answers, script: impl Script, scope: Scope, keep_alive: Duration) -> Response {
    let run = Run { answers, script, scope: Some(scope), keep_alive, over: false };
    let bytes = stream::unfold(run, |mut run| async move {
        let bytes = run.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(bytes), run))
    });
    let mut response = Body::from_stream(bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<S: Script> Run<S> {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Chunks::default();
        while out.0.is_empty() {
            if self.over {
                return None;
            }
            match tokio::time::timeout(self.keep_alive, self.answers.next()).await {
                Err(_) => out.0.extend_from_slice(PING),
                Ok(Some((choice, event))) => self.on(choice, event, &mut out),
                Ok(None) => {
                    self.script.end(&mut out);
                    out.0.extend_from_slice(DONE);
                    self.over = true;
                    self.scope = None;
                }
            }
        }
        Some(out.0.into())
    }

    fn on(&mut self, choice: usize, event: Event, out: &mut Chunks) {
        if let Some(scope) = &mut self.scope {
            scope.on(choice, &event);
        }
        match event {
            // After the first byte a failure is an event, and nothing follows it.
            Event::Failed(failure) => self.fail(&failed(&failure), out),
            event => self.script.on(choice, event, out),
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Chunks) {
        if let Some(mut scope) = self.scope.take() {
            scope.fail(error);
        }
        out.push(&error.object());
        self.over = true;
    }
}
