//! What is decided about a call before its message is read: whether it may come in at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::{Extensions, Status};

use super::status::status;
use crate::http::caller;
use crate::openai::ApiError;
use crate::serving::{Scope, Server};

const GENERATE: &str = "/gaterail.v1.Inference/Generate";
const TOKENIZE: &str = "/gaterail.v1.Inference/Tokenize";

/// The account of a call, from the layer in front to the method.
#[derive(Clone)]
struct Opened(Arc<Mutex<Option<Scope>>>);

impl Opened {
    fn take(&self) -> Option<Scope> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Counts a call and opens its account, or refuses it with nothing of its message read.
pub async fn enter(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    let (caller, meta) = caller(&request);
    match request.uri().path() {
        GENERATE => {
            let mut scope = Scope::open(server, meta, caller);
            if let Err(error) = scope.enter() {
                scope.fail(&error);
                return refused(&error);
            }
            let opened = Opened(Arc::new(Mutex::new(Some(scope))));
            request.extensions_mut().insert(opened.clone());
            let response = next.run(request).await;
            // Nobody asked for it: there was no message that could be read.
            if let Some(mut scope) = opened.take() {
                scope.fail(&ApiError::invalid("", "the message could not be read"));
            }
            response
        }
        TOKENIZE => match caller.count_request(Instant::now()) {
            Ok(()) => next.run(request).await,
            Err(error) => refused(&error),
        },
        _ => next.run(request).await,
    }
}

/// The account that was opened for a call.
pub fn scope(extensions: &Extensions) -> Result<Scope, Status> {
    let opened = extensions.get::<Opened>().and_then(Opened::take);
    opened.ok_or_else(|| Status::internal("a call without an account"))
}

fn refused(error: &ApiError) -> Response {
    status(error).into_http::<Body>()
}
