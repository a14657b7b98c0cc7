//! Packed weights that are kept: the same bits with and without, and no file that can do harm.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use gaterail_kernels::{Device, Isa};
use gaterail_model::ModelSource;
use gaterail_model::walk::{Runner, RunnerOptions};
use gaterail_model::weights::cache::{CacheOutcome, PackedCache, PendingWrite, clear, list};
use gaterail_model::weights::{LoadFrom, Precision, inventory, load_slices, packed_slices};
use gaterail_proto::ShardSpec;
use gaterail_tests::broken::Copy;
use gaterail_tests::cuts::{by_experts, by_units, hash, scrambled};
use gaterail_tests::{bits, device, expected, fixtures, fixtures_folder, logits_in_chunks};

/// A model, how it is run, and where its packed weights are kept.
struct Start<'a> {
    model: &'a Path,
    device: &'a Device,
    precision: Precision,
    shards: Vec<ShardSpec>,
    cache: Option<&'a PackedCache>,
}

impl Start<'_> {
    fn load(&self) -> (Runner, CacheOutcome) {
        let source = ModelSource::open(self.model).expect("a model");
        let (spec, checkpoint) =
            (source.spec().expect("its spec"), source.checkpoint().expect("its tensors"));
        let (precision, kv) = (self.precision, self.precision.kv());
        let options =
            RunnerOptions { rows_max: 64, positions: 1024, shards: self.shards.clone(), precision, kv };
        Runner::with_cache(spec, &checkpoint, self.device, &options, self.cache, &mut |_| {})
            .unwrap_or_else(|error| panic!("{}: {error}", self.model.display()))
    }

    /// The bits of some logits, and what came of the cache.
    fn run(&self, tokens: &[u32]) -> (Vec<Vec<u32>>, CacheOutcome) {
        let (mut runner, outcome) = self.load();
        (bits(&logits_in_chunks(&mut runner, tokens, [7, 1].into_iter().cycle())), outcome)
    }
}

/// A cache that keeps even the smallest model.
fn cache_in(folder: &Path) -> PackedCache {
    PackedCache { bytes_min: 0, ..PackedCache::new(folder.to_path_buf()) }
}

fn tokens_of(model: &Path) -> Vec<u32> {
    expected(model).cases[0].tokens()
}

fn write(pending: PendingWrite) -> PathBuf {
    pending.write(&mut |_| {}).expect("a written file").path
}

/// Loads and keeps a fixture; the logits without a cache.
fn keep(
    model: &Path,
    device: &Device,
    cache: &PackedCache,
    precision: Precision,
) -> (Vec<Vec<u32>>, PathBuf) {
    let start = Start { model, device, precision, shards: Vec::new(), cache: Some(cache) };
    let (logits, outcome) = start.run(&tokens_of(model));
    assert!(outcome.notes.is_empty(), "{:?}", outcome.notes);
    (logits, write(outcome.pending.expect("something to keep")))
}

#[test]
fn a_second_start_gives_the_same_bits() {
    let device = device(Isa::detect());
    let mut kept = 0;
    for model in fixtures() {
        let tokens = tokens_of(&model);
        for precision in
            [Precision::Int4, Precision::Int8, Precision::AsStored, Precision::Bf16, Precision::F32]
        {
            let folder = tempfile::tempdir().unwrap();
            let cache = cache_in(folder.path());
            let start =
                |cache| Start { model: &model, device: &device, precision, shards: Vec::new(), cache };
            let what = format!("{} {precision:?}", model.display());
            let (without, _) = start(None).run(&tokens);
            let (first, outcome) = start(Some(&cache)).run(&tokens);
            assert!(without == first, "{what}: the first start");
            let packs = !matches!(precision, Precision::Bf16 | Precision::F32);
            assert!(packs || outcome.pending.is_none(), "{what}: nothing is packed");
            let Some(pending) = outcome.pending else { continue };
            write(pending);
            let (second, outcome) = start(Some(&cache)).run(&tokens);
            assert!(without == second, "{what}: the second start");
            assert!(outcome.pending.is_none() && outcome.notes.is_empty(), "{what}: {:?}", outcome.notes);
            kept += 1;
        }
    }
    assert!(kept > 2 * fixtures().len(), "only {kept} models were kept");
}

