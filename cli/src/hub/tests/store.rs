//! The cache: its layout, what counts as complete, and how the environment names its place.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::config::HubConfig;
use super::super::{resolve_local, why_not_local};
use super::server::{Act, COMMIT, git_sha1, sha256};
use super::*;

#[test]
fn the_layout_is_that_of_the_hub_library() {
    let files = single(5000);
    let rig = Rig::new(&files);
    rig.pull_as("acme/tiny-moe@refs/pr/1", FileChoice::Needed, None).0.unwrap();
    let mut found = Vec::new();
    walk(rig.home.path(), rig.home.path(), &mut found);
    found.sort();
    let (small, large) = (git_sha1(CONFIG), sha256(&files[1].1));
    let repo = "hub/models--acme--tiny-moe";
    let locks = "hub/.locks/models--acme--tiny-moe";
    let mut expected = vec![
        "hub/CACHEDIR.TAG".to_owned(),
        format!("{locks}/{small}.lock"),
        format!("{locks}/{large}.lock"),
        format!("{repo}/blobs/{small}"),
        format!("{repo}/blobs/{large}"),
        format!("{repo}/refs/refs/pr/1"),
        format!("{repo}/snapshots/{COMMIT}/config.json -> ../../blobs/{small}"),
        format!("{repo}/snapshots/{COMMIT}/model.safetensors -> ../../blobs/{large}"),
    ];
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(fs::read_to_string(rig.folder().join("refs/refs/pr/1")).unwrap(), COMMIT);
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if let Ok(target) = fs::read_link(&path) {
            found.push(format!("{name} -> {}", target.display()));
        } else if path.is_dir() {
            walk(root, &path, found);
        } else {
            found.push(name);
        }
    }
}

