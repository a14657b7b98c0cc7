//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

use super::histogram::Histogram;

/// A page that grows family by family.
#[derive(Default)]
pub struct Page {
    text: String,
}

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        let labels = label_text(labels, None);
        self.line(format_args!("{name}{labels} {value}"));
    }

    pub fn gauge(&mut self, name: &str, help: &str, labels: Labels<'_>, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, labels, value);
    }

    pub fn counter(&mut self, name: &str, help: &str, labels: Labels<'_>, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, labels, value);
    }

    pub fn histogram(&mut self, name: &str, help: &str, labels: Labels<'_>, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let picture = histogram.picture();
        let all = ("+Inf".to_string(), picture.count);
        let bounds = picture.buckets.iter().map(|(bound, count)| (bound.to_string(), *count));
        for (bound, count) in bounds.chain([all]) {
            let labels = label_text(labels, Some(&bound));
            self.line(format_args!("{name}_bucket{labels} {count}"));
        }
        let labels = label_text(labels, None);
        self.line(format_args!("{name}_sum{labels} {}", picture.sum));
        self.line(format_args!("{name}_count{labels} {}", picture.count));
    }

    pub fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.text, "{line}"); // writing to a string cannot fail
    }
}

fn label_text(labels: Labels<'_>, le: Option<&str>) -> String {
    let all: Vec<String> = labels
        .iter()
        .copied()
        .chain(le.map(|bound| ("le", bound)))
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