/// Whoever holds a part reads it out of a file that holds all, and else keeps its own.
#[test]
fn shards_read_their_parts() {
    let device = device(Isa::detect());
    let cases = [
        ("mixtral_b", Precision::Int4),
        ("deepseek_v3_c", Precision::Int8),
        ("gpt_oss_a", Precision::AsStored),
        ("qwen3_moe_gptq_b", Precision::AsStored),
        ("gguf_olmoe", Precision::AsStored),
        ("llama4_a", Precision::Int4),
    ];
    let mut units = 0;
    for (name, precision) in cases {
        let model = fixtures_folder().join(name);
        let tokens = tokens_of(&model);
        let inventory = inventory(&ModelSource::open(&model).unwrap().spec().unwrap(), None);
        units += usize::from(inventory.layers.iter().any(|at| at.units >= 2));
        let whole_folder = tempfile::tempdir().unwrap();
        let whole = cache_in(whole_folder.path());
        let (logits, _) = keep(&model, &device, &whole, precision);
        for shards in [by_experts(&inventory, 2), by_units(&inventory, 2), scrambled(&inventory, 3, 5)] {
            let own_folder = tempfile::tempdir().unwrap();
            let own = cache_in(own_folder.path());
            let start =
                |cache| Start { model: &model, device: &device, precision, shards: shards.clone(), cache };
            let (parts, outcome) = start(Some(&whole)).run(&tokens);
            assert!(logits == parts, "{name}: parts of a whole file");
            assert!(outcome.pending.is_none() && outcome.notes.is_empty(), "{name}: {:?}", outcome.notes);
            let (parts, outcome) = start(Some(&own)).run(&tokens);
            assert!(logits == parts, "{name}: packed in parts");
            write(outcome.pending.expect("no whole file there"));
            let (parts, outcome) = start(Some(&own)).run(&tokens);
            assert!(logits == parts, "{name}: a file of parts");
            assert!(outcome.pending.is_none() && outcome.notes.is_empty(), "{name}: {:?}", outcome.notes);
        }
    }
    assert!(units >= 2, "no expert was cut");
}

