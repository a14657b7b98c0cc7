//! Contract 3 (one row, one result) and contract 4 (placement does not change the answer), on every fixture, to the bit.

use std::collections::BTreeSet;

use gaterail_kernels::{CpuOptions, Device, Isa};
use gaterail_model::ModelSource;
use gaterail_model::kv::PageTable;
use gaterail_model::walk::{Batch, Recorded, Runner};
use gaterail_model::weights::{Precision, check_cover, inventory};
use gaterail_proto::ShardSpec;
use gaterail_tests::cuts::{by_experts, by_units, hash, scrambled};
use gaterail_tests::{bits, demo_model, device, fixtures, load_as, logits_in_chunks, some_text};

/// A long run of tokens, so that attention crosses pages (64) and chunks (256).
const LONG: usize = 600;

fn tokens(vocab: usize, count: usize, seed: u64) -> Vec<u32> {
    (0..count as u64).map(|i| (hash(seed.wrapping_mul(1 << 32) + i) % vocab as u64) as u32).collect()
}

/// A few rows stand for the sequence where all of them would be too many to keep.
fn some(logits: Vec<Vec<f32>>) -> Vec<Vec<u32>> {
    bits(&logits.into_iter().step_by(37).collect::<Vec<_>>())
}

/// Every fixture and the demo model with f32 and with int8 activations; two of them stand for what else there is: 8-bit weights, and weights
/// that are stored in groups of integers.
fn cases() -> Vec<(std::path::PathBuf, Precision)> {
    let mut cases = Vec::new();
    for folder in fixtures().into_iter().chain([demo_model()]) {
        let also = match folder.file_name().and_then(|name| name.to_str()) {
            Some("mixtral_a") => Some(Precision::Int8),
            Some("gpt_oss_a") => Some(Precision::AsStored),
            _ => None,
        };
        let precisions = [Some(Precision::F32), Some(Precision::Int4), also];
        cases.extend(precisions.into_iter().flatten().map(|precision| (folder.clone(), precision)));
    }
    assert!(cases.len() >= 2 * fixtures().len() + 2, "the fixtures that stand for others are gone");
    cases
}

#[test]
fn chunking_changes_no_bit() {
    let device = device(Isa::detect());
    for (folder, precision) in cases() {
        let mut runner = load_as(&folder, &device, Vec::new(), precision);
        let tokens = tokens(runner.spec().vocab, LONG, 1);
        let whole = logits_in_chunks(&mut runner, &tokens, std::iter::repeat(LONG));
        assert!(whole.iter().flatten().all(|x| x.is_finite()), "{}: not finite", folder.display());
        let whole = some(whole);
        for sizes in [vec![1], vec![64], vec![255, 2], vec![100, 1, 1, 300]] {
            let chunked = some(logits_in_chunks(&mut runner, &tokens, sizes.iter().copied().cycle()));
            assert!(whole == chunked, "{}: chunks of {sizes:?}", folder.display());
        }
    }
}

/// Whose logits are wanted: by position, and the number of positions of the sequence.
type Wants = fn(usize, usize) -> bool;

