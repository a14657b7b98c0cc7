//! What a person sees when the server is ready.

use super::config::ServeConfig;
use super::load::Loaded;
use super::run::Addresses;
use super::workers::open;
use crate::progress::bytes_text;

pub fn text(loaded: &Loaded, addresses: Addresses, config: &ServeConfig) -> String {
    let served = &loaded.server.served;
    let (about, plan) = (&served.about, &loaded.plan);
    let shortened = match plan.context < loaded.model_context {
        true => format!(" (the model's own: {})", loaded.model_context),
        false => String::new(),
    };
    let door = match (loaded.server.entrance.gate.is_open(), config.public().next().is_some()) {
        (false, _) => "a key is needed",
        (true, false) => "this machine only, no key needed",
        (true, true) => "everybody who can reach it, without a key (--insecure)",
    };
    let scheme = if config.tls.cert.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{}", addresses.http);
    let mut lines = vec![
        ("model", format!("{}  {}", served.names.join(", "), loaded.architecture)),
        (
            "parameters",
            format!(
                "{}, of which a token touches {}",
                count(about.parameters),
                count(about.active_parameters)
            ),
        ),
        (
            "weights",
            format!(
                "{} ({}), loaded in {:.1} s",
                bytes_text(plan.weights + plan.workers.on_cards),
                loaded.precision,
                loaded.took.as_secs_f64()
            ),
        ),
        ("KV", format!("{} tokens, {}", plan.kv_positions(), bytes_text(plan.kv))),
        (
            "context",
            format!("{} tokens{shortened}; {} sequences at once", plan.context, config.engine.batch_max),
        ),
        ("HTTP", format!("{base}/v1")),
    ];
    if let Some(grpc) = addresses.grpc {
        lines.push(("gRPC", format!("{grpc}  gaterail.v1.Inference")));
    }
    lines.push(("open to", door.to_string()));
    let mut lines: Vec<(String, String)> =
        lines.into_iter().map(|(what, how)| (what.to_string(), how)).collect();
    if let Some((workers, status)) = &loaded.workers {
        lines.extend(open::lines(status, config.workers.listen.map(|_| workers.join_command.as_str())));
    }
    let table: String = lines.iter().map(|(what, how)| format!("  {what:<12}{how}\n")).collect();
    let key = if loaded.server.entrance.gate.is_open() { "" } else { " -H 'Authorization: Bearer KEY'" };
    let body = r#"{"messages": [{"role": "user", "content": "What is 27 + 58?"}]}"#;
    format!(
        "{table}\nTry it:\n  curl {base}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'\n"
    )
}

/// `7.6 M`.
fn count(parameters: u64) -> String {
    match parameters {
        0..1_000_000 => format!("{:.1} k", parameters as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", parameters as f64 / 1e6),
        _ => format!("{:.1} B", parameters as f64 / 1e9),
    }
}
