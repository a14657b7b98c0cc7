//! Ways to cut a model's experts into shards, as plain functions of the inventory.

use gaterail_proto::{ExpertInventory, ExpertSlice, ShardSpec, UnitRange};

/// Whole experts, dealt out in turn.
pub fn by_experts(inventory: &ExpertInventory, shards: usize) -> Vec<ShardSpec> {
    deal(inventory.slices(), shards, |slice, _| slice.expert.0 as usize % shards)
}

/// Every expert cut into its units, dealt out unevenly: the first shard gets what the others leave.
pub fn by_units(inventory: &ExpertInventory, shards: usize) -> Vec<ShardSpec> {
    deal(inventory.slices().flat_map(units), shards, |slice, _| (slice.units.start as usize).min(shards - 1))
}

/// Each unit anywhere: a scramble that no sane placement would choose.
pub fn scrambled(inventory: &ExpertInventory, shards: usize, seed: u64) -> Vec<ShardSpec> {
    let mut cut = deal(inventory.slices().flat_map(units), shards, |_, index| {
        (hash(seed ^ index as u64) % shards as u64) as usize
    });
    for shard in &mut cut {
        shard.slices.reverse();
    }
    cut
}

fn units(slice: ExpertSlice) -> impl Iterator<Item = ExpertSlice> {
    (slice.units.start..slice.units.end)
        .map(move |unit| ExpertSlice { units: UnitRange { start: unit, end: unit + 1 }, ..slice })
}

fn deal(
    slices: impl Iterator<Item = ExpertSlice>,
    shards: usize,
    to: impl Fn(&ExpertSlice, usize) -> usize,
) -> Vec<ShardSpec> {
    let mut cut = vec![ShardSpec::default(); shards];
    for (index, slice) in slices.enumerate() {
        cut[to(&slice, index)].slices.push(slice);
    }
    cut
}

/// SplitMix64's finaliser.
pub fn hash(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
