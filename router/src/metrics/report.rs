//! The page of `/metrics`: every figure under its own name, and under vLLM's where vLLM has one.

use std::sync::atomic::Ordering::Relaxed;

use super::histogram::Histogram;
use super::page::{Labels, Page};
use super::{Metrics, Outcome, lock, workers};
use crate::api::LoadSnapshot;
use crate::cluster::ClusterStatus;
use crate::serving::StepStatus;
use crate::serving::steps::StepTotals;

/// Outcomes that vLLM counts as successes.
const FINISHED: [Outcome; 3] = [Outcome::Stop, Outcome::Length, Outcome::Cancelled];
const OUTCOMES: [Outcome; 5] =
    [Outcome::Stop, Outcome::Length, Outcome::Cancelled, Outcome::Refused, Outcome::Failed];

/// What the page says beside what was counted.
pub struct About<'a> {
    pub model: &'a str,
    pub version: &'a str,
    pub page_positions: usize,
    pub ready: bool,
    /// vLLM's names, too. Their colons are for recording rules by Prometheus' conventions.
    pub aliases: bool,
    pub steps: StepTotals,
    pub stalls: StepStatus,
    pub cluster: Option<&'a ClusterStatus>,
}

impl Metrics {
    pub fn page(&self, load: &LoadSnapshot, about: &About<'_>) -> String {
        let mut page = Page::default();
        let labels: Labels<'_> = &[("model_name", about.model)];
        self.own(&mut page, load, about, labels);
        self.times(&mut page, about, labels);
        workers::steps(&mut page, about, labels);
        if let Some(cluster) = about.cluster {
            workers::workers(&mut page, cluster);
        }
        if about.aliases {
            self.vllm(&mut page, load, about, labels);
        }
        page.finish()
    }

    fn own(&self, page: &mut Page, load: &LoadSnapshot, about: &About<'_>, labels: Labels<'_>) {
        let version = [("version", about.version)];
        page.gauge("gaterail_build_info", "The program that is running.", &version, 1);
        page.gauge("gaterail_ready", "Whether requests are accepted.", labels, u8::from(about.ready));
        gauges(page, load, labels);
        counters(page, load, labels);
        let name = "gaterail_requests_finished_total";
        page.family(name, "counter", "Requests for tokens, by how they ended.");
        for outcome in OUTCOMES {
            let labels = [("model_name", about.model), ("outcome", outcome.word())];
            page.sample(name, &labels, self.outcomes[outcome as usize].load(Relaxed));
        }
        let name = "gaterail_admission_rejections_total";
        page.family(name, "counter", "Requests that were refused, by the code in the answer.");
        for (code, count) in lock(&self.refusals).iter() {
            page.sample(name, &[("code", code)], count);
        }
        let name = "gaterail_http_responses_total";
        page.family(name, "counter", "Answers by route and status.");
        for ((route, status), count) in lock(&self.responses).iter() {
            page.sample(name, &[("route", route), ("status", &status.to_string())], count);
        }
        let connections = self.connections.load(Relaxed);
        page.gauge("gaterail_connections", "Connections that are open.", &[], connections);
        let refused = self.connections_refused.load(Relaxed);
        let help = "Connections that were refused because too many were open.";
        page.counter("gaterail_connections_refused_total", help, &[], refused);
    }

    /// Histograms under both names.
    fn times(&self, page: &mut Page, about: &About<'_>, labels: Labels<'_>) {
        let all: [(&str, &str, &Histogram, &str); 9] = [
            (
                "time_to_first_token_seconds",
                "From the request to its first token.",
                &self.first_token,
                "time_to_first_token_seconds",
            ),
            (
                "inter_token_latency_seconds",
                "Between two tokens of an answer.",
                &self.between_tokens,
                "inter_token_latency_seconds",
            ),
            (
                "time_per_output_token_seconds",
                "Mean over an answer's tokens but the first.",
                &self.per_token,
                "request_time_per_output_token_seconds",
            ),
            (
                "request_duration_seconds",
                "From the request to its last token.",
                &self.whole,
                "e2e_request_latency_seconds",
            ),
            (
                "request_queue_seconds",
                "From the request to its first step.",
                &self.queued,
                "request_queue_time_seconds",
            ),
            (
                "request_prefill_seconds",
                "From the first step to the first token.",
                &self.prefill,
                "request_prefill_time_seconds",
            ),
            (
                "request_decode_seconds",
                "From the first token to the last.",
                &self.decode,
                "request_decode_time_seconds",
            ),
            ("request_prompt_tokens", "Tokens of a prompt.", &self.prompt_tokens, "request_prompt_tokens"),
            (
                "request_generated_tokens",
                "Tokens of an answer.",
                &self.generated_tokens,
                "request_generation_tokens",
            ),
        ];
        for (own, help, histogram, theirs) in all {
            page.histogram(&format!("gaterail_{own}"), help, labels, histogram);
            if about.aliases {
                page.histogram(&format!("vllm:{theirs}"), help, labels, histogram);
            }
        }
    }

