//! What is refused, and what the person is told.

use std::fs;

use serde_json::{Value, json};

use super::server::{Act, COMMIT};
use super::*;

#[test]
fn a_gated_model_tells_where_its_licence_is() {
    let rig = Rig::new(&single(5000));
    rig.hub
        .act("config.json", [Act::Status(403, "X-Error-Code: GatedRepo\r\nX-Error-Message: Ask first\r\n")]);
    let page = format!("{}/acme/tiny-moe", rig.hub.endpoint);
    check_error(
        rig.pull(),
        &["gated", "HTTP 403: Ask first", &page, "HF_TOKEN", "The token from HF_TOKEN was sent"],
    );
}

#[test]
fn without_a_token_the_places_are_named() {
    let mut rig = Rig::new(&single(5000));
    rig.config = config(&rig.hub.endpoint, rig.home.path(), &[]);
    let file = rig.home.path().join("token");
    let places = format!("looked in --token, HF_TOKEN, HUGGING_FACE_HUB_TOKEN, {}", file.display());
    rig.hub.act("config.json", [Act::Status(401, "X-Error-Code: GatedRepo\r\n")]);
    check_error(rig.pull(), &["gated", "HTTP 401", &places]);
    rig.hub.answer_listing(401, "", b"");
    check_error(rig.pull(), &["gated, private or misspelt", &places]);
}

#[test]
fn a_bad_token_is_named_by_its_source() {
    let rig = Rig::new(&single(5000));
    rig.hub.answer_listing(401, "X-Error-Message: Invalid credentials in Authorization header\r\n", b"");
    check_error(rig.pull(), &["did not accept the token from HF_TOKEN", "/settings/tokens"]);
}

#[test]
fn unknown_models_and_revisions_are_told_apart() {
    let rig = Rig::new(&single(5000));
    let (outcome, _) = rig.pull_as("acme/tiny-mow", FileChoice::Needed, None);
    check_error(
        outcome,
        &["no model acme/tiny-mow", "HTTP 404", "spelling", "private", "token from HF_TOKEN"],
    );
    let (outcome, _) = rig.pull_as("acme/tiny-moe@v9", FileChoice::Needed, None);
    check_error(outcome, &["no revision `v9`", "/acme/tiny-moe/commits/main"]);
}

#[test]
fn without_a_network_it_says_so() {
    let mut rig = Rig::new(&single(5000));
    rig.pull().unwrap();
    let (_socket, closed) = closed_port();
    rig.config.endpoint = format!("http://{closed}");
    let snapshot = rig.snapshot();
    check_error(rig.pull(), &["cannot be reached", "HF_HUB_OFFLINE=1", snapshot.to_str().unwrap()]);
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    check_error(rig.pull(), &["cannot be reached", "not complete there: model.safetensors is missing"]);
}

#[test]
fn offline_answers_from_the_cache() {
    let mut rig = Rig::new(&single(5000));
    rig.config.offline = true;
    check_error(rig.pull(), &["HF_HUB_OFFLINE is set", "never fetched"]);
    rig.config.offline = false;
    rig.pull().unwrap();
    let requests = rig.hub.seen().len();
    rig.config.offline = true;
    assert_eq!(rig.pull().unwrap().folder, rig.snapshot());
    assert_eq!(rig.hub.seen().len(), requests);
}

#[test]
fn models_that_cannot_be_served_are_refused_before_the_download() {
    let config = || ("config.json", CONFIG.to_vec());
    let index = |shard: &str| format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#).into_bytes();
    let cases = [
        (vec![config(), ("pytorch_model.bin", noise(2000, 1))], "pickle"),
        (vec![config(), ("model.gguf", noise(2000, 1))], "format that Gaterail does not read (model.gguf)"),
        (vec![config(), ("consolidated.safetensors", noise(2000, 1))], "neither model.safetensors nor"),
        (vec![config(), ("README.md", b"#".to_vec())], "no weights"),
        (vec![("model.safetensors", noise(2000, 1))], "no config.json"),
        (
            vec![config(), ("model.safetensors.index.json", index("b.safetensors"))],
            "names b.safetensors, which it does not have",
        ),
        (vec![config(), ("model.safetensors.index.json", index("../b.safetensors"))], "leaves its folder"),
        (
            vec![config(), ("model.safetensors.index.json", index("pytorch_model.bin"))],
            "not a safetensors file",
        ),
        (vec![config(), ("model.safetensors.index.json", b"[]".to_vec())], "not a safetensors index"),
    ];
    for (files, why) in cases {
        let rig = Rig::new(&files);
        check_error(rig.pull(), &[why]);
        let large = rig.hub.seen().iter().filter(|seen| seen.far).count();
        assert_eq!(large, 0, "{why}");
    }
    let rig = Rig::new(&single(5000));
    check_error(
        rig.pull_as(REPO, FileChoice::Matching(vec!["*.gguf".into()]), None).0,
        &["none of its 2 files"],
    );
}

