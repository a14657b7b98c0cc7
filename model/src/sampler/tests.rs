//! The sampler against a plain one in f64 that sorts everything, and the statistics of its draws.

use super::draw::MARGIN;
use super::noise::{philox4x32, uniform};
use super::scan::{Before, Maxima, Ranked, Weights};
use super::*;

/// Random logits with the spread of a language model's: a few far above, most in a wide heap, some tied.
fn logits(len: usize, seed: u32, spread: f32) -> Vec<f32> {
    let value = |i: u32| {
        let [a, b, c, _] = philox4x32([i, seed, 0, 1], [9, 9]);
        let sum = (f64::from(a) + f64::from(b) + f64::from(c)) / f64::from(u32::MAX) - 1.5;
        // Coarse steps make ties.
        (sum as f32 * 2.0 * spread * 8.0).round() / 8.0
    };
    (0..len as u32).map(value).collect()
}

/// The specification, written plainly; `shift` moves the random number.
fn plain(logits: &[f32], params: &SamplingParams, step: &Step<'_>, shift: f64) -> (u32, Vec<f64>) {
    let log_sum = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let logprobs: Vec<f64> = logits.iter().map(|x| f64::from(*x) - log_sum).collect();
    let mut logits: Vec<f32> = logits.to_vec();
    for (token, bias) in &params.logit_bias {
        logits[*token as usize] += bias;
    }
    if step.generated < params.min_tokens {
        for token in step.stop_ids.iter().chain(&params.stop_token_ids) {
            logits[*token as usize] = f32::NEG_INFINITY;
        }
    }
    for (token, count) in step.counts.iter() {
        let logit = &mut logits[token as usize];
        *logit = if *logit > 0.0 {
            *logit / params.repetition_penalty
        } else {
            *logit * params.repetition_penalty
        };
        if count.output > 0 {
            *logit -= params.frequency_penalty * count.output as f32;
            *logit -= params.presence_penalty;
        }
    }
    let mut sorted: Vec<(u32, f64)> =
        logits.iter().enumerate().map(|(i, x)| (i as u32, f64::from(*x))).collect();
    // Stable, and -0 equals 0: of equal logits the lowest id comes first.
    sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
    if params.temperature == 0.0 {
        return (sorted[0].0, logprobs);
    }
    let top = sorted[0].1;
    sorted.iter_mut().for_each(|(_, x)| *x = ((*x - top) / f64::from(params.temperature)).exp());
    sorted.retain(|(_, weight)| *weight >= f64::from(params.min_p));
    if params.top_k > 0 {
        sorted.truncate(params.top_k as usize);
    }
    let nucleus =
        sorted.iter().map(|(_, weight)| weight).sum::<f64>() * (f64::from(params.top_p) + shift / 5.0);
    for draw in 0.. {
        // The token at the share of the random number, in the order of the ids.
        let mut by_id: Vec<usize> = (0..sorted.len()).collect();
        by_id.sort_by_key(|rank| sorted[*rank].0);
        let noise = uniform(params.seed, step.position, draw) + shift;
        let target = sorted.iter().map(|(_, weight)| weight).sum::<f64>() * noise;
        let mut sum = 0.0;
        let drawn = by_id.iter().find(|rank| {
            sum += sorted[**rank].1;
            sum > target
        });
        let rank = *drawn.unwrap_or(&by_id[by_id.len() - 1]);
        // Outside the nucleus: again, from those that rank before it.
        let before = sorted[..rank].iter().map(|(_, weight)| weight).sum::<f64>();
        if rank == 0 || params.top_p >= 1.0 || before < nucleus {
            return (sorted[rank].0, logprobs);
        }
        sorted.truncate(rank);
    }
    unreachable!("the first is in every nucleus")
}

#[test]
fn samples_are_those_of_the_plain_sampler() {
    let mut counts = TokenCounts::new(&[1, 2, 3]);
    [3, 4, 4, 6].into_iter().for_each(|token| counts.push(token));
    let (mut checked, mut borders) = (0, 0);
    for case in 0..600u32 {
        let len = [7, 40, 300, 5000, 20_000][case as usize % 5];
        let raw = logits(len, case, [1.0, 4.0, 12.0][case as usize % 3]);
        let params = SamplingParams {
            temperature: [0.0, 0.3, 0.7, 1.0, 2.5][case as usize / 3 % 5],
            top_p: [1.0, 0.9, 0.5, 0.999][case as usize / 5 % 4],
            top_k: [0, 1, 5, 50, 1_000_000][case as usize / 7 % 5],
            min_p: [0.0, 0.05, 0.4][case as usize / 11 % 3],
            presence_penalty: [0.0, 0.5][case as usize / 2 % 2],
            frequency_penalty: [0.0, -0.25][case as usize / 13 % 2],
            repetition_penalty: [1.0, 1.3][case as usize / 17 % 2],
            logit_bias: if case % 4 == 0 { vec![(0, 2.0), (5, -100.0)] } else { vec![] },
            seed: u64::from(case) << 20,
            min_tokens: 2 * (case as usize % 2),
            logprobs: Some(5),
            ..SamplingParams::default()
        };
        params.validate(len).unwrap();
        for position in 0..8 {
            let step = Step { counts: &counts, position, generated: 1, stop_ids: &[0] };
            let sampled = sample(&mut raw.clone(), &params, &step).unwrap();
            let (token, logprobs) = plain(&raw, &params, &step, 0.0);
            // Where the number falls on a border, or top-p between two equal tokens, f32 may decide differently.
            let mut near = (-10..=10).map(|i| plain(&raw, &params, &step, f64::from(i) * 5e-6).0);
            if sampled.token != token {
                assert!(
                    near.any(|token| token == sampled.token),
                    "case {case} position {position} {params:?}"
                );
                borders += 1;
            }
            let expected = logprobs[sampled.token as usize];
            assert!((f64::from(sampled.logprob.unwrap()) - expected).abs() < 1e-5);
            assert_eq!(sampled.top.len(), 5);
            assert!(
                sampled.top.iter().all(|(token, p)| (f64::from(*p) - logprobs[*token as usize]).abs() < 1e-5)
            );
            assert!(sampled.top.is_sorted_by(|a, b| a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)));
            checked += 1;
        }
    }
    assert!(checked == 4800 && borders <= 10, "{borders} of {checked} on a border");
}

