//! Results as a picture: output rate as bars, and the shares of TTFT, TPOT and end-to-end time, a colour for each result.
//!
//! An SVG that needs nothing else; a file called .html gets a page around it.

use std::fmt::Write;

use serde_json::Value;

use super::result::Saved;
use super::table::heading;

/// Told apart by most eyes: Okabe and Ito's.
pub const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#000000"];
const WIDTH: f64 = 960.0;
const PANEL: (f64, f64) = (370.0, 210.0);
const LEFT: f64 = 80.0;
const GAP: (f64, f64) = (100.0, 90.0);
const LEGEND_ROW: f64 = 20.0;

/// One panel: its place, and what it shows.
struct Panel<'a> {
    x: f64,
    y: f64,
    title: &'a str,
}

/// One line of a panel.
struct Curve {
    color: &'static str,
    /// Sorted, in ms.
    values: Vec<f64>,
}

pub fn page(results: &[Saved], title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n<body>{1}</body></html>\n",
        escaped(title),
        svg(results, title)
    )
}

pub fn svg(results: &[Saved], title: &str) -> String {
    let top = 60.0 + LEGEND_ROW * results.len().div_ceil(3) as f64 + 40.0;
    let height = top + 2.0 * PANEL.1 + GAP.1 + 70.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(
        &mut out,
        LEFT,
        34.0,
        "start",
        &format!("<tspan font-size=\"18\" font-weight=\"bold\">{}</tspan>", escaped(title)),
    );
    legend(&mut out, results);
    let place = |column: f64, row: f64, title| Panel {
        x: LEFT + column * (PANEL.0 + GAP.0),
        y: top + row * (PANEL.1 + GAP.1),
        title,
    };
    bars(&mut out, &place(0.0, 0.0, "Output tokens/s (more is better)"), results);
    shares(
        &mut out,
        &place(1.0, 0.0, "Time to first token: share of requests"),
        &curves(results, &|result| numbers(result, "ttfts")),
    );
    shares(
        &mut out,
        &place(0.0, 1.0, "Time per output token after the first: share of requests"),
        &curves(results, &tpots),
    );
    shares(
        &mut out,
        &place(1.0, 1.0, "End to end: share of requests"),
        &curves(results, &|result| numbers(result, "latencies")),
    );
    out += "</svg>\n";
    out
}

fn color(index: usize) -> &'static str {
    COLORS[index % COLORS.len()]
}

fn legend(out: &mut String, results: &[Saved]) {
    for (index, result) in results.iter().enumerate() {
        let (x, y) = (LEFT + (index % 3) as f64 * 280.0, 66.0 + LEGEND_ROW * (index / 3) as f64);
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"10\" fill=\"{}\"/>",
            y - 9.0,
            color(index)
        );
        text(out, x + 20.0, y, "start", &escaped(&heading(result)));
    }
}

fn bars(out: &mut String, panel: &Panel, results: &[Saved]) {
    let rates: Vec<Option<f64>> =
        results.iter().map(|result| result.get("output_throughput").and_then(Value::as_f64)).collect();
    let most = rates.iter().flatten().copied().fold(0.0, f64::max);
    frame(out, panel, "");
    if most <= 0.0 {
        return text(out, panel.x + PANEL.0 / 2.0, panel.y + PANEL.1 / 2.0, "middle", "not known");
    }
    let step = round_step(most / 4.0);
    let full = (most * 1.08 / step).ceil() * step;
    let y = |value: f64| panel.y + PANEL.1 * (1.0 - value / full);
    for tick in 0..=(full / step).round() as usize {
        let value = tick as f64 * step;
        grid_across(out, panel, y(value), &short(value));
    }
    let slot = PANEL.0 / rates.len() as f64;
    for (index, rate) in rates.iter().enumerate() {
        let x = panel.x + slot * (index as f64 + 0.5);
        let value = rate.unwrap_or_default();
        let width = (slot * 0.6).min(60.0);
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
            x - width / 2.0,
            y(value),
            panel.y + PANEL.1 - y(value),
            color(index)
        );
        let label = rate.map_or("not known".to_string(), |rate| format!("{rate:.1}"));
        text(out, x, y(value) - 5.0, "middle", &label);
    }
}

fn curves(results: &[Saved], values: &dyn Fn(&Saved) -> Vec<f64>) -> Vec<Curve> {
    let curve = |(index, result)| {
        let mut values: Vec<f64> = values(result).into_iter().map(|seconds| seconds * 1e3).collect();
        values.retain(|ms| *ms > 0.0);
        values.sort_by(f64::total_cmp);
        Curve { color: color(index), values }
    };
    results.iter().enumerate().map(curve).collect()
}

