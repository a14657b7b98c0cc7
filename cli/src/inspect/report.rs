//! The report of `gaterail inspect`, as a table and as JSON.

use std::collections::BTreeMap;

use gaterail_kernels::Device;
use gaterail_kernels::ops::{KvForm, PAGE_POSITIONS};
use gaterail_model::checkpoint::Checkpoint;
use gaterail_model::kv::page_bytes;
use gaterail_model::spec::ModelSpec;
use gaterail_model::weights::{Precision, Role, Share, account, resident_bytes};
use serde_json::{Value, json};

use super::describe;
use crate::machine;
use crate::progress::bytes_text;

/// Everything that is shown.
pub struct Report {
    model: String,
    architecture: String,
    lines: Vec<(&'static str, String)>,
    shares: BTreeMap<Role, Share>,
    estimated: bool,
    kv_bytes_per_token: u64,
    context: u64,
    /// Weights that a running model keeps in memory.
    resident_bytes: u64,
    machine: Machine,
}

struct Machine {
    device: String,
    memory_bytes: Option<u64>,
    available_bytes: Option<u64>,
    bandwidth: Option<f64>,
}

impl Report {
    pub fn new(
        model: &str,
        spec: &ModelSpec,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        bandwidth: Option<f64>,
    ) -> Report {
        let shares = account(spec, checkpoint);
        let declared: u64 = shares.values().map(|share| share.bytes).sum();
        Report {
            model: model.to_string(),
            architecture: spec.architecture.clone(),
            lines: describe::architecture(spec),
            estimated: checkpoint.is_none(),
            kv_bytes_per_token: page_bytes(spec, KvForm::F16) / PAGE_POSITIONS as u64,
            context: spec.context as u64,
            resident_bytes: checkpoint
                .map_or(declared, |checkpoint| resident_bytes(spec, checkpoint, Precision::AsStored)),
            shares,
            machine: Machine {
                device: device.to_string(),
                memory_bytes: machine::total_memory_bytes(),
                available_bytes: machine::available_memory_bytes(),
                bandwidth,
            },
        }
    }

    fn total(&self) -> Share {
        let mut total = Share::default();
        for share in self.shares.values() {
            total.parameters += share.parameters;
            total.bytes += share.bytes;
            total.active_parameters += share.active_parameters;
            total.active_bytes += share.active_bytes;
            for (&precision, bytes) in &share.precisions {
                *total.precisions.entry(precision).or_default() += bytes;
            }
        }
        total
    }

    /// Tokens of KV that fit beside the weights; `None` if the weights themselves do not.
    fn kv_tokens_that_fit(&self) -> Option<u64> {
        let left = self.machine.available_bytes?.checked_sub(self.resident_bytes)?;
        Some(left / self.kv_bytes_per_token.max(1))
    }

    /// What the memory's bandwidth allows one stream, at the start of its context.
    fn decode_limit(&self) -> Option<f64> {
        let bytes = self.total().active_bytes;
        self.machine.bandwidth.filter(|_| bytes > 0).map(|bandwidth| bandwidth / bytes as f64)
    }

    pub fn json(&self) -> Value {
        let share = |share: &Share| {
            json!({
                "parameters": share.parameters,
                "bytes": share.bytes,
                "active_parameters": share.active_parameters,
                "active_bytes": share.active_bytes,
                "bytes_by_precision": share.precisions,
            })
        };
        let parts: serde_json::Map<String, Value> =
            self.shares.iter().map(|(role, part)| (role_name(*role).to_string(), share(part))).collect();
        let lines: serde_json::Map<String, Value> =
            self.lines.iter().map(|(what, how)| (what.to_string(), how.as_str().into())).collect();
        json!({
            "model": self.model,
            "architecture": self.architecture,
            "description": lines,
            "parts": parts,
            "total": share(&self.total()),
            "estimated": self.estimated,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "context": self.context,
            "resident_bytes": self.resident_bytes,
            "machine": {
                "device": self.machine.device,
                "memory_bytes": self.machine.memory_bytes,
                "available_bytes": self.machine.available_bytes,
                "read_bytes_per_second": self.machine.bandwidth,
            },
            "fits": self.machine.available_bytes.map(|available| self.resident_bytes <= available),
            "kv_tokens_that_fit": self.kv_tokens_that_fit(),
            "decode_tokens_per_second_limit": self.decode_limit(),
        })
    }

