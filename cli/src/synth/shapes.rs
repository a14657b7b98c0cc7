//! Known shapes: the numbers of published configurations.

use crate::error::CliError;
use crate::terminal;

/// Name, what it is, configuration.
const SHAPES: [(&str, &str, &str); 10] = [
    ("mini", "a toy of OLMoE's shape, 4 layers, 15 MB", include_str!("shapes/mini.json")),
    ("olmoe-1b-7b", "OLMoE-1B-7B: 6.9 B parameters, 1.3 B active", include_str!("shapes/olmoe-1b-7b.json")),
    ("qwen3-30b-a3b", "Qwen3-30B-A3B: 30.5 B, 3.3 B active", include_str!("shapes/qwen3-30b-a3b.json")),
    ("qwen3-235b-a22b", "Qwen3-235B-A22B: 235 B, 22 B active", include_str!("shapes/qwen3-235b-a22b.json")),
    ("mixtral-8x7b", "Mixtral-8x7B: 46.7 B, 12.9 B active", include_str!("shapes/mixtral-8x7b.json")),
    (
        "deepseek-v2-lite",
        "DeepSeek-V2-Lite: 15.7 B, 2.4 B active",
        include_str!("shapes/deepseek-v2-lite.json"),
    ),
    ("deepseek-v3", "DeepSeek-V3: 671 B, 37 B active, FP8", include_str!("shapes/deepseek-v3.json")),
    (
        "llama-4-scout",
        "Llama 4 Scout's text model: 109 B, 17 B active",
        include_str!("shapes/llama-4-scout.json"),
    ),
    ("gpt-oss-20b", "gpt-oss-20b: 20.9 B, 3.6 B active, MXFP4", include_str!("shapes/gpt-oss-20b.json")),
    ("gpt-oss-120b", "gpt-oss-120b: 117 B, 5.1 B active, MXFP4", include_str!("shapes/gpt-oss-120b.json")),
];

/// The configuration of a shape.
pub fn find(name: &str) -> Result<&'static str, CliError> {
    let found = SHAPES.iter().find(|(known, _, _)| *known == name);
    found.map(|(_, _, config)| *config).ok_or_else(|| {
        let names: Vec<&str> = SHAPES.iter().map(|(name, _, _)| *name).collect();
        CliError::Refused(format!("there is no shape {name:?}; there are {}", names.join(", ")))
    })
}

/// Prints all shapes.
pub fn list() -> Result<(), CliError> {
    let lines: String = SHAPES.iter().map(|(name, what, _)| format!("{name:18}{what}\n")).collect();
    terminal::print(&format!("{lines}\nParameters as the models' makers count them.\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gaterail_model::arch::parse_spec;
    use gaterail_model::config::Fields;
    use gaterail_model::weights::account;

    /// Total and active parameters in billions, as their makers publish them.
    #[test]
    fn shapes_have_the_published_sizes() {
        let published = [
            ("olmoe-1b-7b", 6.92, 1.28),
            ("qwen3-30b-a3b", 30.5, 3.3),
            ("qwen3-235b-a22b", 235.1, 22.2),
            ("mixtral-8x7b", 46.7, 12.9),
            ("deepseek-v2-lite", 15.7, 2.7),
            ("deepseek-v3", 671.0, 37.5),
            ("llama-4-scout", 107.8, 17.2),
            ("gpt-oss-20b", 20.9, 3.6),
            ("gpt-oss-120b", 116.8, 5.1),
        ];
        for (name, total, active) in published {
            let text = find(name).unwrap();
            let spec = parse_spec(&Fields::parse(name.as_ref(), text.as_bytes()).unwrap()).unwrap();
            let shares = account(&spec, None);
            let sum = |of: fn(&gaterail_model::weights::Share) -> u64| {
                shares.values().map(of).sum::<u64>() as f64 / 1e9
            };
            let (all, touched) = (sum(|share| share.parameters), sum(|share| share.active_parameters));
            assert!((all / total - 1.0).abs() < 0.01, "{name}: {all} B parameters, {total} B published");
            assert!(
                (touched / active - 1.0).abs() < 0.12,
                "{name}: {touched} B active, {active} B published"
            );
        }
    }
}
