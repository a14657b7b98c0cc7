//! The file of keys and the door, without a socket.

use std::os::unix::fs::PermissionsExt;

use super::*;

struct House {
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> House {
        House { folder: tempfile::tempdir().expect("a folder") }
    }

    fn file(&self) -> KeyFile {
        KeyFile::new(self.folder.path().join("gaterail/keys.json"))
    }

    fn add(&self, tenant: &str) -> String {
        let key = NewKey::make(tenant, KeyLimits::default(), 1).expect("random numbers");
        self.file().update(|keys| keys.push(key.record)).expect("written");
        key.text
    }

    fn gate(&self) -> Gate {
        Gate::new(Some(self.file()), &[]).expect("a file that can be read")
    }
}

fn tenant(gate: &Gate, key: &str) -> Option<String> {
    gate.authenticate(Some(&format!("Bearer {key}"))).ok().map(|caller| caller.tenant.0.to_string())
}

#[test]
fn a_door_without_keys_is_open_and_closes_for_good() {
    let house = House::new();
    let gate = house.gate();
    assert!(gate.is_open() && gate.authenticate(None).is_ok());
    let key = house.add("alice");
    assert!(gate.reload().expect("readable"));
    assert!(!gate.is_open() && gate.authenticate(None).is_err());
    assert_eq!(tenant(&gate, &key).as_deref(), Some("alice"));
    std::fs::remove_file(house.file().path()).expect("removed");
    assert!(gate.reload().is_ok());
    assert_eq!(tenant(&gate, &key), None);
    assert!(!gate.is_open(), "no file is no key, not an open door");
}

#[test]
fn one_key_is_not_another() {
    let house = House::new();
    let keys: Vec<String> = (0..5).map(|index| house.add(&format!("tenant-{index}"))).collect();
    let gate = house.gate();
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(tenant(&gate, key), Some(format!("tenant-{index}")));
        let mut near = key.clone();
        let last = near.pop().expect("a key");
        near.push(if last == '0' { '1' } else { '0' });
        assert_eq!(tenant(&gate, &near), None);
        assert_eq!(tenant(&gate, &key[..key.len() - 1]), None);
    }
    for header in [None, Some(""), Some("Bearer"), Some("Bearer "), Some(keys[0].as_str()), Some("Basic x")] {
        assert!(gate.authenticate(header).is_err(), "{header:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_changes_nothing() {
    let house = House::new();
    let key = house.add("alice");
    let gate = house.gate();
    let path = house.file().path().to_path_buf();
    let whole = std::fs::read(&path).expect("readable");
    for broken in ["", "{", "{\"version\": 2, \"keys\": []}", "{\"version\": 1, \"keys\": [], \"more\": 1}"] {
        std::fs::write(&path, broken).expect("written");
        assert!(gate.reload().is_err(), "{broken:?}");
        assert_eq!(tenant(&gate, &key).as_deref(), Some("alice"));
    }
    std::fs::write(&path, whole).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).expect("changed");
    let error = house.file().load().expect_err("others may write it");
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn many_writers_lose_nothing() {
    let house = House::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|index| drop(house.add(&format!("tenant-{index}")))));
        }
    });
    assert_eq!(house.file().load().expect("readable").len(), 20);
    let mode = house.file().path().metadata().expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_link_to_the_file_is_the_same_file() {
    let house = House::new();
    house.add("alice");
    let link = house.folder.path().join("link.json");
    std::os::unix::fs::symlink("gaterail/keys.json", &link).expect("a link");
    let linked = KeyFile::new(&link);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..10).for_each(|index| drop(house.add(&format!("tenant-{index}")))));
        for index in 0..10 {
            let key =
                NewKey::make(&format!("linked-{index}"), KeyLimits::default(), 1).expect("random numbers");
            linked.update(|keys| keys.push(key.record)).expect("written");
        }
    });
    assert!(link.is_symlink(), "what was a link is one");
    assert_eq!(house.file().load().expect("readable").len(), 21);
}

#[test]
fn a_link_may_be_there_before_its_file() {
    let house = House::new();
    let link = house.folder.path().join("link.json");
    std::os::unix::fs::symlink("gaterail/keys.json", &link).expect("a link");
    let key = NewKey::make("linked", KeyLimits::default(), 1).expect("random numbers");
    KeyFile::new(&link).update(|keys| keys.push(key.record)).expect("written");
    assert!(link.is_symlink(), "what was a link is one");
    assert_eq!(house.file().load().expect("readable").len(), 1);
    assert!(house.file().path().with_extension("lock").exists(), "the lock is that of the file");
    assert!(!link.with_extension("lock").exists());
}

#[test]
fn who_holds_the_lock_for_ever_is_not_waited_for() {
    let house = House::new();
    house.add("alice");
    let held = std::fs::File::open(house.file().path().with_extension("lock")).expect("there");
    held.lock().expect("free");
    let wait = std::time::Duration::from_millis(50);
    let error = house.file().update_within(wait, |keys| keys.clear()).expect_err("somebody else has it");
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    assert_eq!(house.file().load().expect("readable").len(), 1);
    drop(held);
    house.add("bob");
}

