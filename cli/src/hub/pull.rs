//! The pull: list, choose, see whether it fits, download two at a time, and name the snapshot.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use super::cache::{RepoCache, has_length, read_limited};
use super::client::Client;
use super::config::{HubConfig, TokenUse};
use super::download::Downloads;
use super::error::HubError;
use super::limits::{DISK_MARGIN_BYTES, DOWNLOADS_PARALLEL, INDEX_BYTES_MAX, PROGRESS_EVERY};
use super::listing::{self, Listing, RemoteFile};
use super::local;
use super::name::{Commit, RepoPath, RepoSpec};
use super::retry::Stop;
use super::select::{self, Chosen, FileChoice, INDEX};
use super::{resolve_local, why_not_local};
use crate::progress::{ByteMeter, Progress, bytes_text};

/// What to fetch, and with which means.
#[derive(Clone, Debug)]
pub struct PullRequest<'a> {
    pub repo: RepoSpec,
    pub files: FileChoice,
    pub config: &'a HubConfig,
    /// Free bytes of the disk with the cache, if the caller knows them.
    pub free_bytes: Option<u64>,
}

/// A snapshot that is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    pub folder: PathBuf,
    pub commit: String,
    /// Files of the selection, and their bytes. Both 0 when only the cache was asked.
    pub files: usize,
    /// Those of them of which the server gave a name and a length, and no checksum.
    pub unverified: usize,
    pub bytes_total: u64,
    /// Bytes that came over the network in this pull.
    pub bytes_moved: u64,
    /// Whether there is a `tokenizer.json`. Token ids can be served without it.
    pub tokenizer: bool,
    /// What keeps Gaterail from serving the folder; `None` if nothing does.
    pub missing: Option<String>,
    /// The commit of an older snapshot that the revision's name still leads to, as this one is not whole.
    pub kept: Option<String>,
}

pub fn pull(request: &PullRequest<'_>, progress: &mut dyn Progress) -> Result<Pulled, HubError> {
    let PullRequest { repo, config, .. } = request;
    let cache = RepoCache::new(&config.cache_dir, repo);
    if config.offline {
        return from_cache(repo, &cache, config);
    }
    match config.token_use() {
        TokenUse::None | TokenUse::Sent(_) => {}
        TokenUse::SentInTheOpen(token) => progress.note(&format!(
            "the endpoint is not encrypted: the token from {} can be read on the way",
            token.origin
        )),
        TokenUse::Withheld(token) => progress.note(&format!(
            "the endpoint is not encrypted: the token from {} is not sent (set HF_TOKEN to send it all the same)",
            token.origin
        )),
    }
    let client = Client::new(config)?;
    let listing = listing::fetch(&client, repo, &hint_without_network(repo, config))?;
    if let Some(asked) = Commit::parse(repo.revision())
        && asked != listing.commit
    {
        let why = format!("it is of commit {}, and {asked} was asked for", listing.commit);
        return Err(HubError::BadAnswer { what: format!("the file list of {repo}"), why });
    }

    let meter = ByteMeter::default();
    let pulling = Pull { request, cache: &cache, client: &client, listing: &listing, meter: &meter };
    let outcome = pulling.fetch(progress);
    let last = meter.now();
    if last.total > 0 {
        progress.finish(&last);
    }
    let files = outcome?;

    let missing = local::missing(&cache, &listing.commit);
    let kept = missing.as_ref().and_then(|_| whole_older(repo, &cache, &listing.commit));
    if kept.is_none() {
        cache.write_ref(repo.revision(), &listing.commit)?;
    }
    Ok(Pulled {
        folder: cache.snapshot(&listing.commit),
        commit: listing.commit.to_string(),
        files: files.len(),
        unverified: files.iter().filter(|file| file.id.is_opaque()).count(),
        bytes_total: files.iter().map(|file| file.size).sum(),
        bytes_moved: last.moved,
        tokenizer: local::has_tokenizer(&cache, &listing.commit),
        missing,
        kept: kept.map(|commit| commit.to_string()),
    })
}

/// What the revision's name should go on leading to while the snapshot of `new` is not whole. (Hugging Face's
/// library moves the name with the first file; a model that was there would then be gone.)
fn whole_older(repo: &RepoSpec, cache: &RepoCache, new: &Commit) -> Option<Commit> {
    let older = cache.commit_of(repo.revision()).filter(|older| older != new)?;
    local::missing(cache, &older).is_none().then_some(older)
}

/// What `HF_HUB_OFFLINE` leaves: the snapshot, if it is whole.
fn from_cache(repo: &RepoSpec, cache: &RepoCache, config: &HubConfig) -> Result<Pulled, HubError> {
    let not_here = |missing| {
        let cache = config.cache_dir.clone();
        HubError::NotInCache { repo: repo.to_string(), cache, missing }
    };
    let Some(commit) = cache.commit_of(repo.revision()) else {
        return Err(not_here(format!("revision `{}` was never fetched", repo.revision())));
    };
    match local::missing(cache, &commit) {
        Some(missing) => Err(not_here(missing)),
        None => Ok(Pulled {
            folder: cache.snapshot(&commit),
            commit: commit.to_string(),
            files: 0,
            unverified: 0,
            bytes_total: 0,
            bytes_moved: 0,
            tokenizer: local::has_tokenizer(cache, &commit),
            missing: None,
            kept: None,
        }),
    }
}

/// What to try when there is no network: the snapshot that is there, or a mirror.
fn hint_without_network(repo: &RepoSpec, config: &HubConfig) -> String {
    let name = repo.to_string();
    if let Some(folder) = resolve_local(&name, config) {
        return format!(
            "A whole snapshot of {repo} is here already, in {}; set HF_HUB_OFFLINE=1 to use it without asking.",
            folder.display()
        );
    }
    let why = why_not_local(&name, config).map_or(String::new(), |why| format!(": {why}"));
    format!(
        "Check the network, HTTPS_PROXY, and HF_ENDPOINT if you use a mirror. (HF_HUB_OFFLINE=1 uses what is in \
         the cache, but this model is not complete there{why}.)"
    )
}