    fn vllm(&self, page: &mut Page, load: &LoadSnapshot, about: &About<'_>, labels: Labels<'_>) {
        page.gauge("vllm:num_requests_running", "Sequences that run.", labels, load.running);
        page.gauge("vllm:num_requests_waiting", "Sequences that wait.", labels, load.waiting);
        page.gauge(
            "vllm:kv_cache_usage_perc",
            "Share of the KV pages in use, 0 to 1.",
            labels,
            load.pages_share(),
        );
        let (size, pages) = (about.page_positions.to_string(), load.pages_total.to_string());
        let config = [("model_name", about.model), ("block_size", &size), ("num_gpu_blocks", &pages)];
        page.gauge("vllm:cache_config_info", "The KV cache.", &config, 1);
        let totals = [
            ("vllm:prompt_tokens_total", "Prompt tokens that were computed.", load.prompt_tokens),
            ("vllm:generation_tokens_total", "Tokens that were generated.", load.generated_tokens),
            ("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.", load.prefix_queries),
            ("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.", load.prefix_hits),
            ("vllm:num_preemptions_total", "Sequences that lost their pages for a time.", load.preemptions),
        ];
        for (name, help, value) in totals {
            page.counter(name, help, labels, value);
        }
        let name = "vllm:request_success_total";
        page.family(name, "counter", "Requests by how they ended.");
        for outcome in FINISHED {
            let labels = [("model_name", about.model), ("finished_reason", outcome.word())];
            page.sample(name, &labels, self.outcomes[outcome as usize].load(Relaxed));
        }
    }
}

fn gauges(page: &mut Page, load: &LoadSnapshot, labels: Labels<'_>) {
    let counts = [
        ("gaterail_requests_queued", "Requests that wait to start.", load.queued_requests),
        (
            "gaterail_prompt_tokens_queued",
            "Prompt tokens of the requests that wait to start.",
            load.queued_tokens,
        ),
        ("gaterail_sequences_waiting", "Sequences that wait for pages or room in a step.", load.waiting),
        ("gaterail_sequences_running", "Sequences that have pages.", load.running),
        ("gaterail_sequences_paused", "Running sequences whose client takes nothing.", load.paused),
        ("gaterail_kv_pages", "Pages of KV.", load.pages_total),
        ("gaterail_kv_pages_used", "Pages that a sequence holds.", load.pages_used),
        ("gaterail_kv_pages_cached", "Pages kept for prompts that begin alike.", load.pages_cached),
    ];
    for (name, help, value) in counts {
        page.gauge(name, help, labels, value);
    }
    page.gauge("gaterail_kv_used_ratio", "Share of the KV pages in use, 0 to 1.", labels, load.pages_share());
    let age = load.last_step_age.as_secs_f64();
    page.gauge("gaterail_last_step_age_seconds", "Since the last step ended.", labels, age);
}

fn counters(page: &mut Page, load: &LoadSnapshot, labels: Labels<'_>) {
    let totals = [
        ("gaterail_prompt_tokens_total", "Prompt tokens that were computed.", load.prompt_tokens),
        ("gaterail_generated_tokens_total", "Tokens that were generated.", load.generated_tokens),
        ("gaterail_prefix_queries_total", "Tokens looked up in the prefix cache.", load.prefix_queries),
        ("gaterail_prefix_hits_total", "Tokens found in the prefix cache.", load.prefix_hits),
        ("gaterail_preemptions_total", "Sequences that lost their pages for a time.", load.preemptions),
        ("gaterail_steps_total", "Steps of the model.", load.steps),
        ("gaterail_failed_steps_total", "Steps that failed.", load.failed_steps),
    ];
    for (name, help, value) in totals {
        page.counter(name, help, labels, value);
    }
    let time = load.step_time.as_secs_f64();
    page.counter("gaterail_step_seconds_total", "Time inside steps.", labels, time);
}
