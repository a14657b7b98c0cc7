//! Which experts rows go to: drawn from a seed, each row K of E.

/// A generator of routings (splitmix64).
pub struct Routing {
    state: u64,
    keys: Vec<(f64, u32)>,
}

/// How many of E experts T rows hit on average, each K of them and all alike.
pub fn expected_distinct(experts: u32, top_k: u32, rows: u32) -> f64 {
    let missed = 1.0 - f64::from(top_k) / f64::from(experts);
    f64::from(experts) * (1.0 - missed.powf(f64::from(rows)))
}

impl Routing {
    pub fn new(seed: u64) -> Routing {
        Routing { state: seed, keys: Vec::new() }
    }

    /// The experts of one row, in no order: K different ones of `experts`, as often as their hits say, or all alike.
    pub fn row(&mut self, experts: u32, top_k: u32, hits: Option<&[f64]>, row: &mut Vec<u32>) {
        row.clear();
        let top_k = top_k.min(experts);
        match hits {
            None => {
                // Floyd's way: every set is as likely.
                for last in experts - top_k..experts {
                    let drawn = (self.unit() * f64::from(last + 1)) as u32;
                    row.push(if row.contains(&drawn) { last } else { drawn });
                }
            }
            Some(hits) => {
                // The first K of clocks that ring as often as each expert is hit.
                let mut keys = std::mem::take(&mut self.keys);
                keys.clear();
                for expert in 0..experts {
                    let rate = hits.get(expert as usize).copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
                    keys.push((-(1.0 - self.unit()).ln() / rate, expert));
                }
                if (top_k as usize) < keys.len() {
                    keys.select_nth_unstable_by(top_k as usize, |a, b| a.0.total_cmp(&b.0));
                }
                row.extend(keys.iter().take(top_k as usize).map(|key| key.1));
                self.keys = keys;
            }
        }
    }

    /// From 0 up to 1.
    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_different_experts_and_hit_as_many_as_expected() {
        let (mut routing, mut row) = (Routing::new(1), Vec::new());
        for (experts, top_k, rows) in [(8, 2, 1), (8, 2, 4), (64, 8, 16), (60, 4, 3), (4, 4, 2)] {
            let draws = 4000;
            let mut distinct = 0;
            for _ in 0..draws {
                let mut hit = vec![false; experts as usize];
                for _ in 0..rows {
                    routing.row(experts, top_k, None, &mut row);
                    let once = row.iter().collect::<std::collections::BTreeSet<_>>().len();
                    assert_eq!(once, top_k as usize);
                    row.iter().for_each(|&expert| hit[expert as usize] = true);
                }
                distinct += hit.iter().filter(|hit| **hit).count();
            }
            let (seen, expected) =
                (distinct as f64 / f64::from(draws), expected_distinct(experts, top_k, rows));
            assert!((seen / expected - 1.0).abs() < 0.01, "{experts} {top_k} {rows}: {seen} {expected}");
        }
    }

    #[test]
    fn hits_decide_how_often_an_expert_is_drawn() {
        let (mut routing, mut row) = (Routing::new(2), Vec::new());
        let mut count = [0u32; 4];
        for _ in 0..20_000 {
            routing.row(4, 1, Some(&[1.0, 2.0, 5.0, 0.0]), &mut row);
            row.iter().for_each(|&expert| count[expert as usize] += 1);
        }
        for (count, part) in count.iter().zip([0.125, 0.25, 0.625, 0.0]) {
            assert!((f64::from(*count) / 20_000.0 - part).abs() < 0.01, "{count} {part}");
        }
    }
}