    pub fn text(&self) -> String {
        let mut text = format!("{}  {}\n\n", self.model, self.architecture);
        for (what, how) in &self.lines {
            text += &format!("  {what:14}{how}\n");
        }
        text += &format!(
            "\n  {:16}{:>12}{:>12}{:>14}  {}\n",
            "part", "parameters", "stored", "a token reads", "precision"
        );
        for (role, share) in &self.shares {
            let precisions: Vec<&str> = share.precisions.keys().copied().collect();
            text += &row(role_name(*role), share, &precisions.join(" + "));
        }
        text += &row("total", &self.total(), if self.estimated { "estimated from config.json" } else { "" });
        let total = self.total();
        text += &format!(
            "\n  {} parameters are active per token. KV takes {} per token (f16, every layer keeps the whole\n  context): {} for {} tokens.\n",
            count_text(total.active_parameters),
            bytes_text(self.kv_bytes_per_token),
            bytes_text(self.kv_bytes_per_token.saturating_mul(self.context)),
            self.context,
        );
        text + &self.machine_text()
    }

    fn machine_text(&self) -> String {
        let machine = &self.machine;
        let mut text = format!("\n  This machine: {}", machine.device);
        if let (Some(total), Some(available)) = (machine.memory_bytes, machine.available_bytes) {
            text += &format!(", {} of {} memory available", bytes_text(available), bytes_text(total));
        }
        if let Some(bandwidth) = machine.bandwidth {
            text += &format!(", reads about {}/s", bytes_text(bandwidth as u64));
        }
        text += "\n";
        match (machine.available_bytes, self.kv_tokens_that_fit()) {
            (None, _) => {}
            (Some(_), Some(tokens)) if tokens >= self.context => {
                let contexts = tokens / self.context.max(1);
                text += &format!("  It fits, with KV for {tokens} tokens: {contexts} whole contexts.\n");
            }
            (Some(_), Some(tokens)) => {
                text += &format!(
                    "  The weights fit, with KV for {tokens} of the context's {} tokens.\n",
                    self.context
                );
            }
            (Some(available), None) => {
                text += &format!(
                    "  It does not fit: {} are needed for the weights, {} more than are available.\n",
                    bytes_text(self.resident_bytes),
                    bytes_text(self.resident_bytes - available),
                );
            }
        }
        if let (Some(rate), Some(_)) = (self.decode_limit(), self.kv_tokens_that_fit()) {
            text += &format!("  Its memory bandwidth allows one stream about {rate:.1} tokens/s at most.\n");
        }
        text
    }
}

fn row(name: &str, share: &Share, precision: &str) -> String {
    let line = format!(
        "  {name:16}{:>12}{:>12}{:>14}  {precision}",
        count_text(share.parameters),
        bytes_text(share.bytes),
        bytes_text(share.active_bytes),
    );
    line.trim_end().to_string() + "\n"
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Embedding => "embedding",
        Role::Attention => "attention",
        Role::Gate => "gate",
        Role::Experts => "experts",
        Role::SharedExperts => "shared experts",
        Role::DenseLayers => "dense layers",
        Role::Norms => "norms",
        Role::Head => "head",
    }
}

/// `30.5 B`, `768 M`, as parameters are counted.
fn count_text(count: u64) -> String {
    let value = count as f64;
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{:.0} k", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", value / 1e6),
        _ => format!("{:.1} B", value / 1e9),
    }
}
