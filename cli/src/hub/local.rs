//! What the cache already has: the folder of a model, if everything that Gaterail reads is in it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::cache::{RepoCache, has_length, read_limited};
use super::config::HubConfig;
use super::limits::INDEX_BYTES_MAX;
use super::name::{Commit, RepoPath, RepoSpec};
use super::select::{self, CONFIG, FileChoice, INDEX, SINGLE, TOKENIZER};

/// The snapshot folder of `ORG/NAME[@REVISION]`, if it is there and whole. Asks no network.
pub fn resolve_local(name: &str, config: &HubConfig) -> Option<PathBuf> {
    let repo = RepoSpec::parse(name).ok()?;
    let cache = RepoCache::new(&config.cache_dir, &repo);
    let commit = cache.commit_of(repo.revision())?;
    missing(&cache, &commit).is_none().then(|| cache.snapshot(&commit))
}

/// Why `resolve_local` finds nothing although something of the model is here: "2 of 5 shards are missing".
/// `None` if the model is whole, if nothing of it is here, and if `name` is not that of a model.
pub fn why_not_local(name: &str, config: &HubConfig) -> Option<String> {
    let repo = RepoSpec::parse(name).ok()?;
    let cache = RepoCache::new(&config.cache_dir, &repo);
    // A pull that was cut off has left a snapshot, and no name for it yet.
    let commit = cache.commit_of(repo.revision()).or_else(|| cache.only_snapshot())?;
    if cache.snapshot(&commit).is_dir() { missing(&cache, &commit) } else { None }
}

/// The first thing that a snapshot lacks, in words; `None` if it is whole.
///
/// A file gets its name in a snapshot only when all its bytes are there, so that existence is enough; where a
/// list of the commit's files is at hand, the tokenizer and the lengths are held against it too.
pub fn missing(cache: &RepoCache, commit: &Commit) -> Option<String> {
    let snapshot = cache.snapshot(commit);
    if !snapshot.is_dir() {
        return Some(format!("there is no snapshot of commit {commit}"));
    }
    let has = |name: &str| snapshot.join(name).is_file();
    if !has(CONFIG) {
        return Some(format!("{CONFIG} is missing"));
    }
    let shards = match read_limited(&snapshot.join(INDEX), INDEX_BYTES_MAX) {
        Ok(index) => match select::shards(&index) {
            Ok(shards) => Some(shards),
            Err(error) => return Some(error.to_string()),
        },
        Err(_) => None,
    };
    match &shards {
        Some(shards) => {
            let absent: Vec<_> = shards.iter().filter(|shard| !has(shard.as_str())).collect();
            if let Some(first) = absent.first() {
                return Some(format!("{} of {} shards are missing ({first}, …)", absent.len(), shards.len()));
            }
        }
        None if !has(SINGLE) => return Some(format!("{SINGLE} is missing")),
        None => {}
    }
    let tree = tree(cache, commit)?;
    let names: Vec<&RepoPath> = tree.keys().collect();
    let chosen = select::choose("", &names, shards.as_ref(), &FileChoice::Needed).ok()?;
    let whole = |name: &&RepoPath| has_length(&snapshot.join(name.as_str()), tree[*name]);
    let broken = chosen.metadata.iter().chain(&chosen.weights).find(|name| !whole(name))?;
    Some(format!("{broken} is missing or too short"))
}

/// Whether a snapshot can take and give text. Not part of being whole: token ids do without.
pub fn has_tokenizer(cache: &RepoCache, commit: &Commit) -> bool {
    cache.snapshot(commit).join(TOKENIZER).is_file()
}

/// Names and lengths of a commit's files, from the list that Hugging Face's library keeps.
fn tree(cache: &RepoCache, commit: &Commit) -> Option<BTreeMap<RepoPath, u64>> {
    #[derive(Deserialize)]
    struct Tree {
        format_version: u32,
        files: BTreeMap<String, Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        size: u64,
        lfs_size: Option<u64>,
    }
    let text = read_limited(&cache.tree(commit), INDEX_BYTES_MAX).ok()?;
    let tree: Tree = serde_json::from_slice(&text).ok().filter(|tree: &Tree| tree.format_version == 1)?;
    let entry = |(name, entry): (String, Entry)| {
        RepoPath::parse(&name).ok().map(|path| (path, entry.lfs_size.unwrap_or(entry.size)))
    };
    tree.files.into_iter().map(entry).collect()
}