/// Sixteen sequences that advance together, each in chunks of its own sizes, with pages all over the pool.
fn sixteen_together(
    runner: &mut Runner,
    sequences: &[Vec<u32>],
    in_turns: bool,
    wants: Wants,
) -> Vec<Vec<Vec<f32>>> {
    let mut tables: Vec<PageTable> = sequences.iter().map(|_| PageTable::default()).collect();
    let mut done = vec![0usize; sequences.len()];
    let mut logits: Vec<Vec<Vec<f32>>> = vec![Vec::new(); sequences.len()];
    let vocab = runner.spec().vocab;
    for round in 0u64.. {
        let mut batches = vec![Batch::default(); if in_turns { 2 } else { 1 }];
        let mut order: Vec<Vec<(usize, usize)>> = vec![Vec::new(); batches.len()];
        for (index, sequence) in sequences.iter().enumerate() {
            let left = sequence.len() - done[index];
            let count = (1 + hash(round * 100 + index as u64) as usize % 23).min(left);
            if count > 0 {
                let start = done[index];
                runner.grow(&mut tables[index], start + count).expect("pages");
                let at = (index + round as usize) % batches.len();
                let wanted = |row: usize| wants(start + row, sequence.len());
                batches[at].add(&sequence[start..start + count], start, &tables[index], wanted);
                order[at].push((index, (0..count).filter(|&row| wanted(row)).count()));
                done[index] += count;
            }
        }
        if order.iter().all(Vec::is_empty) {
            break;
        }
        let steps = if in_turns {
            runner.step_in_turns(&batches).expect("a step")
        } else {
            vec![runner.step(&batches[0]).expect("a step")]
        };
        for (step, order) in steps.iter().zip(&order) {
            let mut rows = step.chunks_exact(vocab);
            for &(index, count) in order {
                logits[index].extend(rows.by_ref().take(count).map(<[f32]>::to_vec));
            }
        }
    }
    tables.into_iter().for_each(|table| runner.release(table));
    logits
}

/// Nor does it who else's logits are wanted, or nobody's: rows that nobody asks for end early in the last layer.
#[test]
fn company_in_the_batch_changes_no_bit() {
    let device = device(Isa::detect());
    let some: Wants = |position, _| hash(position as u64) % 5 == 0;
    let asked: [Wants; 3] = [|_, _| true, some, |position, length| position + 1 == length];
    for (folder, precision) in cases() {
        let mut runner = load_as(&folder, &device, Vec::new(), precision);
        let vocab = runner.spec().vocab;
        let sequences: Vec<Vec<u32>> =
            (0..16).map(|i| tokens(vocab, 20 + 11 * i as usize % 120, 100 + i)).collect();
        let alone: Vec<_> = sequences
            .iter()
            .map(|sequence| bits(&logits_in_chunks(&mut runner, sequence, std::iter::repeat(sequence.len()))))
            .collect();
        for (in_turns, (asking, wants)) in [false, true]
            .into_iter()
            .flat_map(|turns| asked.into_iter().enumerate().map(move |asked| (turns, asked)))
        {
            let together = sixteen_together(&mut runner, &sequences, in_turns, wants);
            for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
                let alone: Vec<_> = (0..alone.len())
                    .filter(|&at| wants(at, alone.len()))
                    .map(|at| alone[at].clone())
                    .collect();
                assert!(
                    alone == bits(together),
                    "{}: sequence {index}, turns {in_turns}, asking {asking}",
                    folder.display()
                );
            }
        }
    }
}

#[test]
fn cutting_the_experts_changes_no_bit() {
    let device = device(Isa::detect());
    let mut cut_into_units = Vec::new();
    for (folder, precision) in cases() {
        let spec = ModelSource::open(&folder).expect("a fixture").spec().expect("a fixture's configuration");
        let inventory = inventory(&spec, None);
        let Some(at) = inventory.layers.first() else { continue };
        if at.units >= 2 {
            cut_into_units.push(folder.file_name().expect("a folder").to_string_lossy().into_owned());
        }
        let tokens = some_text(&folder);
        let run = |shards: Vec<ShardSpec>| {
            let mut runner = load_as(&folder, &device, shards, precision);
            bits(&logits_in_chunks(&mut runner, &tokens, [17, 1].into_iter().cycle()))
        };
        let whole = run(Vec::new());
        for n in 1..=4 {
            assert!(
                whole == run(by_experts(&inventory, n)),
                "{}: {n} shards of whole experts",
                folder.display()
            );
            assert!(whole == run(by_units(&inventory, n)), "{}: {n} shards of units", folder.display());
            assert!(whole == run(scrambled(&inventory, n, 7)), "{}: {n} scrambled shards", folder.display());
        }
    }
    // Every layout: plain, FP8, MXFP4, GPTQ, AWQ, inputs first in halves and taking turns, with biases, with the gate on
    // the input; blocks of GGUF files.
    for name in [
        "mixtral_b",
        "deepseek_v3_c",
        "gpt_oss_a",
        "gpt_oss_b",
        "llama4_a",
        "qwen3_moe_gptq_a",
        "mixtral_awq",
        "gguf_olmoe",
        "model", // the demo model's folder
    ] {
        assert!(cut_into_units.iter().any(|cut| cut == name), "{name} has no expert of several units");
    }
}

