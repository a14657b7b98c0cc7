//! One file: from the hub, into its blob, into the snapshot.
//!
//! In: a file with its size and checksum. Out: a blob that has exactly these bytes, under its final name only
//! once they are checked and on the disk. What has arrived before a cut stays in `ETAG.incomplete`, and the
//! next attempt, or the next run, goes on from there.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use super::cache::{RepoCache, has_length};
use super::checksum::{BlobId, Checker};
use super::client::{Answer, Client, Fault, body_fault, resolve_path, text_of};
use super::error::HubError;
use super::limits::{CHECKSUM_RETRIES_MAX, CHUNK_BYTES};
use super::listing::RemoteFile;
use super::name::{Commit, RepoSpec, visible};
use super::open::partial_file;
use super::retry::{Backoff, Stop};
use crate::progress::ByteMeter;

/// What all downloads of a pull share.
pub struct Downloads<'a> {
    pub client: &'a Client<'a>,
    pub cache: &'a RepoCache,
    pub repo: &'a RepoSpec,
    pub commit: &'a Commit,
    pub meter: &'a ByteMeter,
    pub stop: &'a Stop,
}

impl Downloads<'_> {
    /// Leaves the file in the snapshot, whole. What is there already is not fetched.
    pub fn fetch(&self, file: &RemoteFile) -> Result<(), HubError> {
        let Self { cache, commit, meter, .. } = self;
        meter.begin(file.path.as_str());
        if cache.holds(commit, &file.path, file.size) {
            meter.add_resumed(file.size);
            meter.end();
            return Ok(());
        }
        let waiting = || meter.begin(&format!("{} (another process is loading it)", file.path));
        let lock = cache.lock(&file.id, &file.path, self.stop, waiting)?;
        let blob = cache.blob(&file.id);
        if has_length(&blob, file.size) {
            meter.add_resumed(file.size);
        } else {
            meter.begin(file.path.as_str());
            let path = cache.partial_under(&file.id, &lock);
            let fetched = self.fetch_blob(file, &path, &blob);
            fetched.map_err(|error| if lock.excludes() { error } else { forget(&path, error) })?;
        }
        cache.link(commit, &file.path, &file.id)?;
        drop(lock);
        meter.end();
        Ok(())
    }

    fn fetch_blob(&self, file: &RemoteFile, path: &Path, blob: &Path) -> Result<(), HubError> {
        let mut damaged = 0;
        loop {
            let mut partial = Partial::open(path, file, self.meter)?;
            self.fill(&mut partial, file)?;
            let Err(found) = partial.check()? else {
                break;
            };
            fs::remove_file(path).map_err(HubError::disk("removed", path))?;
            self.meter.take_back(file.size);
            damaged += 1;
            if damaged > CHECKSUM_RETRIES_MAX {
                return Err(HubError::Checksum {
                    file: file.path.to_string(),
                    expected: file.id.as_str().to_owned(),
                    found,
                    endpoint: self.client.config.endpoint.clone(),
                });
            }
        }
        fs::rename(path, blob).map_err(HubError::disk("renamed", path))?;
        let folder = blob.parent().unwrap_or(blob);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(HubError::disk("written", folder))
    }

    /// Asks until all bytes are there.
    fn fill(&self, partial: &mut Partial, file: &RemoteFile) -> Result<(), HubError> {
        let patience = &self.client.config.patience;
        let mut backoff = Backoff::new(patience);
        let mut had = partial.have;
        while partial.have < file.size {
            let (why, after) = match self.read_on(partial, file) {
                Ok(()) => continue,
                Err(Fault::Fatal(error)) => return Err(error),
                Err(Fault::Refused(refusal)) => {
                    let what = format!("{} of {}", file.path, self.repo);
                    return Err(self.client.refusal(self.repo, &what, refusal));
                }
                Err(Fault::Again { why, after, .. }) => (why, after),
            };
            // What a restart throws away has to come again before anything counts as new.
            if partial.have >= had.saturating_add(patience.progress_bytes) {
                backoff.progressed();
                had = partial.have;
            }
            let Some(pause) = backoff.pause(after, patience.attempts_max) else {
                let (have, size, attempts) = (partial.have, file.size, backoff.attempts());
                let file = file.path.to_string();
                return Err(HubError::Interrupted { file, have, size, attempts, why, kept: true });
            };
            if self.stop.sleep(pause) {
                return Err(HubError::Stopped);
            }
        }
        Ok(())
    }

    /// One request, and as many of its bytes as come.
    fn read_on(&self, partial: &mut Partial, file: &RemoteFile) -> Result<(), Fault> {
        let address = resolve_path(self.repo, self.commit, file.path.as_str());
        let answer = self.client.read(&address, partial.have)?;
        self.check_identity(&answer, file).map_err(Fault::Fatal)?;
        match start_of(&answer, partial.have, file).map_err(Fault::Fatal)? {
            Start::Here => {}
            Start::Over => partial.restart(self.meter).map_err(Fault::Fatal)?,
            Start::Nowhere => {
                partial.restart(self.meter).map_err(Fault::Fatal)?;
                return Err(Fault::again("the server does not have the part that was asked for".to_owned()));
            }
        }
        let left = file.size - partial.have;
        let mut body = answer.body.into_reader().take(left + 1);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            if self.stop.is_raised() {
                return Err(Fault::Fatal(HubError::Stopped));
            }
            let count = match body.read(&mut chunk) {
                Ok(0) if partial.have == file.size => return Ok(()),
                Ok(0) => return Err(Fault::again("the connection was cut".to_owned())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::again(body_fault(error))),
            };
            if partial.have + count as u64 > file.size {
                return Err(Fault::Fatal(longer(partial.have + count as u64, file)));
            }
            partial.append(&chunk[..count]).map_err(Fault::Fatal)?;
            self.meter.add(count as u64);
        }
    }

    /// The hub must send the file that it listed.
    fn check_identity(&self, answer: &Answer, file: &RemoteFile) -> Result<(), HubError> {
        let what = format!("the request for {}", file.path);
        if let Some(commit) = &answer.linked.commit
            && commit != self.commit.as_str()
        {
            let why = format!("it is of commit {commit}, and {} was asked for", self.commit);
            return Err(HubError::BadAnswer { what, why });
        }
        if let Some(id) = &answer.linked.id
            && id.contradicts(&file.id)
        {
            let why = format!("its checksum is {}, and the listing says {}", id.as_str(), file.id.as_str());
            return Err(HubError::BadAnswer { what, why });
        }
        match answer.linked.size {
            Some(sent) if sent != file.size => Err(longer(sent, file)),
            _ => Ok(()),
        }
    }
}

