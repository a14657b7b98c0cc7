//! `GET /v1/models` and `/v1/models/{id}`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::json_response;
use crate::openai::ApiError;
use crate::serving::Server;

pub async fn list(State(server): State<Arc<Server>>) -> Response {
    let data: Vec<Value> = server.served.names.iter().map(|name| card(&server, name)).collect();
    json_response(&json!({"object": "list", "data": data}))
}

pub async fn one(
    State(server): State<Arc<Server>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(ApiError::invalid("model", "the model's name in the path is not UTF-8"));
    };
    let name = server.served.check_name(Some(&id))?;
    Ok(json_response(&card(&server, name)))
}

fn card(server: &Server, name: &str) -> Value {
    let served = &server.served;
    json!({
        "id": name,
        "object": "model",
        "created": served.about.created,
        "owned_by": "gaterail",
        "root": served.name(),
        "parent": null,
        "max_model_len": served.context(),
    })
}
