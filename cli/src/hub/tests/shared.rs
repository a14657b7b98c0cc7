//! A cache that others write to: planted links, and a file system without locks.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::cache::RepoCache;
use super::super::checksum::BlobId;
use super::super::client::Client;
use super::super::download::Downloads;
use super::super::limits::LOCK_POLL;
use super::super::listing::RemoteFile;
use super::super::name::{Commit, RepoPath};
use super::super::retry::Stop;
use super::server::{Act, COMMIT, sha256};
use super::*;
use crate::progress::ByteMeter;

const VICTIM: &[u8] = b"what a user has in his home folder";

/// A file outside the cache that no pull may touch.
fn victim(rig: &Rig) -> PathBuf {
    let path = rig.home.path().join("bashrc");
    fs::write(&path, VICTIM).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[track_caller]
fn check_untouched(victim: &Path) {
    assert_eq!(fs::read(victim).unwrap(), VICTIM);
    assert_eq!(fs::metadata(victim).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn planted_links_are_not_followed() {
    let files = single(5000);
    let id = sha256(&files[1].1);
    let lock = format!("hub/.locks/models--acme--tiny-moe/{id}.lock");
    let partial = format!("hub/models--acme--tiny-moe/blobs/{id}.incomplete");
    type Plant = fn(&Path, &Path);
    let soft: Plant = |victim, at| symlink(victim, at).unwrap();
    let hard: Plant = |victim, at| fs::hard_link(victim, at).unwrap();
    let cases = [
        (&lock, soft, "it is a link"),
        (&partial, soft, "it is a link"),
        (&partial, hard, "it has another name too"),
    ];
    for (at, plant, why) in cases {
        let rig = Rig::new(&files);
        let (victim, at) = (victim(&rig), rig.home.path().join(at));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        plant(&victim, &at);
        check_error(rig.pull(), &[at.to_str().unwrap(), why]);
        check_untouched(&victim);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_planted_pipe_does_not_make_the_pull_wait() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let files = single(5000);
    for name in [".locks/models--acme--tiny-moe/ID.lock", "models--acme--tiny-moe/blobs/ID.incomplete"] {
        let rig = Rig::new(&files);
        let at = rig.config.cache_dir.join(name.replace("ID", &sha256(&files[1].1)));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        mknodat(CWD, &at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        check_error(rig.pull(), &[at.to_str().unwrap(), "it is not a file"]);
    }
}

#[test]
fn links_in_place_of_the_tag_and_the_ref_are_replaced_or_left() {
    let rig = Rig::new(&single(5000));
    let victim = victim(&rig);
    let absent = rig.home.path().join("absent");
    fs::create_dir_all(rig.folder().join("refs")).unwrap();
    symlink(&absent, rig.home.path().join("hub/CACHEDIR.TAG")).unwrap();
    symlink(&victim, rig.folder().join("refs/main")).unwrap();
    rig.pull().unwrap();
    assert!(!absent.exists(), "the tag was not written through the link");
    assert_eq!(fs::read_to_string(rig.folder().join("refs/main")).unwrap(), COMMIT);
    assert!(!rig.folder().join("refs/main").is_symlink());
    check_untouched(&victim);
}

#[test]
fn only_a_new_lock_gets_its_mode() {
    let rig = Rig::new(&single(5000));
    rig.pull().unwrap();
    let locks = rig.home.path().join("hub/.locks/models--acme--tiny-moe");
    let lock = locks.join(format!("{}.lock", server::git_sha1(CONFIG)));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&lock), 0o664);
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_dir_all(rig.folder()).unwrap();
    rig.pull().unwrap();
    assert_eq!(mode(&lock), 0o600);
}

/// Who cleans up may take a lock's file away, or elsewhere, while somebody holds it: the next one makes another, and that is
/// the lock then.
#[test]
fn a_lock_that_has_lost_its_name_keeps_nobody_away() {
    check_lost_name(|path| fs::remove_file(path).unwrap());
    check_lost_name(|path| fs::rename(path, path.with_extension("old")).unwrap());
}

fn check_lost_name(lose: fn(&Path)) {
    let files = single(5000);
    let rig = Rig::new(&files);
    let locks = rig.home.path().join("hub/.locks/models--acme--tiny-moe");
    let path = locks.join(format!("{}.lock", sha256(&files[1].1)));
    fs::create_dir_all(&locks).unwrap();
    let hold = || {
        let held = File::create(&path).unwrap();
        held.try_lock().unwrap();
        held
    };
    let first = hold();
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| rig.pull());
        // It waits for the first one, as what it has loaded so far shows.
        while !rig.snapshot().join("config.json").exists() && !pull.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(LOCK_POLL);
        lose(&path);
        let second = hold();
        drop(first);
        std::thread::sleep(3 * LOCK_POLL);
        assert!(!pull.is_finished(), "it has not waited for the second");
        drop(second);
        pull.join().unwrap().unwrap();
    });
}

