//! Where steps spend their time, and what every worker holds and does.

use super::page::{Labels, Page};
use super::report::About;
use crate::cluster::{ClusterStatus, WorkerStatus};

pub fn steps(page: &mut Page, about: &About<'_>, labels: Labels<'_>) {
    let name = "gaterail_step_part_seconds_total";
    page.family(name, "counter", "Time of steps by what it was spent on.");
    for (part, seconds) in about.steps.parts.named() {
        page.sample(name, &[("model_name", about.model), ("part", part)], seconds);
    }
    page.counter("gaterail_step_rows_total", "Rows of all steps.", labels, about.steps.rows);
    let help = "Layers that were computed again because a worker failed.";
    page.counter("gaterail_step_stalls_total", help, labels, about.stalls.stalls);
    let help = "Time for which answers stood still until such a layer was home.";
    page.counter("gaterail_step_stalled_seconds_total", help, labels, about.stalls.stalled_ms / 1e3);
}

/// Name, kind, help, and a worker's sample.
type Family = (&'static str, &'static str, &'static str, fn(&WorkerStatus) -> f64);

/// One family after another, each with a sample for every worker.
pub fn workers(page: &mut Page, cluster: &ClusterStatus) {
    page.gauge("gaterail_workers", "Workers that are there.", &[], cluster.workers.len());
    let help = "Whether the plan is whole: all of its workers are there.";
    page.gauge("gaterail_workers_plan_whole", help, &[], u8::from(cluster.serving));
    page.gauge("gaterail_workers_epoch", "The plan in force.", &[], cluster.epoch.unwrap_or(0));
    page.gauge("gaterail_workers_copies", "Copies of every expert, at least.", &[], cluster.copies);
    page.gauge("gaterail_expert_replicas", "Further copies of hot experts.", &[], cluster.replicas);
    page.gauge("gaterail_expert_replica_bytes", "What those take.", &[], cluster.replica_bytes);
    if let Some(imbalance) = cluster.imbalance {
        let help =
            "The slowest worker's time over an even one's, as planned for the experts that were hit lately.";
        page.gauge("gaterail_expert_imbalance", help, &[], imbalance);
    }
    if let Some(heat) = &cluster.heat {
        let help = "Hits of a layer's hottest expert over the layer's mean, lately, on average over layers.";
        page.gauge("gaterail_expert_hottest", help, &[], heat.hottest);
    }
    let families: [Family; 11] = [
        ("experts", "gauge", "Experts of the plan of which it holds something.", |at| at.experts as f64),
        ("held_bytes", "gauge", "Bytes of experts that it holds.", |at| at.held_bytes as f64),
        ("memory_bytes", "gauge", "What experts may take.", |at| at.memory_bytes as f64),
        ("share_planned", "gauge", "Share of the work, as planned.", |at| at.share),
        ("share", "gauge", "Share of the work, as it was lately.", |at| at.share_lately),
        ("busy", "gauge", "Share of the time in which it computed, lately.", |at| at.busy),
        ("calls_total", "counter", "Calls that it computed since it joined.", |at| at.calls as f64),
        ("rows_per_second", "gauge", "Rows that it computed, lately.", |at| at.rows_per_second),
        ("received_bytes_per_second", "gauge", "Bytes that were sent to it.", |at| at.bytes_out_per_second),
        (
            "spared_bytes_total",
            "counter",
            "Bytes that all rows would have had in f32 beyond those sent to it.",
            |at| at.bytes_spared as f64,
        ),
        ("sent_bytes_per_second", "gauge", "Bytes that it sent.", |at| at.bytes_in_per_second),
    ];
    for (name, kind, help, value) in families {
        let name = format!("gaterail_worker_{name}");
        page.family(&name, kind, help);
        for at in &cluster.workers {
            page.sample(&name, &[("worker", &at.id), ("name", &at.name)], value(at));
        }
    }
    let name = "gaterail_worker_state";
    page.family(name, "gauge", "1 for the state that it is in.");
    for at in &cluster.workers {
        page.sample(name, &[("worker", &at.id), ("name", &at.name), ("state", &at.state)], 1);
    }
}
