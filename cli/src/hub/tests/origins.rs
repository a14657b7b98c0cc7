//! Who gets the token, and which redirects are followed.

use ureq::http::Uri;

use super::super::client::Client;
use super::super::config::TokenUse;
use super::super::origin::{Origin, next_hop};
use super::*;

fn uri(text: &str) -> Uri {
    text.parse().expect(text)
}

#[test]
fn redirects() {
    let cases = [
        // from, location, where it leads or why not
        ("https://hub/a", "/b?c=d", Ok("https://hub/b?c=d")),
        ("https://hub:8443/a", "/b", Ok("https://hub:8443/b")),
        ("https://hub/a", "//cdn/b", Ok("https://cdn/b")),
        ("https://hub/a", "https://cdn/b", Ok("https://cdn/b")),
        ("http://hub/a", "https://hub/a", Ok("https://hub/a")),
        ("http://hub/a", "http://cdn/a", Ok("http://cdn/a")),
        ("https://hub/a", "http://hub/a", Err("from https to http://hub:80, without encryption")),
        ("https://hub/a", "HTTP://hub/a", Err("without encryption")),
        ("https://hub/a", "http://cdn/a?signature=s", Err("from https to http://cdn:80, without encryption")),
        ("https://hub/a", "ftp://cdn/a", Err("not an http or https")),
        ("https://hub/a", "//", Err("not an http or https")),
        ("https://hub/a", "//user:password@cdn/a", Err("a password")),
    ];
    for (from, location, expected) in cases {
        match (next_hop(&uri(from), Some(location)), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, uri(expected), "{from} {location}"),
            (Err(found), Err(why)) => {
                assert!(found.contains(why) && !found.contains("signature"), "{location}: {found}");
            }
            (found, _) => panic!("{from} {location}: {found:?}"),
        }
    }
    assert!(next_hop(&uri("https://hub/a"), None).is_err());
}

#[test]
fn an_origin_is_scheme_host_and_port() {
    let same = [("https://hub/a", "HTTPS://HUB:443/b?c"), ("http://hub", "http://hub:80/")];
    for (a, b) in same {
        assert!(Origin::of(&uri(a)) == Origin::of(&uri(b)), "{a} {b}");
    }
    for other in ["http://hub/", "https://hub:444/", "https://hub.evil/", "https://evil/hub", "https://hub./"]
    {
        assert!(Origin::of(&uri("https://hub/")) != Origin::of(&uri(other)), "{other}");
    }
}

#[test]
fn a_redirect_takes_the_token_to_the_endpoint_only() {
    let home = tempfile::tempdir().unwrap();
    let config = config("https://hub/mirror", home.path(), &[("HF_TOKEN", "hf_secret")]);
    let client = Client::new(&config).unwrap();
    let from = uri("https://hub/mirror/a");
    let cases = [
        ("/elsewhere", true),
        ("https://hub:443/b", true),
        ("//hub/b", true),
        ("//cdn/b", false),
        ("//hub:8443/b", false),
        ("https://cdn/b", false),
        ("https://hub.cdn/b", false),
    ];
    for (location, sent) in cases {
        let to = next_hop(&from, Some(location)).unwrap();
        assert_eq!(client.token_for(&to).is_some(), sent, "{location}");
    }
    assert!(client.token_for(&uri("http://hub/b")).is_none());
}

#[test]
fn a_stored_token_is_not_sent_in_the_open() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "hf_secret").unwrap();
    let given = [("HF_TOKEN", "hf_secret")];
    // The endpoint, what becomes of a token from a file, and of one that was given.
    let cases = [
        ("https://hub", "Sent", "Sent"),
        ("http://127.0.0.1:8080", "Sent", "Sent"),
        ("http://localhost", "Sent", "Sent"),
        ("http://[::1]:8080/hf", "Sent", "Sent"),
        ("http://mirror:8080/hf", "Withheld", "SentInTheOpen"),
        ("http://localhost.evil", "Withheld", "SentInTheOpen"),
    ];
    let name = |found: TokenUse<'_>| format!("{found:?}").split('(').next().unwrap_or_default().to_owned();
    for (endpoint, from_file, from_env) in cases {
        let stored = config(endpoint, home.path(), &[]);
        assert_eq!(name(stored.token_use()), from_file, "{endpoint}");
        let client = Client::new(&stored).unwrap();
        assert_eq!(client.token_for(&uri(endpoint)).is_some(), from_file == "Sent", "{endpoint}");
        assert_eq!(stored.token_report().contains("not sent"), from_file != "Sent", "{endpoint}");
        let config = config(endpoint, home.path(), &given);
        assert_eq!(name(config.token_use()), from_env, "{endpoint}");
        assert!(Client::new(&config).unwrap().token_for(&uri(endpoint)).is_some(), "{endpoint}");
    }
}

#[test]
fn it_is_said_before_the_token_goes_in_the_open() {
    // No request gets through to a closed port, so that the note came before one that did.
    let (_socket, closed) = closed_port();
    let endpoint = format!("http://0.0.0.0:{}", closed.port());
    let mut rig = Rig::new(&single(5000));
    rig.config = config(&endpoint, rig.home.path(), &[("HF_TOKEN", "hf_secret")]);
    let (outcome, recorder) = rig.pull_as(REPO, FileChoice::Needed, None);
    outcome.expect_err("a closed port");
    assert_eq!(
        recorder.notes,
        ["the endpoint is not encrypted: the token from HF_TOKEN can be read on the way"]
    );
    std::fs::write(rig.home.path().join("token"), "hf_secret").unwrap();
    rig.config = config(&endpoint, rig.home.path(), &[]);
    let (outcome, recorder) = rig.pull_as(REPO, FileChoice::Needed, None);
    outcome.expect_err("a closed port");
    assert!(recorder.notes[0].contains("is not sent (set HF_TOKEN"), "{:?}", recorder.notes);
}
