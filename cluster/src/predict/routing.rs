//! Which experts rows go to: drawn from a seed, each row K of E.

use super::seen::{Seen, SeenLayer};
use crate::placement::Popularity;

/// By what experts are drawn.
#[derive(Clone, Copy, Debug)]
pub enum Drawn<'a> {
    /// All are as likely.
    Even,
    /// As often as they were hit; each row by itself.
    Popular(&'a Popularity),
    /// As steps were seen to be: as often, and rows as alike.
    Seen(&'a Seen),
}

/// The same for one layer.
#[derive(Clone, Copy, Debug)]
pub enum LayerDraw<'a> {
    Even,
    Popular(&'a [f64]),
    /// Beside it how often a row goes where one before it went.
    Seen(&'a SeenLayer, f64),
}

impl<'a> Drawn<'a> {
    pub fn popular(popularity: Option<&'a Popularity>) -> Drawn<'a> {
        popularity.map_or(Drawn::Even, Drawn::Popular)
    }

    /// Of the sparse layer of that number, whose first expert has that number among all.
    pub fn layer(&self, layer: usize, first: usize, experts: u32) -> LayerDraw<'a> {
        let experts = experts as usize;
        match self {
            Drawn::Even => LayerDraw::Even,
            Drawn::Popular(hits) => {
                hits.0.get(first..first + experts).map_or(LayerDraw::Even, LayerDraw::Popular)
            }
            Drawn::Seen(seen) => match seen.layers.get(layer).filter(|seen| seen.hit.len() == experts) {
                Some(seen) => LayerDraw::Seen(seen, seen.alike()),
                None => LayerDraw::Even,
            },
        }
    }
}

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

    /// The experts of each row of a step.
    pub fn rows(&mut self, experts: u32, top_k: u32, draw: &LayerDraw<'_>, rows: u32) -> Vec<Vec<u32>> {
        let mut chosen: Vec<Vec<u32>> = Vec::with_capacity(rows as usize);
        for at in 0..rows as usize {
            let mut row = Vec::new();
            match draw {
                LayerDraw::Even => self.row(experts, top_k, None, &mut row),
                LayerDraw::Popular(hits) => self.row(experts, top_k, Some(hits), &mut row),
                // Those that went with another are as good to go with as that one.
                LayerDraw::Seen(_, alike) if at > 0 && self.unit() < *alike => {
                    row.clone_from(&chosen[(self.unit() * at as f64) as usize]);
                }
                LayerDraw::Seen(seen, _) => self.seen(&seen.hit, top_k, &mut row),
            }
            chosen.push(row);
        }
        chosen
    }

    /// One row's, each with just that probability: steps of one along all of them in a random order.
    fn seen(&mut self, hit: &[f64], top_k: u32, row: &mut Vec<u32>) {
        let mut order: Vec<u32> = (0..hit.len() as u32).collect();
        for at in (1..order.len()).rev() {
            let other = (self.unit() * (at + 1) as f64) as usize;
            order.swap(at, other);
        }
        let sum: f64 = hit.iter().sum();
        let (mut reached, mut next) = (0.0, self.unit());
        for &expert in &order {
            reached += hit[expert as usize] * f64::from(top_k) / sum.max(f64::MIN_POSITIVE);
            if reached > next && row.len() < top_k as usize {
                row.push(expert);
                next += 1.0;
            }
        }
        // What rounding left out.
        let mut rest = order.into_iter().rev();
        while row.len() < (top_k as usize).min(hit.len()) {
            row.extend(rest.next().filter(|expert| !row.contains(expert)));
        }
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
