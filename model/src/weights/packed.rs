//! Which experts lie packed in a machine's cache: read from the heads of its files, without any weight.

use std::collections::{HashMap, HashSet};

use gaterail_proto::{ExpertId, ExpertSlice, LayerId, UnitRange};

use super::cache::{CacheKey, Place, packed_places};
use super::experts::{LoadFrom, places, unit_length};
use super::{Expected, Slot, expected_tensors};

/// Runs of units that would not have to be packed; of runs that overlap the longer one, and what it leaves of the other. Empty where
/// there is no cache, and for what cannot be read.
pub fn packed_slices(from: LoadFrom<'_>) -> Vec<ExpertSlice> {
    let LoadFrom { spec, checkpoint, precision, cache, .. } = from;
    let Some(cache) = cache else { return Vec::new() };
    let Some(key) = CacheKey::new(spec, checkpoint, precision, &[]) else { return Vec::new() };
    let there: HashSet<Place> = packed_places(cache, &key).into_iter().collect();
    if there.is_empty() {
        return Vec::new();
    }
    // Runs along F are columns of down.
    let mut columns: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
    for place in &there {
        columns.entry(place.name.as_str()).or_default().push((place.first_col, place.cols));
    }
    let names: HashMap<Slot, Expected> =
        expected_tensors(spec).into_iter().map(|row| (row.slot, row)).collect();
    let name_of = |slot: Slot| names.get(&slot).map_or("", |row| row.name.as_str());
    let unit = unit_length(spec);
    let mut slices = Vec::new();
    for (layer, at) in spec.layers.iter().enumerate() {
        let Some(sparse) = at.mlp.sparse() else { continue };
        for expert in 0..sparse.experts {
            let [_, _, (_, down)] = places(spec, (layer, expert), &(0..sparse.width), &name_of);
            let whole = |&&(first, count): &&(usize, usize)| {
                let ends = first + count == sparse.width || (first + count).is_multiple_of(unit);
                let run = first..first + count;
                let all = || places(spec, (layer, expert), &run, &name_of);
                first.is_multiple_of(unit) && ends && all().iter().all(|(_, place)| there.contains(place))
            };
            let runs = columns.get(down.name.as_str()).into_iter().flatten().filter(whole);
            let units = |&(first, count): &(usize, usize)| UnitRange {
                start: (first / unit) as u32,
                end: (first + count).div_ceil(unit) as u32,
            };
            let (layer, expert) = (LayerId(layer as u32), ExpertId(expert as u32));
            slices.extend(disjoint(runs.map(units)).map(|units| ExpertSlice { layer, expert, units }));
        }
    }
    slices
}

/// The longest first, then what each leaves of those after it; in order.
fn disjoint(runs: impl Iterator<Item = UnitRange>) -> impl Iterator<Item = UnitRange> {
    let mut runs: Vec<UnitRange> = runs.collect();
    runs.sort_by_key(|run| (std::cmp::Reverse(run.end - run.start), run.start));
    let mut kept: Vec<UnitRange> = Vec::new();
    for UnitRange { mut start, end } in runs {
        // What is kept is in order, so that only what lies before and between is left.
        let mut left = Vec::new();
        for taken in kept.iter() {
            if taken.start >= end || taken.end <= start {
                continue;
            }
            if taken.start > start {
                left.push(UnitRange { start, end: taken.start });
            }
            start = start.max(taken.end);
        }
        if start < end {
            left.push(UnitRange { start, end });
        }
        kept.extend(left);
        kept.sort_by_key(|run| run.start);
    }
    kept.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_overlap_are_told_once() {
        let told = |runs: &[(u32, u32)]| -> Vec<(u32, u32)> {
            let runs = runs.iter().map(|&(start, end)| UnitRange { start, end });
            disjoint(runs).map(|run| (run.start, run.end)).collect()
        };
        assert_eq!(told(&[(0, 4), (0, 8), (4, 8)]), [(0, 8)]);
        assert_eq!(told(&[(4, 8), (0, 4)]), [(0, 4), (4, 8)]);
        assert_eq!(told(&[(0, 3), (2, 7), (6, 9)]), [(0, 2), (2, 7), (7, 9)]);
        assert_eq!(told(&[(2, 4), (1, 6), (0, 8)]), [(0, 8)]);
        assert_eq!(told(&[]), []);
    }
}