#[test]
fn what_was_used_outlives_a_change_of_other_keys() {
    let house = House::new();
    let limits = KeyLimits { requests_per_minute: Some(1), streams: Some(1), ..KeyLimits::default() };
    let key = NewKey::make("alice", limits, 1).expect("random numbers");
    house.file().update(|keys| keys.push(key.record)).expect("written");
    let gate = house.gate();
    let caller = || gate.authenticate(Some(&format!("Bearer {}", key.text))).expect("a key");
    let now = std::time::Instant::now();
    assert!(caller().count_request(now).is_ok());
    let held = caller().open_stream().expect("the first");
    house.add("bob");
    assert!(gate.reload().expect("readable"));
    assert!(caller().count_request(now).is_err(), "a change of another key refilled the bucket");
    assert!(caller().open_stream().is_err());
    drop(held);
    assert!(caller().open_stream().is_ok());
}

#[test]
fn who_is_alone_shares_with_nobody() {
    let house = House::new();
    let (first, _) = (house.add("alice"), house.add("alice"));
    let gate = house.gate();
    let shares = || gate.authenticate(Some(&format!("Bearer {first}"))).expect("a key").shares_queue;
    assert!(!shares(), "two keys of one tenant");
    house.add("bob");
    assert!(gate.reload().expect("readable"));
    assert!(shares());
    assert!(!Gate::new(None, &[]).expect("a door").authenticate(None).expect("open").shares_queue);
}

#[test]
fn what_was_used_outlives_a_change_of_limits() {
    let house = House::new();
    let limits = KeyLimits { requests_per_minute: Some(4), tokens_per_minute: Some(1000), streams: Some(2) };
    let key = NewKey::make("alice", limits, 1).expect("random numbers");
    house.file().update(|keys| keys.push(key.record)).expect("written");
    let gate = house.gate();
    let caller = || gate.authenticate(Some(&format!("Bearer {}", key.text))).expect("a key");
    let now = std::time::Instant::now();
    let set = |limits: KeyLimits| {
        house.file().update(|keys| keys[0].limits = limits).expect("written");
        assert!(gate.reload().expect("readable"));
    };
    (0..3).for_each(|_| caller().count_request(now).expect("four a minute"));
    let mut charge = caller().charge_tokens(900, now).expect("a thousand a minute");
    let held = (caller().open_stream().expect("two"), caller().open_stream().expect("two"));

    // Of three, three are used; of five, two are left.
    set(KeyLimits { requests_per_minute: Some(3), ..limits });
    assert!(caller().count_request(now).is_err());
    set(KeyLimits { requests_per_minute: Some(5), streams: Some(3), tokens_per_minute: Some(2000) });
    let now = std::time::Instant::now();
    (0..2).for_each(|_| caller().count_request(now).expect("five a minute"));
    assert!(caller().count_request(now).is_err());
    assert!(caller().charge_tokens(1200, now).is_err(), "900 of 2000 are used");
    // What was taken before the change is settled after it.
    charge.settle(0, now);
    drop(caller().charge_tokens(1900, now).expect("none of 2000 are used"));
    let third = caller().open_stream().expect("three");
    assert!(caller().open_stream().is_err());
    drop((held, third));
    set(KeyLimits { streams: Some(1), ..KeyLimits::default() });
    let _one = caller().open_stream().expect("one");
    assert!(caller().open_stream().is_err());
}

#[test]
fn keys_of_the_command_line_are_tenants_of_their_own() {
    let gate = Gate::new(None, &["sk-one".into(), "sk-two".into()]).expect("a door");
    let caller = |key: &str| gate.authenticate(Some(&format!("Bearer {key}"))).expect("a key");
    assert_ne!(caller("sk-one").tenant, caller("sk-two").tenant);
    assert!(caller("sk-one").shares_queue);
}

#[test]
fn empty_keys_open_nothing() {
    let blank = Gate::new(None, &[String::new(), " ".into()]).expect("a door");
    assert!(blank.is_open(), "a door with empty keys only is one without keys, and says so");
    let mixed = Gate::new(None, &[String::new(), "sk-one".into()]).expect("a door");
    for header in ["Bearer ", "Bearer  ", "bearer \t"] {
        assert!(mixed.authenticate(Some(header)).is_err(), "{header:?}");
    }
    assert_eq!(tenant(&mixed, "sk-one").as_deref(), Some("api-key:1"));
}

#[test]
fn a_charge_that_nobody_settles_is_given_back() {
    let house = House::new();
    let limits = KeyLimits { tokens_per_minute: Some(1000), ..KeyLimits::default() };
    let key = NewKey::make("alice", limits, 1).expect("random numbers");
    house.file().update(|keys| keys.push(key.record)).expect("written");
    let gate = house.gate();
    let caller = gate.authenticate(Some(&format!("Bearer {}", key.text))).expect("let in");
    let now = std::time::Instant::now();
    for _ in 0..5 {
        drop(caller.charge_tokens(1_000_000_000, now).expect("a full bucket"));
    }
    let mut charge = caller.charge_tokens(900, now).expect("still full");
    assert!(caller.charge_tokens(900, now).is_err());
    charge.settle(100, now);
    drop(charge);
    drop(caller.charge_tokens(900, now).expect("what was not used is there again"));
}