#[test]
fn hostile_listings_are_refused() {
    type Edit = fn(&mut Value);
    fn name(listing: &mut Value, name: &str) {
        listing["siblings"][0]["rfilename"] = json!(name);
    }
    let cases: &[(Edit, &str)] = &[
        (|l| name(l, "../../../etc/passwd"), "leaves its folder"),
        (|l| name(l, "a/../../b"), "leaves its folder"),
        (|l| name(l, "./config.json"), "leaves its folder"),
        (|l| name(l, "/etc/passwd"), "absolute"),
        (|l| name(l, "a\\..\\b"), "backslash"),
        (|l| name(l, "a\0b"), "cannot be shown"),
        (|l| name(l, "\x1b]0;owned\x07"), "cannot be shown"),
        (|l| name(l, "a//b"), "empty part"),
        (|l| name(l, ""), "empty"),
        (|l| name(l, "C:/windows"), "drive"),
        (|l| name(l, &"a".repeat(256)), "too long"),
        (|l| name(l, &"a/".repeat(600)), "too long"),
        (|l| name(l, &format!("{}b", "a/".repeat(40))), "too many folders"),
        (|l| name(l, "model.safetensors"), "lists model.safetensors twice"),
        (|l| l["sha"] = json!("../../../../tmp/evil"), "names no commit"),
        (|l| l["sha"] = json!(7), "not what a hub sends"),
        (|l| l["siblings"][1]["size"] = json!(-5), "not what a hub sends"),
        (|l| l["siblings"][1]["size"] = json!(1), "the hub's listing says 1 bytes, the download says 5000"),
        (|l| l["siblings"][1]["lfs"]["sha256"] = json!("../x"), "sha256"),
        (|l| l["siblings"][0]["blobId"] = json!("../x"), "git checksum"),
        (
            |l| {
                l["siblings"][1]["size"] = json!(u64::MAX);
                l["siblings"][1]["lfs"]["size"] = json!(u64::MAX);
            },
            "size is beyond",
        ),
    ];
    let rig = Rig::new(&single(5000));
    for (edit, why) in cases {
        rig.hub.edit_listing(*edit);
        check_error(rig.pull(), &[why]);
    }
    assert!(rig.hub.seen().iter().all(|seen| seen.path.starts_with("/api/")), "nothing was downloaded");
    assert!(!rig.home.path().join("hub").exists(), "nothing was written");
}

#[test]
fn endless_and_broken_listings_are_refused() {
    let rig = Rig::new(&single(5000));
    rig.hub.answer_listing(200, "", b"<html>A page of the company's proxy</html>");
    check_error(rig.pull(), &["the file list of acme/tiny-moe", "not what a hub sends"]);
    rig.hub.answer_listing(200, "", &vec![b' '; (64 << 20) + 1]);
    check_error(rig.pull(), &["longer than 67108864 bytes"]);
    let files = r#"{"rfilename":"f"},"#.repeat(100_000);
    let many = format!(r#"{{"sha":"{COMMIT}","siblings":[{files}{{"rfilename":"f"}}]}}"#);
    rig.hub.answer_listing(200, "", many.as_bytes());
    check_error(rig.pull(), &["100001 files"]);
    let other = format!("acme/tiny-moe@{}", "0".repeat(40));
    rig.hub.answer_listing(200, "", format!(r#"{{"sha":"{COMMIT}"}}"#).as_bytes());
    check_error(rig.pull_as(&other, FileChoice::Needed, None).0, &["was asked for"]);
}

#[test]
fn a_download_that_differs_from_its_listing_is_refused() {
    let rig = Rig::new(&single(5000));
    rig.hub.act("model.safetensors", [Act::Length(6000)]);
    check_error(rig.pull(), &["model.safetensors", "listing says 5000 bytes, the download says 6000"]);
    rig.hub.act("model.safetensors", [Act::Length(4000)]);
    check_error(rig.pull(), &["listing says 5000 bytes, the download says 4000"]);
    rig.hub.act("model.safetensors", [Act::OtherCommit]);
    check_error(rig.pull(), &["it is of commit ffff"]);
    rig.hub.edit_listing(|listing| {
        listing["siblings"][1]["lfs"] = json!({ "sha256": "0".repeat(64), "size": 5000 });
    });
    check_error(rig.pull(), &["its checksum is", "the listing says 0000"]);
}

#[test]
fn bad_redirects_are_refused() {
    let rig = Rig::new(&single(5000));
    let loops = format!("/{REPO}/resolve/{COMMIT}/model.safetensors");
    let cases = [
        ("file:///etc/passwd", "not an http or https"),
        ("elsewhere", "not an http or https"),
        ("http://user:password@127.0.0.1/", "a password"),
        ("http://[", "not an http or https"),
    ];
    for (to, why) in cases {
        rig.hub.act("model.safetensors", [Act::Redirect(to.to_owned())]);
        check_error(rig.pull(), &[why]);
    }
    rig.hub.act("model.safetensors", (0..6).map(|_| Act::Redirect(loops.clone())));
    check_error(rig.pull(), &["more than 5 times"]);
    // A redirect within the hub, as after a change of name, is followed and keeps the token.
    rig.hub.act("model.safetensors", [Act::Redirect(loops)]);
    rig.pull().unwrap();
}

#[test]
fn no_room_is_known_before_the_start() {
    let rig = Rig::new(&single(5000));
    let (outcome, _) = rig.pull_as(REPO, FileChoice::Needed, Some(64 << 20));
    check_error(outcome, &["not enough room", "5.04 kB are needed", "HF_HUB_CACHE"]);
    assert!(rig.hub.ranges("model.safetensors").is_empty());
    rig.pull().unwrap();
    let (outcome, _) = rig.pull_as(REPO, FileChoice::Needed, Some(0));
    outcome.expect("nothing is needed when all is there");
}

#[test]
fn a_full_disk_has_advice_of_its_own() {
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = HubError::disk("written", Path::new("/models/x"))(full);
    check_error(Err(error), &["the disk is full", "/models/x", "is kept", "HF_HUB_CACHE"]);
}
