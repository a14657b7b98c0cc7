//! What a repository holds at a revision: one call, parsed into checked names, sizes and checksums.

use std::collections::HashSet;
use std::io::{self, Read};
use std::time::Instant;

use serde::Deserialize;

use super::checksum::BlobId;
use super::client::{Client, Fault, body_fault, resolve_path};
use super::config::HubConfig;
use super::error::HubError;
use super::limits::{CHUNK_BYTES, FILE_BYTES_MAX, FILES_MAX, LISTING_BYTES_MAX};
use super::name::{Commit, RepoPath, RepoSpec, is_hex, percent_encoded};
use super::retry::{Backoff, Stop};

/// The files of a repository at one commit.
#[derive(Debug)]
pub struct Listing {
    pub commit: Commit,
    pub files: Vec<ListedFile>,
}

/// A file as the listing has it. A mirror may leave out what the hub itself always sends.
#[derive(Debug)]
pub struct ListedFile {
    pub path: RepoPath,
    pub size: Option<u64>,
    pub id: Option<BlobId>,
}

/// A file of which all is known that its download needs.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    pub path: RepoPath,
    pub size: u64,
    pub id: BlobId,
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Asks the hub. `hint` is added to the error when it cannot be reached.
pub fn fetch(client: &Client<'_>, repo: &RepoSpec, hint: &str) -> Result<Listing, HubError> {
    let revision = percent_encoded(repo.revision(), b"");
    let path = format!("/api/models/{}/revision/{revision}?blobs=true", repo.id());
    let what = format!("the file list of {repo}");
    let body = with_retries(client, repo, &what, hint, || {
        let deadline = Instant::now() + client.config.patience.listing_timeout;
        let answer = client.read(&path, 0)?;
        read_by(deadline, answer.body.into_reader().take(LISTING_BYTES_MAX + 1))
    })?;
    if body.len() as u64 > LISTING_BYTES_MAX {
        let why = format!("it is longer than {LISTING_BYTES_MAX} bytes");
        return Err(HubError::BadAnswer { what, why });
    }
    parse(&body, &what)
}

/// The whole body, unless it takes too long. (A single read has a limit of its own.)
fn read_by(deadline: Instant, mut from: impl Read) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        if Instant::now() >= deadline {
            return Err(Fault::again("the server sends too slowly".to_owned()));
        }
        match from.read(&mut chunk) {
            Ok(0) => return Ok(body),
            Ok(count) => body.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::again(body_fault(error))),
        }
    }
}

/// Parses the hub's answer, which is not trusted. `what` names it in errors.
pub fn parse(body: &[u8], what: &str) -> Result<Listing, HubError> {
    let bad = |why: String| HubError::BadAnswer { what: what.to_owned(), why };
    let info: ModelInfo =
        serde_json::from_slice(body).map_err(|error| bad(format!("it is not what a hub sends ({error})")))?;
    let commit = Commit::parse(&info.sha).ok_or_else(|| bad("it names no commit".to_owned()))?;
    if info.siblings.len() > FILES_MAX {
        return Err(bad(format!("it lists {} files; {FILES_MAX} is the limit", info.siblings.len())));
    }
    let files = info.siblings.into_iter().map(listed).collect::<Result<Vec<_>, _>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = files.iter().find(|file| !seen.insert(&file.path)) {
        return Err(bad(format!("it lists {} twice", twice.path)));
    }
    Ok(Listing { commit, files })
}

fn listed(sibling: Sibling) -> Result<ListedFile, HubError> {
    let path = RepoPath::parse(&sibling.rfilename)?;
    let bad = |why: &str| HubError::BadAnswer { what: format!("the listing of {path}"), why: why.to_owned() };
    let lfs_size = sibling.lfs.as_ref().and_then(|lfs| lfs.size);
    if let (Some(listed), Some(sent)) = (sibling.size, lfs_size)
        && listed != sent
    {
        return Err(HubError::SizeDiffers { file: path.to_string(), listed, sent });
    }
    let size = lfs_size.or(sibling.size);
    if size.is_some_and(|size| size > FILE_BYTES_MAX) {
        return Err(bad(&format!("its size is beyond {FILE_BYTES_MAX} bytes")));
    }
    let id = match (&sibling.lfs, &sibling.blob_id) {
        (Some(Lfs { sha256: Some(sum), .. }), _) if is_hex(sum, 64) => BlobId::parse(sum),
        (Some(Lfs { sha256: Some(_), .. }), _) => return Err(bad("its sha256 is not one")),
        (Some(_), _) | (None, None) => None,
        (None, Some(sum)) if is_hex(sum, 40) => BlobId::parse(sum),
        (None, Some(_)) => return Err(bad("its blob id is not a git checksum")),
    };
    Ok(ListedFile { path, size, id })
}

/// Completes a listed file, by asking the hub for what the listing left out.
pub fn complete(
    client: &Client<'_>,
    repo: &RepoSpec,
    commit: &Commit,
    file: &ListedFile,
) -> Result<RemoteFile, HubError> {
    if let (Some(size), Some(id)) = (file.size, &file.id) {
        return Ok(RemoteFile { path: file.path.clone(), size, id: id.clone() });
    }
    let address = resolve_path(repo, commit, file.path.as_str());
    let what = format!("{} of {repo}", file.path);
    let linked = with_retries(client, repo, &what, "", || client.describe(&address))?;
    let bad = |why: &str| HubError::BadAnswer { what: what.clone(), why: why.to_owned() };
    let size = linked.size.or(file.size).ok_or_else(|| bad("the hub does not say how long it is"))?;
    if let Some(listed) = file.size
        && listed != size
    {
        return Err(HubError::SizeDiffers { file: file.path.to_string(), listed, sent: size });
    }
    if size > FILE_BYTES_MAX {
        return Err(bad("its size is beyond all bounds"));
    }
    let id = file.id.clone().or(linked.id).ok_or_else(|| bad("the hub gives it no ETag that can be used"))?;
    Ok(RemoteFile { path: file.path.clone(), size, id })
}

/// A small request, as often as patience allows.
fn with_retries<T>(
    client: &Client<'_>,
    repo: &RepoSpec,
    what: &str,
    hint: &str,
    mut attempt: impl FnMut() -> Result<T, Fault>,
) -> Result<T, HubError> {
    let HubConfig { patience, endpoint, .. } = client.config;
    let mut backoff = Backoff::new(patience);
    let never = Stop::default();
    loop {
        let (why, status, after, reached) = match attempt() {
            Ok(answer) => return Ok(answer),
            Err(Fault::Fatal(error)) => return Err(error),
            Err(Fault::Refused(refusal)) => return Err(client.refusal(repo, what, refusal)),
            Err(Fault::Again { why, status, after, reached }) => (why, status, after, reached),
        };
        let attempts_max = if reached { patience.attempts_max } else { patience.connect_attempts_max };
        let Some(pause) = backoff.pause(after, attempts_max) else {
            let attempts = backoff.attempts();
            let said = after.map(|after| format!(" and asked to come back in {} s", after.as_secs()));
            return Err(match status {
                Some(status) => HubError::Answered {
                    what: what.to_owned(),
                    status,
                    said: said.unwrap_or_default(),
                    attempts,
                },
                None => HubError::Unreachable { endpoint: endpoint.clone(), why, hint: hint.to_owned() },
            });
        };
        never.sleep(pause);
    }
}
