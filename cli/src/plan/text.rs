//! The plan as people read it.

use gaterail_cluster::predict::Prediction;

use super::Plan;
use super::forecast::{Forecast, Lead, Winner, decode_name, named_ms, term_name};
use crate::progress::bytes_text;

const TITLE: usize = 30;
const COLUMN: usize = 12;

pub fn text(plan: &Plan) -> String {
    let mut text = head(plan);
    let fitting: Vec<&Forecast> = plan.forecasts.iter().filter(|one| one.misfit.is_none()).collect();
    if !fitting.is_empty() {
        text += &line("", fitting.iter().map(|one| one.mode.clone()));
        for (at, &streams) in plan.question.streams.iter().enumerate() {
            text += &format!("{} at {}\n", decode_name(streams), plan.question.context);
            text +=
                &steps(&fitting.iter().filter_map(|one| one.decode.get(at)).collect::<Vec<_>>(), "TPOT, ms");
        }
        text += &format!("prefill of {}\n", plan.question.prompt);
        let first = fitting.iter().map(|one| format!("{:.1}", first_ms(plan, one)));
        text += &line("  TTFT, ms", first);
        text +=
            &steps(&fitting.iter().filter_map(|one| one.prefill.as_ref()).collect::<Vec<_>>(), "a step, ms");
        text += &line("memory of the fullest worker", fitting.iter().map(|one| fullest(one)));
    }
    for one in &plan.forecasts {
        if let Some(why) = &one.misfit {
            text += &format!("\n{}: {why}\n", one.mode);
        }
    }
    text.push('\n');
    text + &plan.winners.iter().map(winner_line).collect::<String>()
}

/// Of one prompt alone.
fn first_ms(plan: &Plan, one: &Forecast) -> f64 {
    let alone = plan.question.streams.iter().position(|&streams| streams == 1);
    let first = alone.and_then(|at| one.first_token_seconds.get(at)).copied();
    first.unwrap_or_else(|| one.prefill.as_ref().map_or(0.0, |step| step.terms.total())) * 1e3
}

fn head(plan: &Plan) -> String {
    let (model, at) = (&plan.model, &plan.measured);
    let estimate = if model.estimated { ", estimated from config.json" } else { "" };
    let rate = |rate: f64| format!("{}/s", bytes_text(rate as u64));
    let tops = |rate: f64| format!("{:.2} TOPS", rate / 1e12);
    format!(
        "{}  {}\n  experts {} ({}), all else {} ({}), KV {} per token{estimate}\n\n\
         {}\n  memory {}, int8 {}\n  trunk {} and {}; experts {} and {}; one worker of {} thread{} alone {} and {}\n  \
         a hop {:.1} us, {}\n\n",
        model.name,
        model.architecture,
        bytes_text(model.experts_bytes),
        model.experts,
        bytes_text(model.trunk_bytes),
        model.trunk,
        bytes_text(model.kv_bytes_per_position),
        at.device,
        rate(at.read_bytes_per_second),
        tops(at.int8_operations_per_second),
        rate(at.trunk.read_bytes_per_second),
        tops(at.trunk.operations_per_second),
        rate(at.experts.read_bytes_per_second),
        tops(at.experts.operations_per_second),
        at.worker_threads,
        if at.worker_threads == 1 { "" } else { "s" },
        rate(at.worker.read_bytes_per_second),
        tops(at.worker.operations_per_second),
        at.hop.seconds * 1e6,
        rate(at.hop.bytes_per_second),
    )
}

/// What one step is, for all that fit.
fn steps(found: &[&Prediction], title: &str) -> String {
    let each = |value: &dyn Fn(&Prediction) -> String| found.iter().map(|one| value(one)).collect::<Vec<_>>();
    let mut text = line("  tokens/s", each(&|one| format!("{:.1}", one.rows_per_second())));
    text += &line(&format!("  {title}"), each(&|one| format!("{:.2}", one.terms.total() * 1e3)));
    let terms: Vec<_> = found.iter().map(|one| named_ms(&one.terms)).collect();
    for (at, (name, _)) in terms.first().into_iter().flatten().enumerate() {
        text += &line(&format!("    {name}"), terms.iter().map(|terms| format!("{:.2}", terms[at].1)));
    }
    text += &line("  bytes a token", each(&|one| bytes_text(one.bytes_per_row as u64)));
    text += &line("  hops a step", each(&|one| format!("{:.0}", one.hops)));
    text + &line("  slowest over mean worker", each(&|one| format!("{:.2}", one.imbalance)))
}

fn fullest(one: &Forecast) -> String {
    match one.memory.iter().copied().reduce(f64::max) {
        Some(bytes) => bytes_text(bytes as u64),
        None => "-".to_string(),
    }
}

fn line(title: &str, values: impl IntoIterator<Item = String>) -> String {
    let mut line = format!("{title:TITLE$}");
    values.into_iter().for_each(|value| line += &format!("{value:>COLUMN$}"));
    line.trim_end().to_string() + "\n"
}

/// `decode, 1 stream: tp, 1.12 times as fast as ep (3.21 ms less waiting for the slowest)`.
fn winner_line(winner: &Winner) -> String {
    let lead = |lead: &Lead| {
        format!(
            "{:.2} times as fast as {} ({:.2} ms less {})",
            lead.factor,
            lead.loser,
            lead.seconds * 1e3,
            term_name(lead.term)
        )
    };
    let over: Vec<String> = winner.over.iter().map(lead).collect();
    let over = if over.is_empty() { "the only one that fits".to_string() } else { over.join(", ") };
    format!("{}: {} wins, {over}\n", winner.step, winner.winner)
}
