//! Progress: the numbers, and the lines without a terminal.

use std::time::Duration;

use crate::progress::{ByteMeter, ByteProgress, Lines, Progress, bytes_text, status_text, time_text};

#[test]
fn numbers() {
    let cases = [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (9_994_999, "9.99 MB"),
        (31_249_000_000, "31.2 GB"),
        (999_600_000, "1.00 GB"),
        (u64::MAX, "18447 PB"),
    ];
    for (bytes, text) in cases {
        assert_eq!(bytes_text(bytes), text);
    }
    for (seconds, text) in [(0, "0s"), (65, "1m05s"), (7380, "2h03m")] {
        assert_eq!(time_text(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn a_meter_counts_what_is_there_and_what_has_moved() {
    let meter = ByteMeter::default();
    meter.plan(1000, 2);
    meter.begin("a");
    meter.add_resumed(300);
    meter.add(200);
    meter.take_back(500);
    meter.add(500);
    meter.end();
    let now = meter.now();
    assert_eq!((now.done, now.total, now.resumed, now.moved), (500, 1000, 300, 700));
    assert_eq!((now.item.as_str(), now.items_done, now.items_total), ("a", 1, 2));
    meter.plan(9000, 3);
    let now = meter.now();
    assert_eq!((now.done, now.total, now.moved), (0, 9000, 700));
}

#[test]
fn without_a_terminal_there_is_a_line_every_five_seconds() {
    let mut out = Vec::new();
    let mut lines = Lines::new("pull", &mut out);
    let mut now = ByteProgress {
        total: 31_200_000_000,
        rate: 200_000_000,
        item: "model.safetensors".into(),
        ..ByteProgress::default()
    };
    lines.note("12 files");
    for tenth in 0..=120 {
        now.elapsed = Duration::from_millis(100 * tenth);
        now.done = 20_000_000 * tenth;
        now.moved = now.done;
        lines.update(&now);
    }
    lines.finish(&now);
    now.done = now.total;
    lines.finish(&now);
    let expected = "pull: 12 files\n\
        pull: 1.00 GB of 31.2 GB (3%), 200 MB/s, 2m31s left, model.safetensors\n\
        pull: 2.00 GB of 31.2 GB (6%), 200 MB/s, 2m26s left, model.safetensors\n\
        pull: ended at 2.40 GB of 31.2 GB after 12s\n\
        pull: 31.2 GB complete after 12s (2.40 GB moved)\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn an_unknown_total_is_not_shown() {
    let now = ByteProgress { done: 5000, ..ByteProgress::default() };
    assert_eq!(status_text(&now), "5.00 kB");
}
