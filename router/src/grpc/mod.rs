//! The gRPC surface: `gaterail.v1.Inference`, health and reflection, behind the same door as HTTP.
//!
//! | file | |
//! |---|---|
//! | [`entry`] | what is decided before the method: who may come in, room for the message |
//! | [`inference`] | Generate, Tokenize, ModelInfo |
//! | [`read`] | messages to checked requests |
//! | [`status`] | errors in gRPC's codes; the client's deadline |

mod entry;
mod inference;
mod read;
mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn_with_state;
use gaterail_proto::grpc::DESCRIPTORS;
use gaterail_proto::grpc::v1::inference_server::InferenceServer;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::http::{Protocol, guarded, opening};
use crate::serving::{Entrance, Readiness, Server};
use status::status;

const SERVICE: &str = "gaterail.v1.Inference";
/// A question about health or the interface is a name; its room is not counted among that of bodies.
const QUESTION_BYTES_MAX: usize = 16 << 10;
const HEALTH_EVERY: Duration = Duration::from_millis(200);

/// The health service, which is there before the model is: who watches it sees both.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    service: HealthServer<HealthService>,
}

impl Health {
    /// Not serving, until `routes` says otherwise.
    pub async fn not_serving() -> Health {
        let reporter = HealthReporter::new();
        for name in ["", SERVICE] {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()))
            .max_decoding_message_size(QUESTION_BYTES_MAX);
        Health { reporter, service }
    }
}

/// Health before there is a model; all else has to come again. Behind the same door.
pub fn before(entrance: &Entrance, health: &Health) -> Router {
    let loading = || async { status(&opening::error()).into_http::<Body>() };
    let routes = Routes::new(health.service.clone()).into_axum_router().fallback(loading);
    guarded(routes, entrance, Protocol::Http2)
}

/// All services with the layers around them. Runs inside the event loop, for a task of its own watches the health.
pub fn routes(server: Arc<Server>, health: Health) -> Router {
    tokio::spawn(watch(health.reporter, Arc::downgrade(&server)));
    let limit = server.options.requests.body_bytes_max;
    let inference = InferenceServer::new(inference::Front { server: server.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    const COMPILED: &str = "descriptors that were compiled with the program";
    let routes = Routes::new(inference)
        .add_service(health.service)
        .add_service(reflection().build_v1().expect(COMPILED).max_decoding_message_size(QUESTION_BYTES_MAX))
        // Older clients ask by its older name.
        .add_service(
            reflection().build_v1alpha().expect(COMPILED).max_decoding_message_size(QUESTION_BYTES_MAX),
        );
    let routes = routes.into_axum_router().layer(from_fn_with_state(server.clone(), entry::enter));
    guarded(routes, &server.entrance, Protocol::Http2)
}

/// Tells Check and Watch what `/readyz` says, for the server as a whole, for its service and for the model.
async fn watch(reporter: HealthReporter, server: std::sync::Weak<Server>) {
    let mut last = None;
    loop {
        let Some(server) = server.upgrade() else { return };
        let ready = server.readiness() == Readiness::Ready;
        if last != Some(ready) {
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            let models = server.served.names.iter().map(|name| format!("model/{name}"));
            for name in ["".to_string(), SERVICE.to_string()].into_iter().chain(models) {
                reporter.set_service_status(name, status).await;
            }
            last = Some(ready);
        }
        drop(server);
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}
