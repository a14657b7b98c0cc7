//! Bytes on their way: redirects, cuts, ranges, damage, pauses.

use std::fs;
use std::time::Duration;

use super::server::{Act, sha256};
use super::*;

#[test]
fn takes_what_the_index_names_and_nothing_else() {
    let rig = Rig::new(&sharded());
    let (pulled, recorder) = rig.pull_as(REPO, FileChoice::Needed, Some(1 << 40));
    let pulled = pulled.unwrap();
    assert_eq!(pulled.folder, rig.snapshot());
    assert_eq!(pulled.missing, None);
    let names = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let mut found: Vec<_> = fs::read_dir(rig.snapshot()).unwrap().map(|e| e.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, names);
    let files = sharded();
    for name in names {
        let wanted = &files.iter().find(|file| file.0 == name).unwrap().1;
        assert_eq!(&fs::read(rig.snapshot().join(name)).unwrap(), wanted, "{name}");
    }
    let last = recorder.last.unwrap();
    assert_eq!(
        (last.done, last.total, last.moved),
        (pulled.bytes_total, pulled.bytes_total, pulled.bytes_moved)
    );
    assert_eq!((last.items_done, last.items_total), (7, 7));
    assert!(recorder.notes[0].contains("7 files"), "{:?}", recorder.notes);
}

#[test]
fn the_token_stays_at_the_hub() {
    let rig = Rig::new(&single(4000));
    rig.pull().unwrap();
    let seen = rig.hub.seen();
    assert!(seen.iter().any(|seen| seen.far), "the redirect was followed");
    for seen in seen {
        // The hub itself fails the test too, when it is dropped.
        let expected = (!seen.far).then(|| "Bearer hf_secret".to_owned());
        assert_eq!(seen.authorization, expected, "{}", seen.path);
    }
}

#[test]
fn a_second_pull_moves_nothing() {
    let rig = Rig::new(&sharded());
    let first = rig.pull().unwrap();
    let requests = rig.hub.seen().len();
    let second = rig.pull().unwrap();
    assert_eq!(second.bytes_moved, 0);
    assert_eq!((second.files, second.bytes_total), (first.files, first.bytes_total));
    assert_eq!(rig.hub.seen().len(), requests + 1, "only the listing was asked for");
}

#[test]
fn a_cut_goes_on_at_the_right_byte() {
    let asked = |silence| {
        let mut rig = Rig::new(&single(700_000));
        rig.config.patience.read_timeout = silence;
        let acts = [Act::CutAfter(300_000), Act::CutAfter(100_000), Act::StallAfter(50_000)];
        rig.hub.act("model.safetensors", acts);
        rig.pull().unwrap();
        rig.hub.ranges("model.safetensors")
    };
    assert!(
        SILENCES
            .into_iter()
            .map(asked)
            .any(|ranges| ranges == [None, Some(300_000), Some(400_000), Some(450_000)])
    );
}

/// What is tolerated; where this process stood still for longer, it is tried with the next.
const SILENCES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];

#[test]
fn the_next_run_goes_on_where_the_last_one_stopped() {
    let files = single(500_000);
    let rig = Rig::new(&files);
    let dead =
        [Act::CutAfter(200_000), Act::CutAfter(0), Act::CutAfter(0), Act::CutAfter(0), Act::CutAfter(0)];
    rig.hub.act("model.safetensors", dead);
    check_error(
        rig.pull(),
        &["model.safetensors stopped at 200 kB of 500 kB after 4 attempts", "run the same"],
    );
    assert_eq!(fs::metadata(rig.partial(&files[1].1)).unwrap().len(), 200_000);
    assert!(!rig.folder().join("refs/main").exists(), "an incomplete snapshot has no name");

    let (pulled, recorder) = rig.pull_as(REPO, FileChoice::Needed, None);
    assert_eq!(pulled.unwrap().bytes_moved, 300_000);
    assert_eq!(rig.hub.ranges("model.safetensors").last(), Some(&Some(200_000)));
    let last = recorder.last.unwrap();
    assert_eq!(last.resumed, 200_000 + CONFIG.len() as u64);
    assert!(!rig.partial(&files[1].1).exists());
}

/// What is in `ETAG.incomplete` before a pull, what the server does, and the ranges that are asked for.
type PartialCase<'a> = (&'a str, &'a [u8], Vec<Act>, Vec<Option<u64>>);