#[test]
fn a_model_is_found_only_when_it_is_whole() {
    let rig = Rig::new(&sharded());
    let find = |name: &str| resolve_local(name, &rig.config);
    assert_eq!(find(REPO), None);
    rig.pull().unwrap();
    assert_eq!(find(REPO), Some(rig.snapshot()));
    assert_eq!(find(&format!("{REPO}@{COMMIT}")), Some(rig.snapshot()));
    for other in ["acme/tiny-moe@v1", "acme/other", "/etc", "../x/y", ""] {
        assert_eq!(find(other), None, "{other}");
    }
    for name in ["config.json", "model-00002-of-00002.safetensors"] {
        let (path, aside) = (rig.snapshot().join(name), rig.home.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        assert_eq!(find(REPO), None, "without {name}");
        fs::rename(&aside, &path).unwrap();
    }
    let blob = rig.folder().join("blobs").join(sha256(&noise(200_001, 2)));
    fs::remove_file(&blob).unwrap();
    assert_eq!(find(REPO), None, "a link to nothing");
    rig.pull().unwrap();
    assert_eq!(find(REPO), Some(rig.snapshot()));
}

#[test]
fn what_keeps_a_model_from_being_found_is_told() {
    let rig = Rig::new(&sharded());
    let why = |name: &str| why_not_local(name, &rig.config);
    for name in [REPO, "acme/other", "/etc", ""] {
        assert_eq!(why(name), None, "{name}");
    }
    // A pull that is cut off leaves no name yet.
    rig.hub.act("model-00001-of-00002.safetensors", (0..4).map(|_| Act::CutAfter(0)));
    rig.pull().unwrap_err();
    for name in [REPO.to_owned(), format!("{REPO}@{COMMIT}")] {
        assert!(why(&name).unwrap().contains("shards are missing"), "{name}");
    }
    rig.pull().unwrap();
    assert_eq!(why(REPO), None);
    fs::remove_file(rig.snapshot().join("model-00002-of-00002.safetensors")).unwrap();
    assert_eq!(why(REPO).unwrap(), "1 of 2 shards are missing (model-00002-of-00002.safetensors, …)");
    fs::remove_file(rig.snapshot().join("config.json")).unwrap();
    assert_eq!(why(REPO).unwrap(), "config.json is missing");
}

#[test]
fn the_hub_librarys_list_of_files_counts_too() {
    let rig = Rig::new(&sharded());
    rig.pull().unwrap();
    let tree = |tokenizer_size: u64| {
        let files = sharded().into_iter().map(|(name, bytes)| {
            let size = if name == "tokenizer.json" { tokenizer_size } else { bytes.len() as u64 };
            (name.to_owned(), serde_json::json!({ "size": size, "blob_id": git_sha1(&bytes) }))
        });
        let files: serde_json::Map<_, _> = files.collect();
        serde_json::json!({ "format_version": 1, "files": files }).to_string()
    };
    fs::create_dir_all(rig.folder().join("trees")).unwrap();
    let path = rig.folder().join(format!("trees/{COMMIT}.json"));
    fs::write(&path, tree(2000)).unwrap();
    assert_eq!(resolve_local(REPO, &rig.config), Some(rig.snapshot()));
    fs::write(&path, tree(2001)).unwrap();
    assert_eq!(resolve_local(REPO, &rig.config), None, "the tokenizer is too short");
    fs::write(&path, "{").unwrap();
    assert_eq!(resolve_local(REPO, &rig.config), Some(rig.snapshot()), "a broken list says nothing");
}

#[test]
fn a_truncated_blob_is_fetched_again() {
    let files = single(5000);
    let rig = Rig::new(&files);
    rig.pull().unwrap();
    let blob = rig.folder().join("blobs").join(sha256(&files[1].1));
    fs::write(&blob, b"short").unwrap();
    assert_eq!(rig.pull().unwrap().bytes_moved, 5000);
    assert_eq!(fs::read(&blob).unwrap(), files[1].1);
}

#[test]
fn a_choice_of_files_is_not_yet_a_model() {
    let rig = Rig::new(&sharded());
    let choice = FileChoice::Matching(vec!["*.md".into(), "tokenizer*".into()]);
    let pulled = rig.pull_as(REPO, choice, None).0.unwrap();
    assert_eq!(pulled.files, 3);
    assert_eq!(pulled.missing.as_deref(), Some("config.json is missing"));
    assert_eq!(resolve_local(REPO, &rig.config), None);
    let all = rig.pull_as(REPO, FileChoice::All, None).0.unwrap();
    assert_eq!((all.files, all.missing), (10, None));
    assert!(rig.snapshot().join("vision/encoder.safetensors").exists());
    assert!(!rig.snapshot().join("consolidated.00.safetensors").exists());
    assert!(!rig.snapshot().join("pytorch_model.bin").exists());
}

#[test]
fn without_a_tokenizer_no_text_is_promised() {
    let words = |rig: &Rig| last_words(&RepoSpec::parse(REPO).unwrap(), &rig.pull().unwrap());
    let rig = Rig::new(&sharded());
    assert_eq!(words(&rig), "Complete. Try:  gaterail generate acme/tiny-moe \"Once upon a time\"");
    let rig = Rig::new(&single(5000));
    let found = words(&rig);
    assert!(found.contains("no tokenizer.json") && found.contains("--tokens"), "{found}");
}

#[test]
fn chat_templates_of_both_kinds_are_taken() {
    let mut files = single(5000);
    for name in ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"] {
        files.push((name, b"{{ messages }}".to_vec()));
    }
    for other in ["additional_chat_templates/readme.txt", "additional_chat_templates/a/b.jinja", "x.jinja"] {
        files.push((other, b"other".to_vec()));
    }
    let rig = Rig::new(&files);
    assert_eq!(rig.pull().unwrap().files, 4);
    let template = rig.snapshot().join("additional_chat_templates/tool_use.jinja");
    assert_eq!(fs::read(template).unwrap(), b"{{ messages }}");
}