/// What several places have kept, each for itself, is found by whoever takes over from one of them.
#[test]
fn a_shard_is_found_in_the_files_of_others() {
    let device = device(Isa::detect());
    for (name, precision) in [("mixtral_b", Precision::Int4), ("gpt_oss_a", Precision::AsStored)] {
        let model = fixtures_folder().join(name);
        let source = ModelSource::open(&model).unwrap();
        let (spec, checkpoint) = (source.spec().unwrap(), source.checkpoint().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let load = |shard: &ShardSpec| {
            let cache = Some(&cache);
            let from = LoadFrom { spec: &spec, checkpoint: &checkpoint, device: &device, precision, cache };
            let mut pieces = 0;
            let outcome = load_slices(from, &shard.slices, &mut |_| {}, &mut |_, _| {
                pieces += 1;
                true
            });
            (pieces, outcome.expect("slices"))
        };
        let inventory = inventory(&spec, None);
        let told = |precision| {
            let cache = Some(&cache);
            let from = LoadFrom { spec: &spec, checkpoint: &checkpoint, device: &device, precision, cache };
            packed_slices(from).into_iter().collect::<HashSet<_>>()
        };
        let mut kept = HashSet::new();
        assert_eq!(told(precision), kept, "{name}: nothing is packed yet");
        for shard in by_experts(&inventory, 3) {
            write(load(&shard).1.pending.expect("nobody has kept these"));
            kept.extend(shard.slices);
            assert_eq!(told(precision), kept, "{name}: what lies packed");
        }
        assert_eq!(told(Precision::Int8), HashSet::new(), "{name}: in another precision nothing is");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        for shard in by_experts(&inventory, 2).into_iter().chain(by_units(&inventory, 2)) {
            let (pieces, outcome) = load(&shard);
            assert_eq!(pieces, shard.slices.len());
            assert!(outcome.pending.is_none() && outcome.notes.is_empty(), "{name}: {:?}", outcome.notes);
        }
    }
}

/// A file that is broken anywhere is not used, is said to be, and is made again.
#[test]
fn broken_files_are_made_again() {
    let device = device(Isa::detect());
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let model = fixtures_folder().join("mixtral_a");
    let (logits, path) = keep(&model, &device, &cache, Precision::Int4);
    let good = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let (index, sums) = (number(16), number(24));
    let data = (40 + index + 8 * sums).next_multiple_of(4096);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        (format!("byte {at} flipped"), bytes)
    };
    let cut = |at: usize| (format!("cut at {at}"), good[..at].to_vec());
    let mut broken: Vec<(String, Vec<u8>)> = (0..40).map(flipped).collect();
    broken.extend((0..30).map(|i| flipped(40 + hash(i) as usize % index)));
    broken.extend((0..8 * sums).step_by(37).map(|at| flipped(40 + index + at)));
    // Every block of 128 rows, but none of the bytes between entries.
    let entries = list(folder.path()).unwrap()[0].index().unwrap().entries;
    for entry in &entries {
        let run = data + entry.offset as usize;
        broken.push(flipped(run));
        broken.push(flipped(run + entry.bytes as usize - 1));
    }
    broken.extend([0, 7, 39, 40, 100, data - 1, data, data + 1, good.len() - 1].map(cut));
    broken.push(("longer".to_string(), [good.as_slice(), &[0; 4096]].concat()));
    broken.push(("something else".to_string(), b"{}".repeat(4000)));
    let start = Start {
        model: &model,
        device: &device,
        precision: Precision::Int4,
        shards: Vec::new(),
        cache: Some(&cache),
    };
    for (what, bytes) in broken {
        std::fs::write(&path, bytes).unwrap();
        let (mut runner, outcome) = start.load();
        assert_eq!(outcome.notes.len(), 1, "{what}: {:?}", outcome.notes);
        assert!(outcome.notes[0].contains(path.to_str().unwrap()), "{what}: {:?}", outcome.notes);
        let first = bits(&logits_in_chunks(&mut runner, &tokens_of(&model), [7, 1].into_iter().cycle()));
        assert!(first == logits, "{what}: other logits");
        assert!(outcome.pending.is_some(), "{what}: not made again");
    }
    let (_, outcome) = start.load();
    write(outcome.pending.expect("a file to make again"));
    assert!(std::fs::read(&path).unwrap() == good, "made again");
    // A folder in the file's place.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let (_, outcome) = start.load();
    assert_eq!(outcome.notes.len(), 1);
    assert!(outcome.pending.expect("packed").write(&mut |_| {}).is_err(), "a folder was replaced");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something is left behind");
}

/// The file of another model under this one's name is not used.
#[test]
fn a_foreign_file_is_not_used() {
    let device = device(Isa::detect());
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let [model, other] = ["mixtral_a", "mixtral_b"].map(|name| fixtures_folder().join(name));
    let (logits, path) = keep(&model, &device, &cache, Precision::Int4);
    let (_, foreign) = keep(&other, &device, &cache, Precision::Int4);
    assert_ne!(path, foreign);
    std::fs::rename(foreign, &path).unwrap();
    let start = Start {
        model: &model,
        device: &device,
        precision: Precision::Int4,
        shards: Vec::new(),
        cache: Some(&cache),
    };
    let (again, outcome) = start.run(&tokens_of(&model));
    assert!(again == logits && outcome.notes[0].contains("another model"), "{:?}", outcome.notes);
}