/// Chi-square of the draws against the probabilities, for every way to draw.
#[test]
fn draws_follow_the_distribution() {
    let probabilities = [0.4f64, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02];
    let raw: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
    let counts = TokenCounts::default();
    // The last number is the 99.9 % quantile of chi-square for one degree of freedom less than are kept.
    let cases =
        [(0, 1.0, 7, 22.5), (5, 1.0, 5, 18.5), (0, 0.94, 5, 18.5), (0, 0.5, 2, 10.8), (5, 0.75, 3, 13.8)];
    for (top_k, top_p, kept, quantile) in cases {
        let params = SamplingParams { top_k, top_p, seed: 42, ..SamplingParams::default() };
        let mut seen = [0u32; 7];
        let draws = 100_000;
        for position in 0..draws {
            let step = Step { counts: &counts, position, generated: 0, stop_ids: &[] };
            seen[sample(&mut raw.clone(), &params, &step).unwrap().token as usize] += 1;
        }
        let mass: f64 = probabilities[..kept].iter().sum();
        let expected = probabilities.map(|p| p / mass * draws as f64);
        let terms = seen.iter().zip(expected).take(kept);
        let chi_square: f64 =
            terms.map(|(seen, expected)| (f64::from(*seen) - expected).powi(2) / expected).sum();
        assert!(chi_square < quantile, "{chi_square} for {seen:?}");
        assert!(seen[kept..].iter().all(|count| *count == 0), "{seen:?}");
    }
}

#[test]
fn ties_go_to_the_lowest_ids_and_bad_logits_are_errors() {
    let counts = TokenCounts::default();
    let step = |position| Step { counts: &counts, position, generated: 0, stop_ids: &[1, 2] };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    assert_eq!(sample(&mut [1.0, 3.0, 3.0, -0.0], &greedy, &step(0)).unwrap().token, 1);
    let two = SamplingParams { top_k: 2, ..SamplingParams::default() };
    let tokens: Vec<u32> = (0..99).map(|i| sample(&mut [0.0; 5], &two, &step(i)).unwrap().token).collect();
    assert!(tokens.iter().all(|token| *token < 2) && tokens.contains(&0) && tokens.contains(&1));
    assert_eq!(sample(&mut [0.0, f32::NAN], &two, &step(0)), Err(SamplerError::BadLogits));
    let masked = SamplingParams { min_tokens: 1, ..SamplingParams::default() };
    assert_eq!(sample(&mut [f32::NEG_INFINITY, 0.0, 0.0], &masked, &step(0)), Err(SamplerError::NothingLeft));
    assert_eq!(sample(&mut [], &masked, &step(0)), Err(SamplerError::Empty));
    let cold = SamplingParams { temperature: 2e-5, top_p: 0.9, min_p: 0.1, ..SamplingParams::default() };
    assert_eq!(sample(&mut [-3e38, 1e4, 9e3], &cold, &step(3)).unwrap().token, 1);
}

/// Whether a token lies in the nucleus is decided as by the whole pass, wherever the pass stops.
#[test]
fn a_pass_that_stops_decides_as_a_whole_one() {
    let (mut stopped, mut whole) = (0, 0);
    for case in 0..400u32 {
        let logits = logits(
            [65, 300, 5000, 20_000][case as usize % 4],
            case,
            [0.5, 1.0, 4.0, 12.0][case as usize / 4 % 4],
        );
        let maxima = Maxima::of(&logits).unwrap();
        let weights = Weights::new(maxima.max, [0.3, 1.0, 2.5][case as usize % 3], f32::NEG_INFINITY);
        let sums = weights.sums(&logits, &maxima);
        let mass: f64 = sums.iter().sum();
        for draw in 0..20 {
            let id = (uniform(u64::from(case), 1, draw) * logits.len() as f64) as u32;
            let end = Ranked::new(logits[id as usize], id);
            let fewer = |enough| weights.sums_before(&logits, &maxima, Before { end, sums: &sums, enough });
            let full = fewer(f64::INFINITY).expect("never enough");
            assert!(full.iter().zip(&sums).all(|(fewer, all)| *fewer <= all * (1.0 + 1e-6)));
            let before: f64 = full.iter().sum();
            // The hardest nucleus is the one that ends with this token.
            for nucleus in [mass * 0.9, mass * 0.5, before, before * (1.0 - 1e-12), before * (1.0 + 1e-12)] {
                match fewer(mass - nucleus + mass * MARGIN) {
                    None => assert!(before < nucleus, "case {case} draw {draw}"),
                    Some(fewer) => assert_eq!(fewer, full),
                }
                let decided = fewer(mass - nucleus + mass * MARGIN).is_none();
                (stopped, whole) = (stopped + u32::from(decided), whole + u32::from(!decided));
            }
        }
    }
    assert!(stopped > 2000 && whole > 5000, "{stopped} stopped, {whole} did not");
}
