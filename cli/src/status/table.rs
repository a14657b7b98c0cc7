//! The page as people read it.

use gaterail_router::cluster::{ClusterStatus, HotExpert, WorkerStatus};
use gaterail_router::http::ClusterPage;
use gaterail_router::serving::StepStatus;

use crate::progress::bytes_text;
use crate::rebalance::told;

/// The first column of the table of workers; the others are right-aligned.
const TITLES: [&str; 11] =
    ["WORKER", "STATE", "DEVICE", "VIA", "HELD", "MEMORY", "EXPERTS", "SHARE", "LATELY", "BUSY", "ROWS/S"];

pub fn text(page: &ClusterPage) -> String {
    let mut text = format!("{}: {}", page.model, page.status);
    text += &format!(
        "; {} running, {} waiting; last step {:.1} ms\n",
        page.running_sequences, page.waiting_sequences, page.last_step_ms
    );
    match &page.cluster {
        Some(cluster) => text += &of_cluster(cluster),
        None => text += "no workers: this server computes everything itself\n",
    }
    text + &steps(&page.step)
}

fn of_cluster(cluster: &ClusterStatus) -> String {
    let epoch = cluster.epoch.map_or("no plan yet".to_string(), |epoch| format!("epoch {epoch}"));
    let copies = format!("{} of {} copies of every expert", cluster.copies, cluster.copies_wanted);
    let pending = cluster.pending.as_ref().map_or(String::new(), |pending| {
        format!("; epoch {} is prepared, {} have yet to answer", pending.epoch, pending.waits_for.len())
    });
    let whole = if cluster.serving { "" } else { "; requests wait" };
    let mut text =
        format!("{} workers, {}, {epoch}, {copies}{pending}{whole}\n\n", cluster.workers.len(), cluster.mode);
    let rows = cluster.workers.iter().map(row);
    let rows: Vec<[String; 11]> = [TITLES.map(str::to_owned)].into_iter().chain(rows).collect();
    let widths: [usize; 11] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    for row in rows {
        let cells = row.iter().zip(widths).enumerate().map(|(at, (cell, width))| match at {
            0..=3 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text + &balance(cluster)
}

/// Which experts are hot, what that means for the slowest worker, and how the last change of plans went.
fn balance(cluster: &ClusterStatus) -> String {
    let mut text = String::new();
    if let Some(heat) = &cluster.heat {
        let named = |at: &HotExpert| format!("{}/{} {:.1}", at.layer, at.expert, at.times_mean);
        let named: Vec<String> = heat.experts.iter().map(named).collect();
        text += &format!(
            "\nhottest expert of a layer: {:.1} times the layer's mean (layer/expert: {})",
            heat.hottest,
            named.join(", ")
        );
        let slowest = cluster.imbalance.map(|of| format!("; the slowest worker {of:.2} times an even one"));
        text += &format!("{}\n", slowest.unwrap_or_default());
    }
    if cluster.replicas > 0 {
        text += &format!("{} further copies, {}\n", cluster.replicas, bytes_text(cluster.replica_bytes));
    }
    if let Some(change) = &cluster.change {
        text += &format!("last change: {}\n", told(change));
    }
    text
}

fn row(at: &WorkerStatus) -> [String; 11] {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let held = match at.loading {
        Some(loading) => format!("{} of {}", bytes_text(loading.bytes), bytes_text(loading.bytes_total)),
        None => bytes_text(at.held_bytes),
    };
    [
        at.name.clone(),
        match at.left_out_seconds {
            left if at.failures > 0 && left > 0.0 => {
                format!("{} {left:.0} s ({} failures)", at.state, at.failures)
            }
            _ => at.state.clone(),
        },
        at.device.clone(),
        at.exchange.clone(),
        held,
        bytes_text(at.memory_bytes),
        at.experts.to_string(),
        percent(at.share),
        percent(at.share_lately),
        percent(at.busy),
        format!("{:.0}", at.rows_per_second),
    ]
}

fn steps(step: &StepStatus) -> String {
    if step.steps == 0 {
        return "\nno step yet\n".to_string();
    }
    let mut text = format!(
        "\n{} steps; lately {:.1} steps/s, {:.1} rows/s, {:.2} ms a step:\n",
        step.steps, step.steps_per_second, step.rows_per_second, step.step_ms
    );
    let shares = step.shares.named();
    let shown = shares.iter().filter(|(_, share)| *share >= 0.0005);
    for (name, share) in shown {
        text += &format!("  {:<26}{:>5.1} %\n", words(name), share * 100.0);
    }
    if step.bytes_per_row > 0.0 {
        let [moved, spared] =
            [step.bytes_per_row, step.bytes_spared_per_row].map(|bytes| bytes_text(bytes as u64));
        text +=
            &format!("\n{moved} a row between router and workers; all rows in f32 would be {spared} more\n");
    }
    if let Some(rows) = step.overlap_from {
        text += &format!(
            "\ntwo micro-batches in flight from {rows} rows on: {} of {} steps\n",
            step.overlapped, step.steps
        );
    }
    if step.stalls > 0 {
        text += &format!(
            "{} layers were computed again after a worker failed; answers stood still for {:.0} ms, the last time {:.0} ms\n",
            step.stalls, step.stalled_ms, step.last_stall_ms
        );
    }
    text
}

/// What a part is called here; programs know its shorter name.
fn words(part: &str) -> &str {
    match part {
        "dense" => "dense and shared experts",
        "slowest" => "waiting for the slowest",
        "travel" => "rows on their way",
        "ends" => "embedding and head",
        part => part,
    }
}

#[cfg(test)]
mod tests {
    use gaterail_router::serving::StepParts;

    use super::*;

    #[test]
    fn a_step_is_shown_by_its_parts() {
        let shares = StepParts { attention: 0.25, experts: 0.5, slowest: 0.25, ..StepParts::default() };
        let step = StepStatus {
            steps: 7,
            step_ms: 1.5,
            shares,
            stalls: 1,
            last_stall_ms: 312.4,
            ..StepStatus::default()
        };
        let text = steps(&step);
        for part in ["7 steps", "1.50 ms", "attention", "25.0 %", "waiting for the slowest", "312 ms"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("gate"), "{text}");
    }
}