/// Whatever happens to a model makes its packed weights others.
#[test]
fn stale_files_are_not_used() {
    let device = device(Isa::detect());
    type Change<'a> = &'a dyn Fn(&Copy);
    let changes: [(&str, Change<'_>); 5] = [
        ("touched", &|copy| {
            let file = File::options().append(true).open(copy.file("model.safetensors")).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
        ("written again", &|copy| copy.write("model.safetensors", &copy.bytes("model.safetensors"))),
        ("replaced", &|copy| {
            copy.write("other", &copy.bytes("model.safetensors"));
            std::fs::rename(copy.file("other"), copy.file("model.safetensors")).unwrap();
        }),
        ("other values", &|copy| {
            copy.tensors("model.safetensors", |_, data| data.chunks_exact_mut(2).for_each(|x| x[0] ^= 1));
        }),
        ("read otherwise", &|copy| {
            copy.json("config.json", |config| config["rope_theta"] = 12345.0.into());
        }),
    ];
    for (what, change) in changes {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let copy = Copy::of("mixtral_a");
        let start = |cache| Start {
            model: copy.path(),
            device: &device,
            precision: Precision::Int4,
            shards: Vec::new(),
            cache,
        };
        keep(copy.path(), &device, &cache, Precision::Int4);
        assert!(start(Some(&cache)).load().1.pending.is_none(), "{what}: not kept at first");
        change(&copy);
        let tokens = tokens_of(copy.path());
        let (with, outcome) = start(Some(&cache)).run(&tokens);
        assert!(with == start(None).run(&tokens).0, "{what}: other logits");
        assert!(outcome.pending.is_some(), "{what}: an old file was used");
    }
}

#[test]
fn a_model_that_changes_while_it_is_loaded_is_not_kept() {
    let device = device(Isa::detect());
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let copy = Copy::of("mixtral_a");
    let start = Start {
        model: copy.path(),
        device: &device,
        precision: Precision::Int4,
        shards: Vec::new(),
        cache: Some(&cache),
    };
    let pending = start.load().1.pending.expect("something to keep");
    std::fs::write(copy.file("new"), copy.bytes("model.safetensors")).unwrap();
    std::fs::rename(copy.file("new"), copy.file("model.safetensors")).unwrap();
    let error = pending.write(&mut |_| {}).expect_err("a changed model was kept");
    assert!(error.to_string().contains("changed"), "{error}");
}

#[test]
fn two_may_write_at_once() {
    let device = device(Isa::detect());
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    let model = fixtures_folder().join("mixtral_a");
    let start = Start {
        model: &model,
        device: &device,
        precision: Precision::Int4,
        shards: Vec::new(),
        cache: Some(&cache),
    };
    for _ in 0..20 {
        let pending: Vec<PendingWrite> = (0..3).filter_map(|_| start.load().1.pending).collect();
        assert_eq!(pending.len(), 3);
        std::thread::scope(|scope| {
            for pending in pending {
                scope.spawn(|| write(pending));
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "one file and nothing beside it");
        let (_, outcome) = start.load();
        assert!(outcome.pending.is_none() && outcome.notes.is_empty(), "{:?}", outcome.notes);
        clear(folder.path()).unwrap();
    }
}

#[test]
fn limits_and_places_that_cannot_be_written() {
    let device = device(Isa::detect());
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["mixtral_a", "mixtral_b", "olmoe_a"].map(|name| fixtures_folder().join(name));
    let load = |model: &Path, cache: &PackedCache| {
        let start = Start {
            model,
            device: &device,
            precision: Precision::Int4,
            shards: Vec::new(),
            cache: Some(cache),
        };
        start.load().1.pending
    };
    let small = PackedCache { bytes_min: 1 << 30, ..cache_in(folder.path()) };
    assert!(load(&a, &small).is_none(), "a small model is not worth it");
    let tight = PackedCache { bytes_max: Some(100), ..cache_in(folder.path()) };
    let error = load(&a, &tight).unwrap().write(&mut |_| {}).expect_err("beyond the limit");
    assert!(error.to_string().contains("may take 100"), "{error}");
    // Room for two: the one that was used longest ago goes.
    let cache = cache_in(folder.path());
    let [first, second] = [&a, &b].map(|model| write(load(model, &cache).unwrap()));
    let old = |path: &Path, seconds: u64| {
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    };
    old(&first, 1000);
    old(&second, 500);
    assert!(load(&a, &cache).is_none(), "used again");
    let total: u64 = list(folder.path()).unwrap().iter().map(|file| file.bytes).sum();
    let third = write(load(&c, &PackedCache { bytes_max: Some(total + 5000), ..cache }).unwrap());
    let left: Vec<PathBuf> = list(folder.path()).unwrap().into_iter().map(|file| file.path).collect();
    assert!(left.contains(&first) && left.contains(&third) && !left.contains(&second), "{left:?}");
    // What a killed writer left behind goes with the next.
    std::fs::write(folder.path().join("x.0.unfinished"), b"half").unwrap();
    assert_eq!(clear(folder.path()).unwrap().0, 2);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let nowhere = cache_in(&folder.path().join("file/packed"));
    assert!(load(&a, &nowhere).unwrap().write(&mut |_| {}).is_err(), "a folder in a file");
}
