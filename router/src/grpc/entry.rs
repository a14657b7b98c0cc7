//! What is decided about a call before its method: whether it may come in at all, and whether there is room for its message.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::{Extensions, Status};

use super::status::status;
use crate::http::{caller, read};
use crate::openai::ApiError;
use crate::serving::{Scope, Server};

const OURS: &str = "/gaterail.v1.Inference/";
const GENERATE: &str = "/gaterail.v1.Inference/Generate";
const TOKENIZE: &str = "/gaterail.v1.Inference/Tokenize";

/// The account of a call, from the layer in front to the method.
#[derive(Clone)]
struct Opened(Arc<Mutex<Option<Scope>>>);

impl Opened {
    fn put(&self, scope: Scope) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(scope);
    }

    fn take(&self) -> Option<Scope> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Counts a call and opens its account, or refuses it with nothing of its message read.
pub async fn enter(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    let (caller, meta) = caller(&request);
    match request.uri().path() {
        GENERATE => {
            let mut scope = Scope::open(server.clone(), meta, caller);
            let opened = Opened(Arc::default());
            request.extensions_mut().insert(opened.clone());
            let response = match scope.enter() {
                Ok(()) => {
                    opened.put(scope);
                    pass(&server, request, next).await
                }
                Err(error) => {
                    scope.fail(&error);
                    return refused(&error);
                }
            };
            let (response, error) = match response {
                Ok(response) => (response, ApiError::invalid("", "the message could not be read")),
                Err(error) => (refused(&error), error),
            };
            // Nobody has asked for it: there was no message that could be read.
            if let Some(mut scope) = opened.take() {
                scope.fail(&error);
            }
            response
        }
        TOKENIZE => match caller.count_request(Instant::now()) {
            Ok(()) => pass(&server, request, next).await.unwrap_or_else(|error| refused(&error)),
            Err(error) => refused(&error),
        },
        path if path.starts_with(OURS) => {
            pass(&server, request, next).await.unwrap_or_else(|error| refused(&error))
        }
        _ => next.run(request).await,
    }
}

/// Hands a call on with its message read: within the same limits and out of the same room as bodies of HTTP. The room is
/// taken until the message is a request.
async fn pass(server: &Server, mut request: Request, next: Next) -> Result<Response, ApiError> {
    let read = read(server, &mut request).await?;
    *request.body_mut() = Body::from(read.bytes.clone());
    Ok(next.run(request).await)
}

/// The account that was opened for a call.
pub fn scope(extensions: &Extensions) -> Result<Scope, Status> {
    let opened = extensions.get::<Opened>().and_then(Opened::take);
    opened.ok_or_else(|| Status::internal("a call without an account"))
}

fn refused(error: &ApiError) -> Response {
    status(error).into_http::<Body>()
}
