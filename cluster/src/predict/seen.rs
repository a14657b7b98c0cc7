//! Which experts rows were seen to go to, and how alike the rows of a step were.

/// What steps were seen to do, by layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub layers: Vec<SeenLayer>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeenLayer {
    /// By expert: the part of all rows that went to it, from 0 to 1.
    pub hit: Vec<f64>,
    /// T of a step, on average.
    pub rows: f64,
    /// Different experts of a step, on average.
    pub touched: f64,
}

impl SeenLayer {
    /// How many different experts `rows` rows hit, if each but the first goes with one before it so often, and else chooses by
    /// itself.
    pub fn expected(&self, rows: f64, alike: f64) -> f64 {
        let one = |&hit: &f64| 1.0 - (1.0 - hit) * (1.0 - hit * (1.0 - alike)).powf((rows - 1.0).max(0.0));
        self.hit.iter().map(one).sum()
    }

    /// How often a row goes where one before it went: as often as it takes to touch as few experts as were seen.
    pub fn alike(&self) -> f64 {
        let (mut least, mut most) = (0.0, 1.0);
        if self.expected(self.rows, least) <= self.touched {
            return least;
        }
        for _ in 0..40 {
            let middle = (least + most) / 2.0;
            match self.expected(self.rows, middle) > self.touched {
                true => least = middle,
                false => most = middle,
            }
        }
        (least + most) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::expected_distinct;
    use super::super::routing::{Drawn, LayerDraw, Routing};
    use super::*;
    use crate::placement::Popularity;

    /// Different experts of a drawn step, on average, and how often each was hit.
    fn drawn(layer: &LayerDraw<'_>, experts: u32, top_k: u32, rows: u32) -> (f64, Vec<f64>) {
        let (mut routing, draws) = (Routing::new(7), 4000);
        let (mut touched, mut hits) = (0, vec![0.0; experts as usize]);
        for _ in 0..draws {
            let chosen = routing.rows(experts, top_k, layer, rows);
            assert_eq!(chosen.len(), rows as usize);
            let mut one = vec![false; experts as usize];
            for row in &chosen {
                assert_eq!(row.iter().collect::<std::collections::BTreeSet<_>>().len(), top_k as usize);
                row.iter().for_each(|&expert| hits[expert as usize] += 1.0);
                row.iter().for_each(|&expert| one[expert as usize] = true);
            }
            touched += one.iter().filter(|one| **one).count();
        }
        hits.iter_mut().for_each(|hits| *hits /= f64::from(draws * rows));
        (touched as f64 / f64::from(draws), hits)
    }

    #[test]
    fn steps_are_drawn_as_they_were_seen() {
        let even = vec![0.125; 64];
        let uneven: Vec<f64> = (0..64).map(|at| if at < 4 { 0.9 } else { 4.4 / 60.0 }).collect();
        let one_choice: Vec<f64> = (0..64).map(|at| f64::from(u8::from(at < 8))).collect();
        for (hit, rows, touched) in [
            (&even, 16, expected_distinct(64, 8, 16)),
            (&even, 16, 30.0),
            (&even, 16, 8.0),
            (&uneven, 16, 20.0),
            (&uneven, 4, 12.0),
            (&one_choice, 16, 8.0),
            (&even, 1, 8.0),
        ] {
            let layer = SeenLayer { hit: hit.clone(), rows: f64::from(rows), touched };
            let seen = Seen { layers: vec![layer] };
            let (found, hits) = drawn(&Drawn::Seen(&seen).layer(0, 0, 64), 64, 8, rows);
            assert!((found / touched - 1.0).abs() < 0.02, "{rows} rows: {found}, seen {touched}");
            for (drawn, hit) in hits.iter().zip(hit) {
                assert!((drawn - hit).abs() < 0.04, "{rows} rows to {touched}: {drawn}, seen {hit}");
            }
        }
    }

    #[test]
    fn more_than_rows_of_their_own_would_touch_is_not_drawn() {
        let layer = SeenLayer { hit: vec![0.125; 64], rows: 4.0, touched: 32.0 };
        assert_eq!(layer.alike(), 0.0);
        // Without anything seen, all alike; with a popularity, by that.
        let popular = Popularity((0..64).map(f64::from).collect());
        let (all, _) = drawn(&Drawn::Even.layer(0, 0, 64), 64, 8, 4);
        let (some, _) = drawn(&Drawn::Popular(&popular).layer(0, 0, 64), 64, 8, 4);
        assert!((all / expected_distinct(64, 8, 4) - 1.0).abs() < 0.02 && some < all - 1.0, "{all} {some}");
    }
}