#[test]
fn threads_and_instructions_change_no_bit() {
    for (folder, precision) in cases() {
        let tokens = some_text(&folder);
        let run = |threads: usize, isa: Isa| {
            let device = Device::cpu(CpuOptions { threads, pin: false, isa, grain: 256 }).expect("threads");
            let mut runner = load_as(&folder, &device, Vec::new(), precision);
            bits(&logits_in_chunks(&mut runner, &tokens, [29, 1].into_iter().cycle()))
        };
        let reference = run(1, Isa::Portable);
        for isa in [Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available()) {
            for threads in [1, 3] {
                assert!(reference == run(threads, isa), "{}: {isa}, {threads} threads", folder.display());
            }
        }
    }
}

#[test]
fn listening_to_the_gates_changes_no_bit() {
    let device = device(Isa::detect());
    for folder in [gaterail_tests::fixtures_folder().join("deepseek_v3_a"), demo_model()] {
        let tokens = some_text(&folder);
        let chunks = || [17, 1].into_iter().cycle();
        let mut plain = load_as(&folder, &device, Vec::new(), Precision::F32);
        let sparse: Vec<_> = plain.spec().layers.iter().map(|layer| layer.mlp.sparse().cloned()).collect();
        let expected = bits(&logits_in_chunks(&mut plain, &tokens, chunks()));
        let mut heard = plain.wrap_experts(Recorded::new);
        assert!(expected == bits(&logits_in_chunks(&mut heard, &tokens, chunks())), "{}", folder.display());
        let mut rows = vec![0; sparse.len()];
        for choice in heard.experts().take() {
            let layer = sparse[choice.layer.0 as usize].as_ref().expect("choices of a sparse layer");
            assert_eq!(choice.top_k, layer.top_k);
            assert!(choice.ids.iter().all(|&id| (id as usize) < layer.experts));
            let distinct = |ids: &[u32]| ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
            assert!(choice.ids.chunks(choice.top_k).all(distinct), "an expert twice: {:?}", choice.ids);
            rows[choice.layer.0 as usize] += choice.ids.len() / choice.top_k;
        }
        let all = |layer: &Option<_>| if layer.is_some() { tokens.len() } else { 0 };
        assert_eq!(rows, sparse.iter().map(all).collect::<Vec<_>>(), "{}", folder.display());
        assert!(heard.experts().take().is_empty());
    }
}

/// Breaks a cover.
type Break<'a> = &'a dyn Fn(&mut ShardSpec);

#[test]
fn shards_that_leave_gaps_or_overlap_are_refused() {
    let folder = gaterail_tests::fixtures_folder().join("mixtral_b");
    let spec = ModelSource::open(&folder).expect("a fixture").spec().expect("a fixture's configuration");
    let whole = ShardSpec::whole(&inventory(&spec, None));
    let change = |change: Break| {
        let mut shard = whole.clone();
        change(&mut shard);
        check_cover(&inventory(&spec, None), &[shard]).expect_err("a broken cover")
    };
    let cases: [(&str, Break); 6] = [
        ("held nowhere", &|shard| shard.slices.truncate(shard.slices.len() - 1)),
        ("held nowhere", &|shard| shard.slices[0].units.end -= 1),
        ("held twice", &|shard| shard.slices.push(shard.slices[3])),
        ("units 0..9", &|shard| shard.slices[0].units.end = 9),
        ("units 2..2", &|shard| shard.slices[0].units.start = 2),
        ("no expert 99", &|shard| shard.slices[0].expert.0 = 99),
    ];
    for (expected, broken) in cases {
        let error = change(broken);
        assert!(error.contains(expected), "{expected:?} is not in: {error}");
    }
}
