//! Pictures of a comparison: what steps are made of, measured beside predicted; and the requests of every mode.

use std::fmt::Write;

use super::figures::Cell;
use crate::bench::load::Measured;
use crate::bench::plot::{COLORS, escaped, svg};
use crate::bench::request::{Answer, Record};
use crate::bench::result::{About, save};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 190.0;
const BAR: f64 = 15.0;
const PAIR: f64 = 44.0;
const TOP: f64 = 76.0;

/// Of a mode: its name, and milliseconds by part, measured and predicted.
type Bars = (String, Vec<Option<f64>>, Vec<Option<f64>>);

/// A pair of bars for each mode and number of streams: decode's step by part, measured above, predicted below.
pub fn steps(cells: &[Cell]) -> String {
    let total = |values: &[Option<f64>]| values.iter().map(|value| value.unwrap_or(0.0)).sum::<f64>();
    let rows: Vec<Bars> = cells
        .iter()
        .map(|cell| {
            let parts = &cell.decode.parts;
            let name = format!("{}, {} at once", cell.mode, cell.streams);
            let measured = parts.iter().map(|part| Some(part.measured_ms)).collect();
            (name, measured, parts.iter().map(|part| part.predicted_ms).collect())
        })
        .collect();
    let most = rows.iter().flat_map(|(_, a, b)| [total(a), total(b)]).fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + PAIR * rows.len() as f64 + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <text x=\"0\" y=\"20\" font-size=\"16\" font-weight=\"bold\">A step of decode, ms: measured, and below it as predicted</text>\n"
    );
    let names = cells.first().map(|cell| cell.decode.parts.iter().map(|part| part.name).collect::<Vec<_>>());
    let mut x = 0.0;
    for (at, name) in names.unwrap_or_default().into_iter().enumerate() {
        let color = COLORS[at % COLORS.len()];
        let _ = writeln!(out, "<rect x=\"{x}\" y=\"38\" width=\"12\" height=\"10\" fill=\"{color}\"/>");
        let _ = writeln!(out, "<text x=\"{}\" y=\"47\">{}</text>", x + 17.0, escaped(name));
        x += 50.0 + 7.5 * name.len() as f64;
    }
    for (at, (name, measured, predicted)) in rows.iter().enumerate() {
        let y = TOP + PAIR * at as f64;
        let _ = writeln!(out, "<text x=\"0\" y=\"{}\">{}</text>", y + 16.0, escaped(name));
        for (values, y, opacity) in [(measured, y, 1.0), (predicted, y + BAR + 2.0, 0.55)] {
            if values.iter().all(Option::is_some) {
                bar(&mut out, values, (y, opacity), most);
            }
        }
    }
    out + "</svg>\n"
}

fn bar(out: &mut String, values: &[Option<f64>], (y, opacity): (f64, f64), most: f64) {
    let scale = (WIDTH - LEFT - 70.0) / most;
    let mut x = LEFT;
    for (at, ms) in values.iter().enumerate() {
        let width = ms.unwrap_or(0.0).max(0.0) * scale;
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\" opacity=\"{opacity}\"/>",
            COLORS[at % COLORS.len()]
        );
        x += width;
    }
    let all: f64 = values.iter().flatten().sum();
    let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{all:.2}</text>", x + 6.0, y + 12.0);
}

/// TTFT, TPOT and end-to-end time of the requests of every mode.
pub fn requests(cells: &[&Cell], streams: u32) -> String {
    let saved = |cell: &&Cell| {
        let answers = cell.turns.iter().flat_map(|turn| &turn.decode.answers);
        let firsts = cell.turns.iter().flat_map(|turn| &turn.prefill.answers);
        // The first token of a prompt that nobody has seen, and then the answer.
        let whole = answers.zip(firsts).map(|(answer, first)| Answer {
            ttft: first.ttft,
            e2el: first.ttft + answer.e2el - answer.ttft,
            ..answer.clone()
        });
        let record = |(index, answer): (usize, Answer)| Record {
            index,
            start: 0.0,
            late: 0.0,
            prompt_tokens: 0,
            end: answer.e2el,
            result: Ok(answer),
        };
        let records: Vec<Record> = whole.enumerate().map(record).collect();
        // Rounds follow each other; the rate is that of decode.
        let rate = cell.decode.tokens_per_second.measured.map_or(0.0, |spread| spread.median);
        let tokens: u32 = records.iter().filter_map(|at| at.result.as_ref().ok()?.output.count()).sum();
        let duration = if rate > 0.0 { f64::from(tokens) / rate } else { 0.0 };
        let about = About {
            label: &cell.mode,
            model: "",
            chat: false,
            rate: None,
            burstiness: 1.0,
            concurrency: Some(streams as usize),
            promise: None,
            prompt_source: "tokenize",
            exact_length: true,
            seed: 0,
            cpu_seconds: 0.0,
        };
        save(&about, &Measured { records, duration, interrupted: false })
    };
    let results: Vec<_> = cells.iter().map(saved).collect();
    svg(&results, &format!("{streams} at once: decode's rate, and all requests"))
}