#[test]
fn every_kind_of_partial_file_ends_well() {
    let files = single(10_000);
    let right = &files[1].1;
    let wrong = noise(10_000, 99);
    let longer = [right.as_slice(), b"more"].concat();
    let cases: [PartialCase<'_>; 6] = [
        ("a part", &right[..6000], vec![], vec![Some(6000)]),
        ("a part, and ranges are ignored", &right[..6000], vec![Act::IgnoreRange], vec![Some(6000)]),
        ("all of it", right, vec![], vec![]),
        ("more than all", &longer, vec![], vec![None]),
        ("the part of another file", &wrong[..6000], vec![], vec![Some(6000), None]),
        ("all of another file", &wrong, vec![], vec![None]),
    ];
    for (what, partial, acts, ranges) in cases {
        let rig = Rig::new(&files);
        fs::create_dir_all(rig.folder().join("blobs")).unwrap();
        fs::write(rig.partial(right), partial).unwrap();
        rig.hub.act("model.safetensors", acts);
        let (pulled, recorder) = rig.pull_as(REPO, FileChoice::Needed, None);
        pulled.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(&fs::read(rig.snapshot().join("model.safetensors")).unwrap(), right, "{what}");
        assert_eq!(rig.hub.ranges("model.safetensors"), ranges, "{what}");
        let last = recorder.last.unwrap();
        assert_eq!(last.done, last.total, "{what}");
    }
}

#[test]
fn damage_is_tried_once_more_and_then_told() {
    let rig = Rig::new(&single(5000));
    rig.hub.act("model.safetensors", [Act::Damage]);
    rig.pull().unwrap();

    let files = single(5000);
    let rig = Rig::new(&files);
    rig.hub.act("model.safetensors", [Act::Damage, Act::Damage]);
    let damaged: Vec<u8> = files[1].1.iter().map(|byte| byte ^ 0x55).collect();
    check_error(rig.pull(), &["model.safetensors arrived damaged", &sha256(&files[1].1), &sha256(&damaged)]);
    assert!(!rig.partial(&files[1].1).exists(), "what is damaged is not kept");
    assert!(!rig.snapshot().join("model.safetensors").exists());
}

#[test]
fn small_files_are_checked_as_git_blobs() {
    let rig = Rig::new(&single(5000));
    rig.hub.act("config.json", [Act::Damage, Act::Damage]);
    let damaged: Vec<u8> = CONFIG.iter().map(|byte| byte ^ 0x55).collect();
    check_error(rig.pull(), &["config.json", &server::git_sha1(CONFIG), &server::git_sha1(&damaged)]);
    assert!(rig.hub.ranges("model.safetensors").is_empty(), "weights come after the small files");
}

#[test]
fn a_trickle_is_not_a_stall() {
    let asked = |silence: Duration| {
        let mut rig = Rig::new(&single(3000));
        rig.config.patience.read_timeout = silence;
        // Half as long again as the silence that is tolerated, in all.
        rig.hub.act("model.safetensors", [Act::Trickle { piece: 300, pause: silence * 15 / 100 }]);
        rig.pull().unwrap();
        rig.hub.ranges("model.safetensors")
    };
    assert!(SILENCES.into_iter().map(asked).any(|ranges| ranges == [None]));
}

#[test]
fn busy_servers_are_asked_again() {
    let rig = Rig::new(&single(5000));
    rig.hub.answer_listing(503, "", b"");
    rig.hub.answer_listing(429, "Retry-After: 0\r\n", b"");
    rig.hub.act("config.json", [Act::Status(500, ""), Act::Status(429, "Retry-After: 0\r\n")]);
    // A refusal by the second port is a signed address that is too old: the hub gives a new one.
    rig.hub.act("model.safetensors", [Act::FarStatus(403), Act::FarStatus(503), Act::CutAfter(10)]);
    rig.pull().unwrap();
    assert_eq!(rig.hub.ranges("model.safetensors"), [None, None, None, Some(10)]);
}

#[test]
fn a_wait_is_as_long_as_the_server_asks() {
    let rig = Rig::new(&single(5000));
    rig.hub.answer_listing(429, "Retry-After: 1\r\n", b"");
    let started = std::time::Instant::now();
    rig.pull().unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));

    rig.hub.answer_listing(429, "RateLimit: \"api\";r=0;t=3600\r\n", b"");
    check_error(rig.pull(), &["HTTP 429 and asked to come back in 3600 s"]);
}

#[test]
fn a_server_that_never_recovers_is_given_up() {
    let rig = Rig::new(&single(5000));
    (0..9).for_each(|_| rig.hub.answer_listing(502, "", b""));
    check_error(rig.pull(), &["the file list of acme/tiny-moe", "HTTP 502", "4 attempt(s)"]);
    assert_eq!(rig.hub.seen().len(), 4);
}

