//! A run's result as it is saved: the fields of `vllm bench serve --save-result`, and some of ours beside them.
//!
//! Only answers that came whole are in the times. What is not known is null, never 0.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::goodput::Promise;
use super::load::Measured;
use super::request::{Answer, OutputTokens, Record};
use super::stats::Summary;

pub type Saved = Map<String, Value>;

/// What a run was, beside what came out of it.
pub struct About<'a> {
    pub label: &'a str,
    pub model: &'a str,
    pub chat: bool,
    pub rate: Option<f64>,
    pub burstiness: f64,
    pub concurrency: Option<usize>,
    pub promise: Option<&'a Promise>,
    /// Who counted the prompts before they were sent.
    pub prompt_source: &'static str,
    pub exact_length: bool,
    pub seed: u64,
    /// That this program used while it ran.
    pub cpu_seconds: f64,
}

pub fn save(about: &About, measured: &Measured) -> Saved {
    let mut saved = Map::new();
    let mut put = |fields: Value| {
        if let Value::Object(fields) = fields {
            saved.extend(fields);
        }
    };
    put(setting(about, measured));
    put(totals(about, measured));
    for (name, values) in times(&measured.records) {
        let summary = Summary::of(values).map(|summary| summary.named());
        for index in 0..6 {
            let part = ["mean", "median", "std", "p90", "p95", "p99"][index];
            put(json!({format!("{part}_{name}_ms"): summary.map(|parts| parts[index].1 * 1e3)}));
        }
    }
    put(details(about, measured));
    saved
}

fn setting(about: &About, measured: &Measured) -> Value {
    json!({
        "date": date(SystemTime::now()),
        "endpoint_type": if about.chat { "openai-chat" } else { "openai" },
        "backend": if about.chat { "openai-chat" } else { "openai" },
        "label": about.label,
        "model_id": about.model,
        "tokenizer_id": about.model,
        "num_prompts": measured.records.len(),
        "request_rate": about.rate.map_or(json!("inf"), |rate| json!(rate)),
        "burstiness": about.burstiness,
        "max_concurrency": about.concurrency,
    })
}

fn totals(about: &About, measured: &Measured) -> Value {
    let answers: Vec<&Answer> = answers(&measured.records).map(|(_, answer)| answer).collect();
    let input: u64 = answers_input(&measured.records);
    let output: Option<u64> = answers.iter().map(|answer| answer.output.count().map(u64::from)).sum();
    let kept = |promise: &Promise| -> Option<usize> {
        answers.iter().map(|answer| promise.kept(answer).map(usize::from)).sum()
    };
    let per_second = |count: f64| (measured.duration > 0.0).then(|| count / measured.duration);
    json!({
        "duration": measured.duration,
        "completed": answers.len(),
        "failed": measured.records.len() - answers.len(),
        "total_input_tokens": input,
        "total_output_tokens": output,
        "request_throughput": per_second(answers.len() as f64),
        "request_goodput": about.promise.and_then(kept).and_then(|kept| per_second(kept as f64)),
        "output_throughput": output.and_then(|output| per_second(output as f64)),
        "total_token_throughput": output.and_then(|output| per_second((input + output) as f64)),
        "max_concurrent_requests": most_at_once(&measured.records),
    })
}

/// Seconds, by the name that vLLM gives them.
fn times(records: &[Record]) -> [(&'static str, Vec<f64>); 4] {
    let of =
        |time: &dyn Fn(&Answer) -> Vec<f64>| answers(records).flat_map(|(_, answer)| time(answer)).collect();
    [
        ("ttft", of(&|answer| vec![answer.ttft])),
        ("tpot", of(&|answer| answer.tpot().into_iter().collect())),
        ("itl", of(&|answer| answer.itls.clone())),
        ("e2el", of(&|answer| vec![answer.e2el])),
    ]
}

/// Each request by itself, and where numbers come from.
fn details(about: &About, measured: &Measured) -> Value {
    let records = &measured.records;
    let each = |value: &dyn Fn(&Record, Option<&Answer>) -> Value| -> Vec<Value> {
        records.iter().map(|record| value(record, record.result.as_ref().ok())).collect()
    };
    let mut failures: BTreeMap<String, usize> = BTreeMap::new();
    for failure in records.iter().filter_map(|record| record.result.as_ref().err()) {
        *failures.entry(failure.kind()).or_default() += 1;
    }
    let counted = |by: &dyn Fn(&OutputTokens) -> bool| {
        answers(records).filter(|(_, answer)| by(&answer.output)).count()
    };
    let events: usize = answers(records).map(|(_, answer)| answer.itls.len() + 1).sum();
    json!({
        "input_lens": each(&|record, answer| input(record, answer).into()),
        "output_lens": each(&|_, answer| answer.map_or(json!(0), |answer| json!(answer.output.count()))),
        "ttfts": each(&|_, answer| answer.map_or(0.0, |answer| answer.ttft).into()),
        "itls": each(&|_, answer| answer.map_or(json!([]), |answer| json!(answer.itls))),
        "latencies": each(&|_, answer| answer.map_or(0.0, |answer| answer.e2el).into()),
        "start_times": each(&|record, _| record.start.into()),
        "errors": each(&|record, _| record.result.as_ref().err().map(ToString::to_string).unwrap_or_default().into()),
        "failures": failures,
        "goodput_slo_ms": about.promise.map(Promise::json),
        "prompt_lengths_by": about.prompt_source,
        "input_tokens_by_usage": answers(records).filter(|(_, answer)| answer.prompt_tokens.is_some()).count(),
        "output_tokens_by": {
            "usage": counted(&|output| matches!(output, OutputTokens::Usage(_))),
            "limit": counted(&|output| matches!(output, OutputTokens::Limit(_))),
            "unknown": counted(&|output| matches!(output, OutputTokens::Unknown)),
        },
        "ignore_eos": about.exact_length,
        "seed": about.seed,
        "interrupted": measured.interrupted,
        "max_late_ms": records.iter().map(|record| record.late * 1e3).fold(0.0, f64::max),
        "client_cpu_seconds": about.cpu_seconds,
        "client_cpu_us_per_event": (events > 0).then(|| about.cpu_seconds * 1e6 / events as f64),
    })
}

fn answers(records: &[Record]) -> impl Iterator<Item = (&Record, &Answer)> {
    records.iter().filter_map(|record| Some((record, record.result.as_ref().ok()?)))
}

fn answers_input(records: &[Record]) -> u64 {
    answers(records).map(|(record, answer)| u64::from(input(record, Some(answer)))).sum()
}

/// A prompt's tokens: what the usage says counts more than what was counted before.
fn input(record: &Record, answer: Option<&Answer>) -> u32 {
    answer.and_then(|answer| answer.prompt_tokens).unwrap_or(record.prompt_tokens)
}

/// Most requests that were under way together; one that ends as another starts was not.
fn most_at_once(records: &[Record]) -> i64 {
    let mut steps: Vec<(f64, i64)> =
        records.iter().flat_map(|record| [(record.start, 1), (record.end, -1)]).collect();
    steps.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut most) = (0, 0);
    for (_, step) in steps {
        now += step;
        most = most.max(now);
    }
    most
}

/// `20261120-164545` in UTC. Days to a date as Howard Hinnant's `civil_from_days` has it.
fn date(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}