struct Pull<'a> {
    request: &'a PullRequest<'a>,
    cache: &'a RepoCache,
    client: &'a Client<'a>,
    listing: &'a Listing,
    meter: &'a ByteMeter,
}

impl Pull<'_> {
    /// Leaves all chosen files in the snapshot, and returns them.
    fn fetch(&self, progress: &mut dyn Progress) -> Result<Vec<RemoteFile>, HubError> {
        let names: Vec<&RepoPath> = self.listing.files.iter().map(|file| &file.path).collect();
        let (repo, choice) = (self.request.repo.id(), &self.request.files);
        // With an index, which weights are taken is known only when it has been read; without it, the same
        // call says at once whether there is anything to take.
        let index =
            names.iter().find(|name| name.as_str() == INDEX && !matches!(choice, FileChoice::Matching(_)));
        let chosen = match index {
            None => select::choose(repo, &names, None, choice)?,
            Some(index) => {
                let shards = self.read_index(index, progress)?;
                select::choose(repo, &names, Some(&shards), choice)?
            }
        };
        let Chosen { metadata, weights } = chosen;
        let metadata = self.completed(&metadata)?;
        let weights = self.completed(&weights)?;
        let all: Vec<RemoteFile> = metadata.iter().chain(&weights).cloned().collect();
        self.announce(&all, progress)?;
        self.cache.create()?;
        self.download(&metadata, progress)?;
        self.download(&weights, progress)?;
        Ok(all)
    }

    fn read_index(&self, index: &RepoPath, progress: &mut dyn Progress) -> Result<select::Shards, HubError> {
        let file = self.completed(std::slice::from_ref(index))?;
        if file.iter().any(|file| file.size > INDEX_BYTES_MAX) {
            let why = format!("it is longer than {INDEX_BYTES_MAX} bytes");
            return Err(HubError::BadAnswer { what: index.to_string(), why });
        }
        self.cache.create()?;
        self.download(&file, progress)?;
        let path = self.cache.pointer(&self.listing.commit, index);
        let text = read_limited(&path, INDEX_BYTES_MAX).map_err(HubError::disk("read", &path))?;
        select::shards(&text)
    }

    fn completed(&self, names: &[RepoPath]) -> Result<Vec<RemoteFile>, HubError> {
        let chosen: std::collections::BTreeSet<&RepoPath> = names.iter().collect();
        let files = self.listing.files.iter().filter(|file| chosen.contains(&file.path));
        files
            .map(|file| listing::complete(self.client, &self.request.repo, &self.listing.commit, file))
            .collect()
    }

    /// Says what is to come, and refuses what does not fit.
    fn announce(&self, files: &[RemoteFile], progress: &mut dyn Progress) -> Result<(), HubError> {
        let PullRequest { repo, free_bytes, config, .. } = self.request;
        let total: u64 = files.iter().map(|file| file.size).sum();
        let needed: u64 = files.iter().map(|file| self.still_needed(file)).sum();
        let here = (total - needed).saturating_sub(self.meter.now().moved);
        let here =
            if here > 0 { format!(", {} of them here already", bytes_text(here)) } else { String::new() };
        let (commit, count) = (&self.listing.commit.as_str()[..8], files.len());
        progress.note(&format!("{repo} at {commit}: {count} files, {}{here}", bytes_text(total)));
        if let Some(free) = *free_bytes
            && needed > 0
            && needed.saturating_add(DISK_MARGIN_BYTES) > free
        {
            return Err(HubError::NoRoom { folder: config.cache_dir.clone(), needed, free });
        }
        // An index that has been read for the choice is met again as one of `files`.
        self.meter.plan(total, files.len() as u64);
        Ok(())
    }

    fn still_needed(&self, file: &RemoteFile) -> u64 {
        let Self { cache, listing, .. } = self;
        if cache.holds(&listing.commit, &file.path, file.size) || has_length(&cache.blob(&file.id), file.size)
        {
            return 0;
        }
        let partial = std::fs::metadata(cache.partial(&file.id)).map_or(0, |partial| partial.len());
        if partial > file.size { file.size } else { file.size - partial }
    }

    /// All of `files`, some at a time, while this thread shows how far they are. The first error stops the
    /// rest.
    fn download(&self, files: &[RemoteFile], progress: &mut dyn Progress) -> Result<(), HubError> {
        let stop = Stop::default();
        let downloads = Downloads {
            client: self.client,
            cache: self.cache,
            repo: &self.request.repo,
            commit: &self.listing.commit,
            meter: self.meter,
            stop: &stop,
        };
        let next = Mutex::new(files.iter());
        let first_error = Mutex::new(None);
        let worker = || {
            loop {
                let file = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(file) = file.filter(|_| !stop.is_raised()) else { return };
                if let Err(error) = downloads.fetch(file) {
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    stop.raise();
                }
            }
        };
        thread::scope(|scope| {
            // Nothing is sent: the channel closes when the last worker has ended, and that is the signal.
            let (alive, ended) = channel::<()>();
            for _ in 0..DOWNLOADS_PARALLEL.min(files.len()) {
                let (alive, worker) = (alive.clone(), &worker);
                scope.spawn(move || {
                    let _alive = alive;
                    worker();
                });
            }
            drop(alive);
            while ended.recv_timeout(PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
                let now = self.meter.now();
                if now.total > 0 {
                    progress.update(&now);
                }
            }
        });
        first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
