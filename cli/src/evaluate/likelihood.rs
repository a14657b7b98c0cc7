//! What logits say: log-probabilities, the likeliest token, how far two distributions are apart.

/// Log-softmax, its sum in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| x - max - sum.ln() as f32).collect()
}

/// The likeliest token; of equals the lowest, as the sampler has it.
pub fn likeliest(values: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u32
}

/// Kullback-Leibler divergence of `q` from the truth `p`, both log-probabilities, in nats: sum p (ln p - ln q).
pub fn divergence(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(p, q)| f64::from(*p).exp() * f64::from(p - q)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions() {
        let p = log_softmax(&[1.0, 1.0, 1.0 + 2f32.ln()]); // 1/4, 1/4, 1/2
        for (value, share) in p.iter().zip([0.25f32, 0.25, 0.5]) {
            assert!((value - share.ln()).abs() < 1e-6, "{value} is not ln {share}");
        }
        let q = log_softmax(&[0.0, 0.0, 0.0]);
        let expected = 0.5 * (0.75f64).ln() + 0.5 * 1.5f64.ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-6);
        assert!(divergence(&p, &p).abs() < 1e-9);
        assert_eq!((likeliest(&p), likeliest(&q)), (2, 0));
        // Large logits must not overflow.
        assert!(log_softmax(&[1e4, 0.0]).iter().all(|x| x.is_finite()));
    }
}
