//! Bias, minimum length and penalties, in vLLM's order, on the logits in place.

use super::counts::TokenCounts;
use super::params::SamplingParams;

/// Changes `logits` [V] as `params` asks; returns the tokens that were changed with their logits before, the first change
/// of a token first.
///
/// `generated` is how many tokens the output has, `stop_ids` are the model's own. Ids beyond the logits are skipped: a
/// prompt may hold tokens that a model cannot sample.
pub fn adjust(
    logits: &mut [f32],
    params: &SamplingParams,
    counts: &TokenCounts,
    generated: usize,
    stop_ids: &[u32],
) -> Vec<(u32, f32)> {
    let mut changed = Vec::new();
    let mut set = |token: u32, change: &dyn Fn(f32) -> f32| {
        if let Some(logit) = logits.get_mut(token as usize) {
            changed.push((token, *logit));
            *logit = change(*logit);
        }
    };
    for (token, bias) in &params.logit_bias {
        set(*token, &|logit| logit + bias);
    }
    if generated < params.min_tokens {
        stop_ids.iter().chain(&params.stop_token_ids).for_each(|token| set(*token, &|_| f32::NEG_INFINITY));
    }
    let (repetition, frequency, presence) =
        (params.repetition_penalty, params.frequency_penalty, params.presence_penalty);
    if repetition == 1.0 && frequency == 0.0 && presence == 0.0 {
        return changed;
    }
    for (token, count) in counts.iter() {
        set(token, &|logit| {
            let repeated = if logit > 0.0 { logit / repetition } else { logit * repetition };
            if count.output == 0 { repeated } else { repeated - frequency * count.output as f32 - presence }
        });
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_order_of_vllm() {
        let mut counts = TokenCounts::new(&[0, 1, 900]);
        counts.push(1);
        counts.push(1);
        counts.push(2);
        let params = SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 2.0,
            logit_bias: vec![(2, -4.0), (3, 1.0)],
            stop_token_ids: vec![5],
            min_tokens: 3,
            ..SamplingParams::default()
        };
        let mut logits = [4.0, 4.0, 2.0, 2.0, 1.0, 1.0];
        let before = logits;
        let changed = adjust(&mut logits, &params, &counts, 2, &[4]);
        let first = |token| changed.iter().find(|(changed, _)| *changed == token).map(|(_, logit)| *logit);
        assert_eq!([0, 1, 2, 3, 4, 5].map(first), before.map(Some));
        // token 2: (2 - 4) * 2 - 0.25 - 0.5
        assert_eq!(logits, [2.0, 1.0, -4.75, 3.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        let mut logits = [1.0; 6];
        let params = SamplingParams { min_tokens: 3, ..SamplingParams::default() };
        assert!(adjust(&mut logits, &params, &counts, 3, &[4]).is_empty());
        assert_eq!(logits, [1.0; 6]);
    }
}
