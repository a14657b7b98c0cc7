//! Names, patterns, checksums, and the two parsers of what a server sends.

use super::super::checksum::BlobId;
use super::super::listing;
use super::super::name::{RepoPath, RepoSpec, visible};
use super::super::select::{self, matches};
use super::noise;
use super::server::COMMIT;

#[test]
fn repository_names() {
    for (given, id, revision) in [
        ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B", "main"),
        ("a/b@v1.0", "a/b", "v1.0"),
        ("a/b@refs/pr/7", "a/b", "refs/pr/7"),
        ("a_b/c.d-e", "a_b/c.d-e", "main"),
    ] {
        let spec = RepoSpec::parse(given).unwrap();
        assert_eq!((spec.id(), spec.revision()), (id, revision));
        assert_eq!(spec.to_string(), given);
    }
    let bad = [
        "",
        "gpt2",
        "a/",
        "/b",
        "a/b/c",
        "../b",
        "a/..",
        "a/b--c",
        "a/.b",
        "a/b.",
        "a b/c",
        "a/b\0",
        "a/b.git",
        "ä/b",
        "a/b@",
        "a/b@../x",
        "a/b@/x",
        "a/b@x//y",
        "a/b@.x",
        "a/b@x y",
        "a/b@-x",
        "https://hub/a/b",
        "./model",
        "/models/a",
    ];
    for given in bad {
        let error = RepoSpec::parse(given).expect_err(given).to_string();
        assert!(error.contains("ORG/NAME"), "{error}");
    }
    assert!(RepoSpec::parse(&format!("a/{}", "b".repeat(97))).is_err());
}

#[test]
fn file_names() {
    for good in ["a", "a/b/c.json", ".gitattributes", "..a", "a..", "50% off ä", "xx:y"] {
        assert_eq!(RepoPath::parse(good).unwrap().as_str(), good);
    }
    for bad in
        ["", "/a", "a/", "a//b", ".", "..", "a/..", "a/./b", "a\\b", "a\nb", "c:", "a/D:x", "a\u{202e}b"]
    {
        RepoPath::parse(bad).expect_err(bad);
    }
}

#[test]
fn patterns() {
    let cases = [
        ("*.json", "config.json", true),
        ("*.json", "a/b.json", true),
        ("*.json", "config.jsonl", false),
        ("model-?????-of-*", "model-00001-of-00002.safetensors", true),
        ("original/", "original/a/b", true),
        ("original/", "originals/a", false),
        ("*", "", true),
        ("", "a", false),
        ("a*b*c", "aXbXbXc", true),
        ("a*b*c", "aXbXbX", false),
        ("README.md", "README.md", true),
    ];
    for (pattern, name, fits) in cases {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
    // A pattern of many stars costs no more than its length times the name's.
    assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
}

#[test]
fn blob_names_and_their_sums() {
    // `echo hello | sha256sum` and `echo hello | git hash-object --stdin`.
    let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    let git = "ce013625030ba8dba906f756967f9e9ca394464a";
    for id in [sha, git, &format!("\"{sha}\""), &format!("W/\"{git}\"")] {
        let mut checker = BlobId::parse(id).unwrap().checker(6);
        checker.update(b"hel");
        checker.update(b"lo\n");
        assert_eq!(checker.finish(), Ok(()), "{id}");
        let mut checker = BlobId::parse(id).unwrap().checker(6);
        checker.update(b"hallo\n");
        assert!(checker.finish().is_err(), "{id}");
    }
    assert!(matches!(BlobId::parse("\"d41d8c-12\""), Some(BlobId::Opaque(_))));
    let incomplete = format!("{sha}.incomplete");
    for bad in ["", "\"\"", "../x", ".x", "a/b", "a b", "a.b", "a.lock", &incomplete, &"a".repeat(129)] {
        assert_eq!(BlobId::parse(bad), None, "{bad}");
    }
}

#[test]
fn foreign_text_is_made_harmless() {
    assert_eq!(visible("a\x1b[31mb\n"), "a\u{fffd}[31mb\u{fffd}");
    assert_eq!(visible(&"ä".repeat(301)), format!("{}…", "ä".repeat(300)));
    assert_eq!(visible(&"ä".repeat(300)), "ä".repeat(300));
}

/// No damaged answer makes the parsers panic, and none gets a bad name past them.
#[test]
fn damaged_answers_are_only_refused() {
    let listing = format!(
        r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"a/b.json","size":12,"blobId":"{COMMIT}"}},
            {{"rfilename":"model.safetensors","size":9,"lfs":{{"sha256":"{}","size":9}}}}]}}"#,
        "0".repeat(64)
    );
    let index =
        r#"{"metadata":{"total_size":9},"weight_map":{"a":"model-1.safetensors","b":"x/y.safetensors"}}"#;
    let harmless = |path: &RepoPath| RepoPath::parse(path.as_str()).is_ok();
    for seed in 0..4000 {
        let damaged = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            for pair in noise(6, seed).chunks(2) {
                let at = usize::from(pair[0]) * bytes.len() / 256;
                bytes[at] = b"/.\\\"{}[],:-09\0\xff"[usize::from(pair[1]) % 15];
            }
            bytes
        };
        if let Ok(listing) = listing::parse(&damaged(&listing), "it") {
            assert!(listing.files.iter().all(|file| harmless(&file.path)), "seed {seed}");
        }
        if let Ok(shards) = select::shards(&damaged(index)) {
            assert!(shards.iter().all(harmless), "seed {seed}");
        }
    }
    assert!(listing::parse(listing.as_bytes(), "it").is_ok());
    assert_eq!(select::shards(index.as_bytes()).unwrap().len(), 2);
}

#[test]
fn an_index_is_read_for_its_file_names_only() {
    let of = |entries: String| select::shards(format!(r#"{{"weight_map":{{{entries}}}}}"#).as_bytes());
    let many: Vec<_> = (0..50_000).map(|n| format!(r#""t{n}":"{}.safetensors""#, n % 3)).collect();
    assert_eq!(of(many.join(",")).unwrap().len(), 3);
    let many: Vec<_> = (0..=100_000).map(|n| format!(r#""t{n}":"{n}.safetensors""#)).collect();
    for (entries, why) in [
        (many.join(","), "more than 100000 files"),
        (r#""t":7"#.to_owned(), "expected a string"),
        (r#""t":"a.bin""#.to_owned(), "a.bin, which is not a safetensors file"),
        (String::new(), "names no file"),
    ] {
        let error = of(entries).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
