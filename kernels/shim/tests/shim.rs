//! The shim itself: what it must catch, and that it computes what a GPU would.

use gaterail_shim::run;

const SEEDS: std::ops::Range<u64> = 0..24;

/// Runs a test kernel on `in` and `out`.
fn launch(
    name: &str,
    block: u32,
    shared: usize,
    input: &[u8],
    out: &mut [u8],
    seed: u64,
) -> Result<(), String> {
    let argument = [(input.as_ptr() as u64).to_le_bytes(), (out.as_mut_ptr() as u64).to_le_bytes()].concat();
    // SAFETY: the kernels read and write as much as each test gives them.
    unsafe { run(name, [1, 1, 1], block, shared, &argument, seed) }
}

fn bytes(n: usize) -> Vec<u8> {
    let mut state = 12345u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// The seeds of `SEEDS` under which a kernel does not fail and gives `expected`.
fn right(name: &str, block: u32, shared: usize, input: &[u8], expected: &[u8]) -> Vec<u64> {
    let gives = |seed: &u64| {
        let mut out = vec![0u8; expected.len()];
        launch(name, block, shared, input, &mut out, *seed).is_ok() && out == expected
    };
    SEEDS.filter(gives).collect()
}

fn all() -> Vec<u64> {
    SEEDS.collect()
}

/// The fault that a kernel must have under every seed.
fn fault(name: &str, block: u32, shared: usize) -> String {
    let input = bytes(8192);
    let mut out = vec![0u8; 8192];
    let mut faults = SEEDS.map(|seed| {
        launch(name, block, shared, &input, &mut out, seed).expect_err("a fault under every seed")
    });
    faults.next_back().expect("seeds")
}

#[test]
fn a_missing_barrier_is_caught_under_every_seed_and_a_right_kernel_never() {
    let input = bytes(1024);
    let expected: Vec<u8> = (0..1024).map(|i| input[(i + 128) % 1024]).collect();
    assert_eq!(right("test_barrier", 256, 1024, &input, &expected), all());
    assert_eq!(right("test_barrier_missing", 256, 1024, &input, &expected), Vec::<u64>::new());
}

#[test]
fn copies_land_at_their_wait_and_others_see_them_behind_a_barrier() {
    let input = bytes(8192);
    let mut expected = input.clone();
    for half in 0..2 {
        for i in 0..4096 {
            expected[half * 4096 + i] = input[half * 4096 + (i + 4096 - 640) % 4096];
        }
    }
    assert_eq!(right("test_copies", 256, 8192, &input, &expected), all());
    for wrong in ["test_copies_no_wait", "test_copies_short_wait", "test_copies_no_barrier"] {
        assert_eq!(right(wrong, 256, 8192, &input, &expected), Vec::<u64>::new(), "{wrong}");
    }
}

#[test]
fn a_buffer_that_is_refilled_too_early_is_caught() {
    let input = bytes(1024);
    let expected: Vec<u8> = (0..1024).map(|i| input[i / 256 * 256 + (i % 256 + 132) % 256]).collect();
    assert_eq!(right("test_ring", 64, 256, &input, &expected), all());
    // In order, everyone reads before anyone refills: this is what the random orders are for.
    let passed = right("test_ring_refilled", 64, 256, &input, &expected);
    assert!(passed.len() < SEEDS.count() / 4, "right under the seeds {passed:?}");
}

#[test]
fn divergent_barriers_are_reported_with_their_places() {
    let left = fault("test_barrier_left", 256, 0);
    assert!(left.contains("deadlock") && left.contains("255 threads in sync_threads at"), "{left}");
    assert!(left.contains("1 threads ended (the first is 77)"), "{left}");
    let apart = fault("test_barrier_apart", 256, 0);
    assert!(apart.contains("is in the barrier at") && apart.contains("in the one at"), "{apart}");
}

#[test]
fn divergent_collectives_are_reported() {
    let fault = fault("test_shuffle_divergent", 32, 0);
    assert!(fault.contains("shuffle_xor") && fault.contains("sync_warp"), "{fault}");
}

#[test]
fn masks_are_honoured() {
    let expected: Vec<u8> = (0..32i32)
        .flat_map(|lane| ((lane ^ 2) * 1000 + if lane % 2 == 0 { 0b0101 } else { 0b1010 }).to_le_bytes())
        .collect();
    assert_eq!(right("test_shuffle_masks", 32, 0, &[], &expected), all());
}

#[test]
fn writing_behind_shared_memory_is_reported() {
    assert!(fault("test_shared_overrun", 32, 128).contains("written beyond its end"));
    assert!(fault("test_copy_overrun", 32, 128).contains("outside of shared memory"));
}

#[test]
fn every_block_finds_poison() {
    let mut out = vec![0u8; 128];
    for _ in 0..2 {
        launch("test_poison", 32, 128, &[], &mut out, 1).expect("no fault");
        for word in out.chunks_exact(4) {
            let value = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            assert!(value.is_nan(), "{value}");
        }
    }
}

#[test]
fn unknown_kernels_and_impossible_launches_are_refused() {
    let mut out = vec![0u8; 64];
    assert!(launch("test_nothing", 32, 0, &[], &mut out, 0).expect_err("refused").contains("no kernel"));
    assert!(
        launch("test_poison", 1025, 0, &[], &mut out, 0).expect_err("refused").contains("cannot be launched")
    );
    assert!(
        launch("test_poison", 32, 100 << 10, &[], &mut out, 0).expect_err("refused").contains("cannot be")
    );
}

#[test]
fn the_fragment_map_is_that_of_a_plain_product() {
    let mut input = bytes(512 + 256);
    input[..4].copy_from_slice(&[128, 128, 127, 129]); // the extremes of i8
    let start: Vec<i32> = (0..128).map(|i| i * 1_000_003 - 64_000_000).collect();
    let value = |byte: u8| i32::from(byte as i8);
    let expected: Vec<u8> = (0..128)
        .flat_map(|i| {
            let (row, column) = (i / 8, i % 8);
            let dot: i32 =
                (0..32).map(|k| value(input[row * 32 + k]) * value(input[512 + k * 8 + column])).sum();
            (start[i] + dot).to_le_bytes()
        })
        .collect();
    for seed in SEEDS {
        let mut out: Vec<u8> = start.iter().flat_map(|value| value.to_le_bytes()).collect();
        launch("test_mma", 32, 0, &input, &mut out, seed).expect("no fault");
        assert_eq!(out, expected);
    }
}

#[test]
fn words_are_picked_and_multiplied_like_the_instructions() {
    let input = bytes(32 * 12);
    let word =
        |i: usize| u32::from_le_bytes([input[4 * i], input[4 * i + 1], input[4 * i + 2], input[4 * i + 3]]);
    let expected: Vec<u8> = (0..32)
        .flat_map(|thread| {
            let (a, b, c) = (word(3 * thread), word(3 * thread + 1), word(3 * thread + 2));
            let both = [a.to_le_bytes(), b.to_le_bytes()].concat();
            let picked: [u8; 4] = std::array::from_fn(|i| both[(c >> (4 * i) & 7) as usize]);
            let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
            let dot: i32 = products.map(|(a, b)| i32::from(a as i8) * i32::from(b as i8)).sum();
            [picked, (c as i32).wrapping_add(dot).to_le_bytes()].concat()
        })
        .collect();
    assert_eq!(right("test_words", 32, 0, &input, &expected), all());
}

#[test]
fn halves_widen_exactly() {
    let input: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut out = vec![0u8; 4 << 16];
    let argument = [(input.as_ptr() as u64).to_le_bytes(), (out.as_mut_ptr() as u64).to_le_bytes()].concat();
    // SAFETY: 65,536 halves and as many floats.
    unsafe { run("test_halves", [256, 1, 1], 256, 0, &argument, 0) }.expect("no fault");
    for (bits, value) in (0..=u16::MAX).zip(out.chunks_exact(4)) {
        let value = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        let expected = half::f16::from_bits(bits).to_f32();
        assert!(value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()), "{bits:#x}");
    }
}
