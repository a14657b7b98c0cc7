//! The comparison as people read it: a table, and a page with pictures.

use super::Comparison;
use super::figures::{Cell, Figure, Lead, Side, Spread, Winner};
use super::picture;
use crate::bench::plot::escaped;

const TITLE: usize = 26;
const COLUMN: usize = 30;

/// What the machine gave meanwhile.
const MEMORY: &str = "the machine's memory, GB/s";

/// What a line of the table says of a side, and how many decimals its numbers have.
type Row = (&'static str, fn(&Side) -> &Figure, usize);

const PREFILL: [Row; 8] = [
    ("TTFT, ms", |side| &side.latency_ms, 1),
    (KNOWING, |side| &side.knowing_ms, 1),
    ("experts touched a layer", |side| &side.touched, 1),
    ("tokens/s", |side| &side.tokens_per_second, 1),
    ("bytes a token", |side| &side.bytes_per_token, 0),
    ("hops a token", |side| &side.hops_per_token, 2),
    ("wait for slowest, ms", |side| &side.slowest_ms, 2),
    ("slowest over mean", |side| &side.imbalance, 2),
];
const DECODE: [Row; 8] = {
    let mut rows = PREFILL;
    rows[0] = ("TPOT, ms", |side| &side.latency_ms, 2);
    rows[1].2 = 2;
    rows
};
const LEGEND: &str = "median (least to most) | what was predicted before, and its error; in the line \"told what it touched\" what \
    would have been predicted had it been known which experts rows would go to";
/// Under the line that says what was measured and what was predicted before it.
const KNOWING: &str = "  told what it touched";

pub fn text(found: &Comparison) -> String {
    let mut text = format!(
        "{}: prompts of {} tokens, answers of {}; {} worker processes, {}\n{LEGEND}\n",
        found.model,
        found.prompt_tokens,
        found.output_tokens,
        found.workers,
        rounds(found)
    );
    for &streams in &found.streams {
        let cells: Vec<&Cell> = found.cells.iter().filter(|cell| cell.streams == streams).collect();
        // An interrupt may have come before them.
        let Some(first) = cells.first() else { continue };
        let of = if streams == 1 { "1 stream".to_string() } else { format!("{streams} streams") };
        for (name, rows, side) in sides() {
            text += &line(&format!("\n{name}, {of}"), cells.iter().map(|cell| cell.mode.clone()));
            for (title, figure, decimals) in rows {
                text += &line(
                    &format!("  {title}"),
                    cells.iter().map(|cell| shown(figure(side(cell)), decimals)),
                );
            }
            for part in 0..side(first).parts.len() {
                let title = format!("    {}, ms", side(first).parts[part].name);
                text += &line(&title, cells.iter().map(|cell| part_shown(side(cell), part)));
            }
        }
        text += &line(&format!("\n{MEMORY}"), cells.iter().map(|cell| read_shown(cell)));
    }
    text += &line("\nmemory of the fullest, MB", found.first_cells().map(|cell| shown_scaled(&cell.memory)));
    text.push('\n');
    text += &found.winners.iter().map(|winner| winner_line(winner, found.rounds) + "\n").collect::<String>();
    text += &found.same;
    text + "\n"
}

type Picked = (&'static str, [Row; 8], fn(&Cell) -> &Side);

pub fn sides() -> [Picked; 2] {
    [("prefill", PREFILL, |cell| &cell.prefill), ("decode", DECODE, |cell| &cell.decode)]
}

/// `12.3 (12.1 to 12.9) | 11.8 -4 %`
fn shown(figure: &Figure, decimals: usize) -> String {
    let Some(measured) = figure.measured else { return "-".to_string() };
    let predicted = match (figure.predicted, figure.error) {
        (Some(predicted), Some(error)) => format!(" | {predicted:.decimals$} {}", percent(error)),
        (Some(predicted), None) => format!(" | {predicted:.decimals$}"),
        _ => String::new(),
    };
    let spread = match measured.least == measured.most {
        true => String::new(),
        false => format!(" ({:.decimals$} to {:.decimals$})", measured.least, measured.most),
    };
    format!("{:.decimals$}{spread}{predicted}", measured.median)
}

fn rounds(found: &Comparison) -> String {
    if found.rounds == 1 { "1 round".to_string() } else { format!("{} rounds", found.rounds) }
}

/// `+4 %`; what is rounded to nothing has no sign.
fn percent(error: f64) -> String {
    let percent = (error * 100.0).round();
    if percent == 0.0 { "0 %".to_string() } else { format!("{percent:+.0} %") }
}

fn shown_scaled(figure: &Figure) -> String {
    let mega = |value: f64| value / 1e6;
    let measured = figure.measured.map(|spread| Spread {
        median: mega(spread.median),
        least: mega(spread.least),
        most: mega(spread.most),
    });
    shown(&Figure { measured, predicted: figure.predicted.map(mega), error: figure.error }, 1)
}

/// Over all turns, before, between and after; how many turns did not have the same all the time.
fn read_shown(cell: &Cell) -> String {
    let Some(Spread { median, least, most }) = cell.read_bytes_per_second else { return "-".to_string() };
    let moved = match cell.moved {
        0 => String::new(),
        moved => format!(", moved in {moved}"),
    };
    format!("{:.1} ({:.1} to {:.1}){moved}", median / 1e9, least / 1e9, most / 1e9)
}

fn part_shown(side: &Side, at: usize) -> String {
    let part = &side.parts[at];
    let predicted = part.predicted_ms.map_or(String::new(), |ms| format!(" | {ms:.2}"));
    format!("{:.2}{predicted}", part.measured_ms)
}

fn line(title: &str, values: impl IntoIterator<Item = String>) -> String {
    let (breaks, title) = title.split_at(title.len() - title.trim_start_matches('\n').len());
    let mut line = format!("{breaks}{title:TITLE$}");
    values.into_iter().for_each(|value| line += &format!("  {value:>COLUMN$}"));
    line.trim_end().to_string() + "\n"
}

/// `decode, 4 streams: tp is fastest, with 41.2 tokens/s (40.8 to 41.9); ep makes 11 % less, 36.7 (36.0 to 37.1), mostly for 3.20 ms
/// more of each step in experts. As predicted.`
pub fn winner_line(winner: &Winner, rounds: usize) -> String {
    let spread = |rate: &Spread| match rate.least == rate.most {
        true => format!("{:.1}", rate.median),
        false => format!("{:.1} ({:.1} to {:.1})", rate.median, rate.least, rate.most),
    };
    let lead = |lead: &Lead| {
        let less = (1.0 - lead.rate.median / winner.rate.median) * 100.0;
        let doubt = match (lead.unlike, lead.clear) {
            (Some((ours, theirs)), _) => {
                format!(
                    " (no fair comparison: memory gave {:.0} GB/s, and to {} {:.0})",
                    theirs / 1e9,
                    winner.winner,
                    ours / 1e9
                )
            }
            (None, true) => String::new(),
            (None, false) => ", which is within the spread".to_string(),
        };
        format!(
            "; {} makes {less:.0} % less, {}{doubt}, mostly for {:.2} ms more of each step in {}",
            lead.loser,
            spread(&lead.rate),
            lead.saved_ms,
            lead.part
        )
    };
    let over: String = winner.over.iter().map(lead).collect();
    let foreseen = match winner.foreseen {
        Some(true) if !winner.over.is_empty() => " As predicted.",
        Some(false) => " Another one was predicted.",
        _ => "",
    };
    let once =
        if rounds == 1 && !winner.over.is_empty() { " One round says nothing of the spread." } else { "" };
    format!(
        "{}: {} is fastest, with {} tokens/s{over}.{foreseen}{once}",
        winner.what,
        winner.winner,
        spread(&winner.rate)
    )
}

/// A page that needs nothing else.
pub fn page(found: &Comparison) -> String {
    let title = format!("{}: ways to spread the experts", found.model);
    let mut body = format!(
        "<h1>{}</h1>\n<p>Prompts of {} tokens, answers of {}; {} worker processes; {}. {}</p>\n<p>{LEGEND}</p>\n<ul>\n",
        escaped(&title),
        found.prompt_tokens,
        found.output_tokens,
        found.workers,
        rounds(found),
        escaped(&found.device),
    );
    found
        .winners
        .iter()
        .for_each(|winner| body += &format!("<li>{}</li>\n", escaped(&winner_line(winner, found.rounds))));
    body += &format!("</ul>\n<p>{}</p>\n", escaped(&found.same));
    body += &wide(&picture::steps(&found.cells));
    for &streams in &found.streams {
        let cells: Vec<&Cell> = found.cells.iter().filter(|cell| cell.streams == streams).collect();
        if cells.is_empty() {
            continue;
        }
        for (name, rows, side) in sides() {
            body += &table(&format!("{name}, {streams} at once"), &cells, &rows, side);
        }
        body += &wide(&picture::requests(&cells, streams));
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{}</title><style>{STYLE}</style></head>\n\
         <body>\n{body}</body></html>\n",
        escaped(&title)
    )
}

/// Pictures and tables that are wider than the window scroll by themselves. Pictures are drawn for white; on black their text and
/// lines follow the page.
const STYLE: &str = ":root{color-scheme:light dark;--text:#222;--back:#fff;--line:#ddd;--last:#000}\
@media(prefers-color-scheme:dark){:root{--text:#ddd;--back:#15171b;--line:#3a3d44;--last:#c8c8c8}}\
body{font:14px/1.45 Helvetica,Arial,sans-serif;color:var(--text);background:var(--back);max-width:1100px;margin:2em auto;padding:0 1em}\
h1{font-size:1.5em;overflow-wrap:anywhere}li{margin:.4em 0}.wide{overflow-x:auto;margin:1.5em 0}\
table{border-collapse:collapse}th,td{padding:.25em .8em;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left;white-space:pre}caption{text-align:left;font-weight:bold;padding:.4em 0;white-space:nowrap}\
svg{fill:var(--text)}svg>rect[fill=white]{fill:var(--back)}path[stroke=\"#ddd\"]{stroke:var(--line)}\
path[stroke=\"#444\"]{stroke:var(--text)}rect[fill=\"#000000\"]{fill:var(--last)}";

fn wide(inner: &str) -> String {
    format!("<div class=\"wide\">\n{inner}</div>\n")
}

fn table(caption: &str, cells: &[&Cell], rows: &[Row], side: fn(&Cell) -> &Side) -> String {
    let row = |title: &str, values: Vec<String>, tag: &str| {
        let values: String =
            values.iter().map(|value| format!("<{tag}>{}</{tag}>", escaped(value))).collect();
        format!("<tr><{tag}>{}</{tag}>{values}</tr>\n", escaped(title))
    };
    let mut text = format!("<table><caption>{}</caption>\n", escaped(caption));
    text += &row("", cells.iter().map(|cell| cell.mode.clone()).collect(), "th");
    for (title, figure, decimals) in rows {
        text += &row(title, cells.iter().map(|cell| shown(figure(side(cell)), *decimals)).collect(), "td");
    }
    text += &row(MEMORY, cells.iter().map(|cell| read_shown(cell)).collect(), "td");
    wide(&(text + "</table>\n"))
}