#[test]
fn a_byte_per_connection_is_no_progress() {
    let rig = Rig::new(&single(5000));
    rig.hub.act("model.safetensors", (0..100).map(|_| Act::CutAfter(1)));
    check_error(rig.pull(), &["model.safetensors stopped at 4 bytes", "after 4 attempts"]);
    assert_eq!(rig.hub.ranges("model.safetensors").len(), 4);
}

#[test]
fn progress_is_forgiven_much_but_not_everything() {
    let rig = Rig::new(&single(120_000));
    rig.hub.act("model.safetensors", (0..100).map(|_| Act::CutAfter(10_000)));
    check_error(
        rig.pull(),
        &["model.safetensors stopped at", "70.0 kB of 120 kB after 7 attempts", "is kept"],
    );
    assert_eq!(rig.hub.ranges("model.safetensors").len(), 7);
    // The next run goes on, and has attempts of its own.
    rig.pull().unwrap();
}

#[test]
fn a_listing_that_trickles_is_given_up() {
    let mut rig = Rig::new(&single(5000));
    rig.config.patience.listing_timeout = Duration::from_millis(200);
    let started = std::time::Instant::now();
    rig.hub.trickle_listing(Duration::from_millis(20));
    check_error(rig.pull(), &["cannot be reached", "sends too slowly"]);
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_listing_without_sizes_is_completed_file_by_file() {
    let rig = Rig::new(&single(5000));
    rig.hub.edit_listing(|listing| {
        for file in listing["siblings"].as_array_mut().unwrap() {
            let name = file["rfilename"].clone();
            *file = serde_json::json!({ "rfilename": name });
        }
    });
    let pulled = rig.pull().unwrap();
    assert_eq!(pulled.bytes_total, 5000 + CONFIG.len() as u64);
    assert!(rig.folder().join("blobs").join(sha256(&single(5000)[1].1)).exists());
}

#[test]
fn what_has_no_checksum_is_told() {
    let rig = Rig::new(&single(5000));
    rig.hub
        .edit_listing(|listing| listing["siblings"][0] = serde_json::json!({ "rfilename": "config.json" }));
    rig.hub.act("config.json", [Act::Etag("\"d41d8c-12\"")]);
    let pulled = rig.pull().unwrap();
    assert_eq!((pulled.files, pulled.unverified), (2, 1));
    assert!(rig.folder().join("blobs/d41d8c-12").exists());
    let words = last_words(&RepoSpec::parse(REPO).unwrap(), &pulled);
    assert!(words.starts_with("1 file could not be verified"), "{words}");

    let rig = Rig::new(&single(5000));
    rig.hub
        .edit_listing(|listing| listing["siblings"][0] = serde_json::json!({ "rfilename": "config.json" }));
    rig.hub.act("config.json", [Act::Etag("\"d41d8c.incomplete\"")]);
    check_error(rig.pull(), &["config.json", "no ETag that can be used"]);
}

#[test]
fn names_with_spaces_and_folders_arrive() {
    let mut files = single(5000);
    files.push(("docs/a b/50%.txt", b"deep".to_vec()));
    files.push(("docs/empty", Vec::new()));
    let rig = Rig::new(&files);
    rig.pull_as(REPO, FileChoice::All, None).0.unwrap();
    assert_eq!(fs::read(rig.snapshot().join("docs/a b/50%.txt")).unwrap(), b"deep");
    let target = fs::read_link(rig.snapshot().join("docs/a b/50%.txt")).unwrap();
    assert_eq!(target.to_str().unwrap(), format!("../../../../blobs/{}", server::git_sha1(b"deep")));
    assert_eq!(fs::read(rig.snapshot().join("docs/empty")).unwrap(), b"");
}

#[test]
fn two_pulls_at_once_fetch_every_file_once() {
    let mut files = sharded();
    // The same content twice is one blob, and the two downloads of one pull meet at its lock too.
    files.push(("tokenizer_copy.json", noise(2000, 6)));
    let rig = Rig::new(&files);
    let slow = Act::Trickle { piece: 30_000, pause: Duration::from_millis(5) };
    rig.hub.act("model-00001-of-00002.safetensors", [slow]);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..2).map(|_| scope.spawn(|| rig.pull())).collect();
        pulls.into_iter().for_each(|pull| assert!(pull.join().unwrap().is_ok()));
    });
    for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"] {
        assert_eq!(rig.hub.ranges(name), [None], "{name}");
    }
}