/// Ends who looks until it is set, also where a test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// On a file system without locks another pull may make the link, and look at it, while this one replaces it.
#[test]
fn a_link_that_is_replaced_is_never_away() {
    let home = tempfile::tempdir().unwrap();
    let cache = RepoCache::new(home.path(), &RepoSpec::parse(REPO).unwrap());
    let (commit, path) = (Commit::parse(COMMIT).unwrap(), RepoPath::parse("config.json").unwrap());
    cache.create().unwrap();
    let blobs = [b"first", b"other"].map(|bytes| (BlobId::parse(&sha256(bytes)).unwrap(), bytes));
    blobs.iter().for_each(|(id, bytes)| fs::write(cache.blob(id), bytes).unwrap());
    let link = |round: usize| cache.link(&commit, &path, &blobs[round % 2].0).unwrap();
    link(0);
    let (done, begin) = (AtomicBool::new(false), Barrier::new(2));
    let look = || {
        let mut away = usize::from(!cache.holds(&commit, &path, 5));
        begin.wait();
        while !done.load(Ordering::Relaxed) {
            away += usize::from(!cache.holds(&commit, &path, 5));
        }
        away
    };
    let away = std::thread::scope(|scope| {
        let reader = scope.spawn(look);
        begin.wait();
        let ends = Done(&done);
        (1..300).for_each(link);
        drop(ends);
        reader.join().unwrap()
    });
    assert_eq!(away, 0, "somebody found nothing there");
    assert_eq!(fs::read_dir(cache.snapshot(&commit)).unwrap().count(), 1, "a part is left");
}

/// Runs `body` with the download of `model.safetensors` into a cache without locks.
fn without_locks<T>(rig: &Rig, weights: &[u8], body: impl FnOnce(&Downloads<'_>, &RemoteFile) -> T) -> T {
    let repo = RepoSpec::parse(REPO).unwrap();
    let mut cache = RepoCache::new(&rig.config.cache_dir, &repo);
    cache.try_lock = |_: &File| Err(TryLockError::Error(std::io::ErrorKind::Unsupported.into()));
    cache.create().unwrap();
    let client = Client::new(&rig.config).unwrap();
    let commit = Commit::parse(COMMIT).unwrap();
    let (meter, stop) = (ByteMeter::default(), Stop::default());
    let downloads = Downloads {
        client: &client,
        cache: &cache,
        repo: &repo,
        commit: &commit,
        meter: &meter,
        stop: &stop,
    };
    let file = RemoteFile {
        path: RepoPath::parse("model.safetensors").unwrap(),
        size: weights.len() as u64,
        id: BlobId::parse(&sha256(weights)).unwrap(),
    };
    body(&downloads, &file)
}

#[test]
fn without_locks_two_downloads_of_a_file_do_not_meet() {
    let files = single(200_000);
    let rig = Rig::new(&files);
    // The first writes wrong bytes while the second writes right ones.
    let slow = Duration::from_millis(2);
    rig.hub.act("model.safetensors", [Act::Damage, Act::Trickle { piece: 5000, pause: slow }]);
    without_locks(&rig, &files[1].1, |downloads, file| {
        std::thread::scope(|scope| {
            let both: Vec<_> = (0..2).map(|_| scope.spawn(|| downloads.fetch(file))).collect();
            both.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
    });
    assert_eq!(fs::read(rig.snapshot().join("model.safetensors")).unwrap(), files[1].1);
    assert_eq!(fs::read_dir(rig.folder().join("blobs")).unwrap().count(), 1, "no part is left");
}

#[test]
fn without_locks_nothing_is_taken_over_or_left() {
    let files = single(200_000);
    let rig = Rig::new(&files);
    fs::create_dir_all(rig.folder().join("blobs")).unwrap();
    fs::write(rig.partial(&files[1].1), b"of another process").unwrap();
    rig.hub.act("model.safetensors", (0..4).map(|_| Act::CutAfter(0)));
    let failed = without_locks(&rig, &files[1].1, |downloads, file| downloads.fetch(file));
    let text = failed.expect_err("four cuts").to_string();
    assert!(text.contains("without locks") && !text.contains("is kept"), "{text}");
    let left: Vec<_> = fs::read_dir(rig.folder().join("blobs")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(fs::read(rig.partial(&files[1].1)).unwrap(), b"of another process");
}