#[test]
fn a_few_files_of_a_new_commit_do_not_hide_a_whole_older_one() {
    let rig = Rig::new(&sharded());
    rig.pull().unwrap();
    // What was pulled becomes the snapshot of an older commit.
    let old = "a".repeat(40);
    let older = rig.folder().join("snapshots").join(&old);
    fs::rename(rig.snapshot(), &older).unwrap();
    let name = rig.folder().join("refs/main");
    fs::write(&name, &old).unwrap();

    let readme = || FileChoice::Matching(vec!["*.md".into()]);
    let pulled = rig.pull_as(REPO, readme(), None).0.unwrap();
    assert_eq!((pulled.commit.as_str(), pulled.kept.as_deref()), (COMMIT, Some(old.as_str())));
    assert_eq!(fs::read_to_string(&name).unwrap(), old);
    let words = last_words(&RepoSpec::parse(REPO).unwrap(), &pulled);
    assert!(words.ends_with("\nUntil then `main` stays at aaaaaaaa, which is whole."), "{words}");
    assert_eq!(resolve_local(REPO, &rig.config), Some(older.clone()));

    // Where nothing whole would be hidden, the name moves with the first file, as the hub's library has it.
    let config = older.join("config.json");
    fs::rename(&config, rig.home.path().join("aside")).unwrap();
    assert_eq!(rig.pull_as(REPO, readme(), None).0.unwrap().kept, None);
    assert_eq!(fs::read_to_string(&name).unwrap(), COMMIT);
    fs::rename(rig.home.path().join("aside"), &config).unwrap();

    fs::write(&name, &old).unwrap();
    assert_eq!(rig.pull().unwrap().kept, None);
    assert_eq!(resolve_local(REPO, &rig.config), Some(rig.snapshot()));
}

/// Variables, and the cache folder, endpoint and token that they lead to.
#[test]
fn the_environment_means_what_it_means_to_the_hub_library() {
    let read = |vars: &[(&str, &str)], flag| {
        let var = |name: &str| vars.iter().find(|var| var.0 == name).map(|var| var.1.to_owned());
        HubConfig::from_vars(&var, flag)
    };
    let caches: &[(&[(&str, &str)], &str)] = &[
        (&[("HOME", "/h")], "/h/.cache/huggingface/hub"),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
        (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/f")], "/h/f/hub"),
        (&[("HOME", "/h"), ("HF_HOME", "")], "/h/.cache/huggingface/hub"),
        (&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        (&[("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")], "/c"),
    ];
    for (vars, cache) in caches {
        assert_eq!(read(vars, None).unwrap().cache_dir, PathBuf::from(cache), "{vars:?}");
    }
    assert!(read(&[], None).unwrap_err().to_string().contains("HF_HUB_CACHE"));

    let home = ("HF_HOME", "/nowhere");
    let config = read(&[home], None).unwrap();
    assert_eq!((config.endpoint.as_str(), config.offline), ("https://huggingface.co", false));
    let config =
        read(&[home, ("HF_ENDPOINT", "http://mirror:8080/hf/"), ("HF_HUB_OFFLINE", "yes")], None).unwrap();
    assert_eq!((config.endpoint.as_str(), config.offline), ("http://mirror:8080/hf", true));
    for bad in ["mirror", "ftp://mirror", "https://user:pw@mirror", "https://"] {
        assert!(
            read(&[home, ("HF_ENDPOINT", bad)], None).unwrap_err().to_string().contains("HF_ENDPOINT"),
            "{bad}"
        );
    }
}

#[test]
fn tokens_are_found_in_their_order_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap();
    fs::write(folder.path().join("token"), "hf_file\n").unwrap();
    fs::write(folder.path().join("other"), "hf_other\n").unwrap();
    let other = folder.path().join("other").display().to_string();
    let read = |vars: &[(&str, &str)], flag: Option<&str>| {
        let all: Vec<_> = vars.iter().copied().chain([("HF_HOME", home)]).collect();
        let var = |name: &str| all.iter().find(|var| var.0 == name).map(|var| var.1.to_owned());
        let config = HubConfig::from_vars(&var, flag)?;
        assert!(!format!("{config:?}").contains("hf_"), "{config:?}");
        Ok::<_, HubError>(config.token.map(|token| token.bearer()))
    };
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let env = ("HF_TOKEN", "hf_env");
    assert_eq!(read(&[env], Some("hf_flag")).unwrap(), bearer("hf_flag"));
    assert_eq!(read(&[env], None).unwrap(), bearer("hf_env"));
    assert_eq!(read(&[("HF_TOKEN", " ")], None).unwrap(), bearer("hf_file"));
    assert_eq!(read(&[("HF_TOKEN_PATH", &other)], None).unwrap(), bearer("hf_other"));
    assert_eq!(read(&[env, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None).unwrap(), None);
    assert_eq!(
        read(&[env, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], Some("hf_flag")).unwrap(),
        bearer("hf_flag")
    );
    let error = read(&[("HF_TOKEN", "hf_a\r\nX-Evil: 1")], None).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && !error.contains("hf_a"), "{error}");
}