/// After a failure without a lock: nobody would find what has arrived under that name.
fn forget(partial: &Path, error: HubError) -> HubError {
    let _ = fs::remove_file(partial);
    match error {
        HubError::Interrupted { file, have, size, attempts, why, .. } => {
            HubError::Interrupted { file, have, size, attempts, why, kept: false }
        }
        error => error,
    }
}

fn longer(sent: u64, file: &RemoteFile) -> HubError {
    HubError::SizeDiffers { file: file.path.to_string(), listed: file.size, sent }
}

/// Where the bytes of an answer belong.
enum Start {
    /// At the end of what is there.
    Here,
    /// The server has ignored the range: at the beginning.
    Over,
    /// The server refuses the range.
    Nowhere,
}

fn start_of(answer: &Answer, have: u64, file: &RemoteFile) -> Result<Start, HubError> {
    let bad = |why: String| HubError::BadAnswer { what: format!("the request for {}", file.path), why };
    if let Some(encoding) = text_of(&answer.headers, "content-encoding")
        && encoding != "identity"
    {
        return Err(bad(format!("something on the way has compressed it ({})", visible(encoding))));
    }
    match answer.status {
        416 => Ok(Start::Nowhere),
        206 => {
            let range = text_of(&answer.headers, "content-range").unwrap_or_default();
            let (first, total) = parse_range(range)
                .ok_or_else(|| bad(format!("its Content-Range is `{}`", visible(range))))?;
            match total {
                Some(total) if total != file.size => Err(longer(total, file)),
                _ if first != have => Err(bad(format!("it starts at byte {first} and not at {have}"))),
                _ => Ok(Start::Here),
            }
        }
        _ => {
            let length = text_of(&answer.headers, "content-length").and_then(|text| text.parse().ok());
            match length {
                Some(length) if length != file.size => Err(longer(length, file)),
                _ if have == 0 => Ok(Start::Here),
                _ => Ok(Start::Over),
            }
        }
    }
}

/// `bytes FIRST-LAST/TOTAL`; the total may be `*`.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.parse().ok()?;
    if total == "*" { Some((first, None)) } else { Some((first, Some(total.parse().ok()?))) }
}

/// The file `ETAG.incomplete`, and the checksum of what is in it.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    have: u64,
    checker: Checker,
    id: &'a BlobId,
    size: u64,
}

impl<'a> Partial<'a> {
    /// Opens what an earlier attempt has left, and reads it once for the checksum.
    fn open(path: &'a Path, remote: &'a RemoteFile, meter: &ByteMeter) -> Result<Self, HubError> {
        let file = partial_file(path).map_err(HubError::disk("opened", path))?;
        let RemoteFile { id, size, .. } = remote;
        let mut partial = Self { path, file, have: 0, checker: id.checker(*size), id, size: *size };
        let length = partial.file.metadata().map_err(HubError::disk("read", path))?.len();
        if length > *size {
            partial.restart(meter)?;
            return Ok(partial);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = partial.file.read(&mut chunk).map_err(HubError::disk("read", path))?;
            if count == 0 {
                meter.add_resumed(partial.have);
                return Ok(partial);
            }
            partial.checker.update(&chunk[..count]);
            partial.have += count as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::disk("written", self.path))?;
        self.checker.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Forgets everything.
    fn restart(&mut self, meter: &ByteMeter) -> Result<(), HubError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(HubError::disk("emptied", self.path))?;
        meter.take_back(self.have);
        self.have = 0;
        self.checker = self.id.checker(self.size);
        Ok(())
    }

    /// On the disk, and as it should be? The inner `Err` is the checksum that was found.
    fn check(self) -> Result<Result<(), String>, HubError> {
        self.file.sync_all().map_err(HubError::disk("written", self.path))?;
        Ok(self.checker.finish())
    }
}
