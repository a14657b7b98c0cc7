//! The gRPC surface: `gaterail.v1.Inference`, health and reflection, behind the same door as HTTP.
//!
//! | file | |
//! |---|---|
//! | [`inference`] | Generate, Tokenize, ModelInfo |
//! | [`read`] | messages to checked requests |
//! | [`status`] | errors in gRPC's codes; the client's deadline |

mod inference;
mod read;
mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use gaterail_proto::grpc::DESCRIPTORS;
use gaterail_proto::grpc::v1::inference_server::InferenceServer;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

use crate::http::guarded;
use crate::serving::{Readiness, Server};

const SERVICE: &str = "gaterail.v1.Inference";
const HEALTH_EVERY: Duration = Duration::from_millis(200);

/// All services with the layers around them. Runs inside the event loop, for a task of its own watches the health.
pub fn routes(server: Arc<Server>) -> Router {
    let (reporter, health) = health_reporter();
    tokio::spawn(watch(reporter, Arc::downgrade(&server)));
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
        .add_service(health)
        .add_service(reflection().build_v1().expect(COMPILED))
        // Older clients ask by its older name.
        .add_service(reflection().build_v1alpha().expect(COMPILED));
    guarded(routes.into_axum_router(), server)
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