/// The share of requests that took at most so long; time runs in powers of ten.
fn shares(out: &mut String, panel: &Panel, curves: &[Curve]) {
    frame(out, panel, "ms, logarithmic");
    let all = || curves.iter().flat_map(|curve| curve.values.iter().copied());
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    if most <= 0.0 {
        return text(out, panel.x + PANEL.0 / 2.0, panel.y + PANEL.1 / 2.0, "middle", "not known");
    }
    let (low, high) = (rounded_down(least * 0.95), rounded_up(most * 1.05));
    let x = |ms: f64| panel.x + PANEL.0 * (ms / low).ln() / (high / low).ln();
    let y = |share: f64| panel.y + PANEL.1 * (1.0 - share);
    for percent in [0, 25, 50, 75, 100] {
        grid_across(out, panel, y(f64::from(percent) / 100.0), &format!("{percent} %"));
    }
    let mut tick = low;
    while tick <= high * 1.001 {
        grid_up(out, panel, x(tick), &short(tick));
        tick = rounded_up(tick * 1.01);
    }
    for curve in curves.iter().filter(|curve| !curve.values.is_empty()) {
        let mut path = format!("M{:.1} {:.1}", x(curve.values[0]), y(0.0));
        for (index, ms) in curve.values.iter().enumerate() {
            let share = (index + 1) as f64 / curve.values.len() as f64;
            let _ = write!(path, "H{:.1}V{:.1}", x(*ms), y(share));
        }
        let _ =
            writeln!(out, "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>", curve.color);
    }
}

fn frame(out: &mut String, panel: &Panel, unit: &str) {
    text(
        out,
        panel.x,
        panel.y - 12.0,
        "start",
        &format!("<tspan font-weight=\"bold\">{}</tspan>", panel.title),
    );
    let bottom = panel.y + PANEL.1;
    let _ = writeln!(
        out,
        "<path d=\"M{} {}V{bottom}H{}\" fill=\"none\" stroke=\"#444\"/>",
        panel.x,
        panel.y,
        panel.x + PANEL.0
    );
    text(out, panel.x + PANEL.0, bottom + 36.0, "end", unit);
}

fn grid_across(out: &mut String, panel: &Panel, y: f64, label: &str) {
    let (left, right) = (panel.x, panel.x + PANEL.0);
    let _ = writeln!(out, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>");
    text(out, left - 8.0, y + 4.0, "end", label);
}

fn grid_up(out: &mut String, panel: &Panel, x: f64, label: &str) {
    let (top, bottom) = (panel.y, panel.y + PANEL.1);
    let _ = writeln!(out, "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/>");
    text(out, x, bottom + 18.0, "middle", label);
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// 1, 2 or 5 times a power of ten, at least `value`.
fn rounded_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|step| *step >= value)
        .unwrap_or(10.0 * power)
}

/// The same, at most `value`.
fn rounded_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0].map(|step| step * power).into_iter().find(|step| *step <= value).unwrap_or(power)
}

fn round_step(value: f64) -> f64 {
    rounded_up(value)
}

/// Without a tail of zeros.
fn short(value: f64) -> String {
    if value >= 10_000.0 {
        return format!("{}k", short(value / 1000.0));
    }
    if value >= 1000.0 {
        return format!("{value:.0}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Of the answers that came; failed ones are 0 in a saved file.
fn numbers(result: &Saved, field: &str) -> Vec<f64> {
    result.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// A file of vLLM's without `latencies` has TTFT and ITL, whose sum they are.
fn tpots(result: &Saved) -> Vec<f64> {
    let lists = |field: &str| result.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let (tokens, ttfts, itls, latencies) =
        (lists("output_lens"), lists("ttfts"), lists("itls"), lists("latencies"));
    let one = |(index, tokens): (usize, &Value)| {
        let tokens = tokens.as_u64().filter(|tokens| *tokens > 1)?;
        let rest = match latencies.get(index).and_then(Value::as_f64) {
            Some(latency) => latency - ttfts.get(index)?.as_f64()?,
            None => itls.get(index)?.as_array()?.iter().filter_map(Value::as_f64).sum(),
        };
        Some(rest / (tokens - 1) as f64)
    };
    tokens.iter().enumerate().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_begin_and_end_at_round_numbers() {
        for (value, down, up) in [(1.0, 1.0, 1.0), (3.0, 2.0, 5.0), (0.07, 0.05, 0.1), (120.0, 100.0, 200.0)]
        {
            let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
            assert!(near(rounded_down(value), down) && near(rounded_up(value), up), "{value}");
        }
        assert_eq!([0.5, 20.0, 5000.0, 50_000.0].map(short), ["0.5", "20", "5000", "50k"]);
    }

    #[test]
    fn what_a_label_says_cannot_leave_its_text() {
        let mut result = Saved::new();
        result.insert("label".to_string(), "<script>&\"".into());
        let picture = page(&[result], "</svg>");
        assert!(picture.contains("&lt;script&gt;&amp;&quot;") && !picture.contains("<script"), "{picture}");
        assert_eq!(picture.matches("</svg>").count(), 1);
    }
}
