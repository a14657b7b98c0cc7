//! Results side by side, a column for each: of one run, of several, or of files that were saved.

use serde_json::Value;

use super::result::Saved;

/// Lines of the table: what it says, the field, decimals.
const COUNTS: [(&str, &str, usize); 7] = [
    ("requests completed", "completed", 0),
    ("requests failed", "failed", 0),
    ("duration, s", "duration", 2),
    ("requests/s", "request_throughput", 2),
    ("requests/s within the SLOs", "request_goodput", 2),
    ("output tokens/s", "output_throughput", 1),
    ("all tokens/s", "total_token_throughput", 1),
];
const TIMES: [(&str, &str); 4] = [
    ("TTFT, ms", "ttft"),
    ("TPOT, ms (without the first)", "tpot"),
    ("ITL, ms (between events)", "itl"),
    ("end to end, ms", "e2el"),
];
const PARTS: [&str; 6] = ["mean", "median", "std", "p90", "p95", "p99"];
const COLUMN: usize = 12;

pub fn table(results: &[Saved]) -> String {
    let mut rows: Vec<(String, Vec<String>)> = vec![(String::new(), results.iter().map(heading).collect())];
    for (title, field, decimals) in COUNTS {
        if results.iter().any(|result| result.get(field).is_some_and(|value| !value.is_null())) {
            rows.push((
                title.to_string(),
                results.iter().map(|result| number(result, field, decimals)).collect(),
            ));
        }
    }
    for (title, name) in TIMES {
        rows.push((title.to_string(), Vec::new()));
        for part in PARTS {
            let field = format!("{part}_{name}_ms");
            let values = results.iter().map(|result| number(result, &field, 2)).collect();
            rows.push((format!("  {part}"), values));
        }
    }
    laid_out(&rows)
}

/// What tells this run from the others.
pub fn heading(result: &Saved) -> String {
    let label = result.get("label").and_then(Value::as_str).unwrap_or_default();
    let load = match (result.get("max_concurrency").and_then(Value::as_u64), result.get("request_rate")) {
        (Some(concurrency), _) => format!("c={concurrency}"),
        (None, Some(Value::Number(rate))) => format!("{rate}/s"),
        _ => String::new(),
    };
    match (label.is_empty(), load.is_empty()) {
        (false, false) => format!("{label} {load}"),
        (false, true) => label.to_string(),
        _ => load,
    }
}

fn number(result: &Saved, field: &str, decimals: usize) -> String {
    match result.get(field).and_then(Value::as_f64) {
        Some(value) => format!("{value:.decimals$}"),
        None => "-".to_string(),
    }
}

fn laid_out(rows: &[(String, Vec<String>)]) -> String {
    let first = rows.iter().map(|(title, _)| title.chars().count()).max().unwrap_or_default();
    let cells = rows.iter().flat_map(|(_, values)| values);
    let column = cells.map(|value| value.chars().count()).max().unwrap_or_default().max(COLUMN);
    let mut text = String::new();
    for (title, values) in rows {
        let mut line = format!("{title:first$}");
        for value in values {
            line += &format!("  {value:>column$}");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// What a reader of the table must know to judge it.
pub fn remarks(results: &[Saved]) -> Vec<String> {
    results
        .iter()
        .flat_map(|result| remarks_on(result).into_iter().map(|text| format!("{}: {text}", heading(result))))
        .collect()
}

fn remarks_on(result: &Saved) -> Vec<String> {
    let mut remarks = Vec::new();
    for (kind, count) in result.get("failures").and_then(Value::as_object).into_iter().flatten() {
        remarks.push(format!("{count} failed: {kind}{}", example(result, kind)));
    }
    let by = |who: &str| result.get("output_tokens_by").and_then(|by| by[who].as_u64()).unwrap_or_default();
    if by("limit") > 0 {
        remarks.push(format!(
            "no usage for {} answers; they ended at their limit, which is their length",
            by("limit")
        ));
    }
    if by("unknown") > 0 {
        remarks.push(format!(
            "no usage for {} answers: their tokens are not known, nor any rate of tokens",
            by("unknown")
        ));
    }
    let completed = result.get("completed").and_then(Value::as_u64).unwrap_or_default();
    let told = result.get("input_tokens_by_usage").and_then(Value::as_u64).unwrap_or(completed);
    if told < completed {
        let by = result.get("prompt_lengths_by").and_then(Value::as_str).unwrap_or("nobody");
        remarks.push(format!(
            "prompt tokens of {} answers are not the server's usage but by {by}",
            completed - told
        ));
    }
    if result.get("ignore_eos") == Some(&Value::Bool(false)) {
        remarks.push("the server takes no ignore_eos: answers may be shorter than asked for".to_string());
    }
    if result.get("interrupted") == Some(&Value::Bool(true)) {
        remarks.push("interrupted: what was under way is not in these figures".to_string());
    }
    let late = result.get("max_late_ms").and_then(Value::as_f64).unwrap_or_default();
    if late > 10.0 {
        remarks.push(format!(
            "requests left up to {late:.0} ms late: this machine did not keep up with the load"
        ));
    }
    remarks
}

/// The first error of a kind, in the server's words.
fn example(result: &Saved, kind: &str) -> String {
    let errors =
        result.get("errors").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let mut errors = errors.filter(|error| !error.is_empty());
    let status = kind.strip_prefix("http_").map(|status| format!("HTTP {status}:"));
    let found = match status {
        Some(status) => errors.find(|error| error.starts_with(&status)),
        None => errors.find(|error| !error.starts_with("HTTP ")),
    };
    found.map(|error| format!(" ({})", error.chars().take(160).collect::<String>())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_stand_side_by_side_and_what_is_not_known_is_a_dash() {
        let result = |value| match value {
            Value::Object(saved) => saved,
            _ => unreachable!("an object"),
        };
        let ours = result(
            json!({"label": "a", "max_concurrency": 4, "completed": 8, "output_throughput": 12.34,
            "mean_ttft_ms": 1.5, "failed": 1, "failures": {"http_429": 1}, "errors": ["", "HTTP 429: full"]}),
        );
        let theirs = result(json!({"request_rate": 2.5, "completed": 9, "output_throughput": null}));
        let text = table(&[ours.clone(), theirs]);
        let words = |begin: &str| -> Vec<String> {
            let line = text
                .lines()
                .find(|line| line.starts_with(begin))
                .unwrap_or_else(|| panic!("{begin}:\n{text}"));
            line.split_whitespace().map(String::from).collect()
        };
        assert_eq!(
            text.lines().next().expect("a heading").split_whitespace().collect::<Vec<_>>(),
            ["a", "c=4", "2.5/s"]
        );
        assert_eq!(words("requests completed"), ["requests", "completed", "8", "9"]);
        assert_eq!(words("output"), ["output", "tokens/s", "12.3", "-"]);
        assert_eq!(words("  mean"), ["mean", "1.50", "-"]);
        assert!(!text.contains("SLOs"), "nobody promised anything");
        assert_eq!(remarks(&[ours]), ["a c=4: 1 failed: http_429 (HTTP 429: full)"]);
    }
}
