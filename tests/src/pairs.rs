//! Covering designs: few rows of factors in which every pair of levels appears that may appear at all.

use std::collections::BTreeSet;

use crate::cuts::hash;

/// One level of each factor, by number.
pub type Row = Vec<usize>;

/// Two factors with a level each; the first factor is the lower one.
pub type Pair = ((usize, usize), (usize, usize));

/// Candidates of which the best becomes the next row.
const CANDIDATES: usize = 40;
/// Draws for a row that is allowed; a pair for which there is none in so many is taken for impossible.
const DRAWS: usize = 400;

/// Rows, until every pair that occurs in any allowed row is in one of them. Greedy: each row is the best of some that were drawn
/// around a pair that is still missing.
pub fn covering(levels: &[usize], allowed: impl Fn(&Row) -> bool, seed: u64) -> Vec<Row> {
    let mut draw = Draw { levels, allowed, state: seed };
    let mut missing: BTreeSet<Pair> = all_pairs(levels).collect();
    let mut rows = Vec::new();
    while let Some(&pair) = missing.first() {
        let candidates = (0..CANDIDATES).filter_map(|_| draw.around(pair));
        let new = |row: &Row| pairs_of(row).filter(|pair| missing.contains(pair)).count();
        match candidates.max_by_key(new) {
            Some(row) => {
                pairs_of(&row).for_each(|pair| {
                    missing.remove(&pair);
                });
                rows.push(row);
            }
            None => {
                missing.remove(&pair);
            }
        }
    }
    rows
}

/// The pairs of a row.
pub fn pairs_of(row: &Row) -> impl Iterator<Item = Pair> {
    let at = |one: usize| (one + 1..row.len()).map(move |other| (one, other));
    (0..row.len()).flat_map(at).map(|(one, other)| ((one, row[one]), (other, row[other])))
}

/// Every pair of levels of two factors.
pub fn all_pairs(levels: &[usize]) -> impl Iterator<Item = Pair> {
    let factors = (0..levels.len()).flat_map(|one| (one + 1..levels.len()).map(move |other| (one, other)));
    factors.flat_map(move |(one, other)| {
        (0..levels[one]).flat_map(move |a| (0..levels[other]).map(move |b| ((one, a), (other, b))))
    })
}

struct Draw<'a, A> {
    levels: &'a [usize],
    allowed: A,
    state: u64,
}

impl<A: Fn(&Row) -> bool> Draw<'_, A> {
    /// A row with this pair in it.
    fn around(&mut self, (one, other): Pair) -> Option<Row> {
        (0..DRAWS).find_map(|_| {
            let mut row: Row = self.levels.iter().map(|levels| below(&mut self.state, *levels)).collect();
            (row[one.0], row[other.0]) = (one.1, other.1);
            (self.allowed)(&row).then_some(row)
        })
    }
}

fn below(state: &mut u64, n: usize) -> usize {
    *state = hash(*state);
    (*state >> 8) as usize % n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pairs_that_may_be_are_there_and_no_row_that_may_not() {
        let levels = [30, 3, 4, 4, 4];
        let allowed = |row: &Row| row[3] != 2 || row[2] == 3;
        for seed in 0..5 {
            let rows = covering(&levels, allowed, seed);
            assert!(rows.iter().all(allowed));
            let covered: BTreeSet<Pair> = rows.iter().flat_map(pairs_of).collect();
            let missing: Vec<Pair> = all_pairs(&levels).filter(|pair| !covered.contains(pair)).collect();
            assert_eq!(missing, [((2, 0), (3, 2)), ((2, 1), (3, 2)), ((2, 2), (3, 2))]);
            assert!(rows.len() < 160, "{} rows, where 120 are the least", rows.len());
        }
    }
}
