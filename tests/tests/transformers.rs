//! Every architecture against transformers: log-probabilities in one prefill, in chunks, and token by token.

use gaterail_kernels::Isa;
use gaterail_tests::{Case, device, expected, fixtures, load, log_softmax, logits_in_chunks};

/// How far a log-probability may be from transformers' in float32. Its own float32 is within 2e-5 of its float64.
const LOG_PROBABILITY_TOLERANCE: f64 = 1e-4;

/// The largest difference over a case; also that greedy decoding would take the same tokens.
fn compare(name: &str, how: &str, case: &Case, logits: &[Vec<f32>]) -> f64 {
    assert_eq!(logits.len(), case.top.len(), "{name}, {how}: positions");
    let mut worst = 0.0f64;
    for (position, (row, top)) in logits.iter().zip(&case.top).enumerate() {
        let ours = log_softmax(row);
        for &(token, expected) in top {
            let difference = (ours[token as usize] - f64::from(expected)).abs();
            assert!(
                difference <= LOG_PROBABILITY_TOLERANCE,
                "{name}, {how}, position {position}, token {token}: {} against {expected}",
                ours[token as usize]
            );
            worst = worst.max(difference);
        }
        if let Some(index) = (position + 1).checked_sub(case.prompt.len()) {
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary");
            assert_eq!(best as u32, case.continuation[index], "{name}, {how}: greedy token {index}");
        }
    }
    worst
}

#[test]
fn every_fixture_gives_transformers_log_probabilities() {
    let device = device(Isa::detect());
    let mut report = String::new();
    for folder in fixtures() {
        let name = folder.file_name().expect("a folder").to_string_lossy().into_owned();
        let mut runner = load(&folder, &device, Vec::new());
        let mut worst = 0.0f64;
        for case in &expected(&folder).cases {
            let tokens = case.tokens();
            let whole = logits_in_chunks(&mut runner, &tokens, std::iter::repeat(tokens.len()));
            worst = worst.max(compare(&name, "one prefill", case, &whole));
            let chunks = logits_in_chunks(&mut runner, &tokens, [3, 1, 7, 2].into_iter().cycle());
            worst = worst.max(compare(&name, "in chunks", case, &chunks));
            let single = logits_in_chunks(&mut runner, &tokens, std::iter::repeat(1));
            worst = worst.max(compare(&name, "token by token", case, &single));
        }
        report += &format!("{name:16} {worst:.1e}\n");
    }
    println!("largest difference of a log-probability\n{report}");
}
