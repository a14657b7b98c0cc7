//! What the loader asks for packed weights, and tells of those it made.

use std::collections::HashSet;
use std::path::PathBuf;

use gaterail_kernels::{Arena, Device, Packed, PackedFormat, Weight};

use super::CacheError;
use super::folder;
use super::index::Place;
use super::key::CacheKey;
use super::matrix::Matrix;
use super::reader::CacheFile;
use super::writer;

/// Where packed weights are kept.
#[derive(Clone, Debug)]
pub struct PackedCache {
    pub folder: PathBuf,
    /// Models with fewer bytes of packed weights are packed every time.
    pub bytes_min: u64,
    /// The most that all files may take; `None`: half of what the disk has free.
    pub bytes_max: Option<u64>,
}

impl PackedCache {
    /// Below this, packing takes less than a second.
    pub const BYTES_MIN: u64 = 256 << 20;

    pub fn new(folder: PathBuf) -> PackedCache {
        PackedCache { folder, bytes_min: PackedCache::BYTES_MIN, bytes_max: None }
    }
}

/// Files of other shards that are looked into.
const FILES_MAX: usize = 32;

/// The cache while a model is loaded.
pub struct Store {
    cache: PackedCache,
    key: CacheKey,
    /// Looked into in this order.
    files: Vec<CacheFile>,
    /// Everything that was packed or read, in the order of loading.
    held: Vec<(Place, Matrix)>,
    /// How many of them were packed.
    packed: usize,
    /// How many of them are where they stay.
    settled: usize,
    notes: Vec<String>,
}

/// All that lies packed in the files of a key's checkpoint, configuration and precision. A file that cannot be used is passed over:
/// whoever loads says so.
pub(crate) fn packed_places(cache: &PackedCache, key: &CacheKey) -> Vec<Place> {
    let files = folder::of_digest(&cache.folder, key).into_iter().take(FILES_MAX);
    let files = files.filter_map(|path| CacheFile::open(&path, key).ok().flatten());
    files.flat_map(|file| file.places()).collect()
}

/// Packed weights that are in no file yet.
#[must_use]
pub struct PendingWrite {
    cache: PackedCache,
    key: CacheKey,
    matrices: Vec<(Place, Matrix)>,
}

/// What came of the cache of packed weights.
#[must_use]
#[derive(Default)]
pub struct CacheOutcome {
    /// Lines for a person; none where all went well.
    pub notes: Vec<String>,
    /// Weights that are worth keeping and are in no file yet.
    pub pending: Option<PendingWrite>,
}

/// A file that has been written.
#[derive(Clone, Debug)]
pub struct Written {
    pub path: PathBuf,
    pub bytes: u64,
}

impl Store {
    /// Opens this key's file if there is one, then the one that holds all experts, then those of other shards: what one worker
    /// has packed another finds when it takes its place.
    pub fn open(cache: PackedCache, key: CacheKey) -> Store {
        let mut store = Store {
            cache,
            key,
            files: Vec::new(),
            held: Vec::new(),
            packed: 0,
            settled: 0,
            notes: Vec::new(),
        };
        let folder = &store.cache.folder;
        let mut paths = vec![store.key.path(folder)];
        paths.extend(store.key.whole_path(folder));
        let others = folder::of_digest(folder, &store.key).into_iter().filter(|path| !paths.contains(path));
        let others: Vec<PathBuf> = others.take(FILES_MAX).collect();
        paths.extend(others);
        for path in paths {
            match CacheFile::open(&path, &store.key) {
                Ok(file) => store.files.extend(file),
                Err(error) => store.notes.push(unusable(&path, &error)),
            }
        }
        store
    }

    /// The matrix at a place, if the cache has it in a form that `accepts` takes.
    pub fn recall(
        &mut self,
        place: &Place,
        accepts: impl Fn(PackedFormat) -> bool,
        device: &Device,
        arena: &mut Arena,
    ) -> Option<Packed> {
        let mut at = 0;
        while let Some(open) = self.files.get_mut(at) {
            match open.read(place, &accepts, device, arena) {
                Ok(Some(packed)) => {
                    self.held.push((place.clone(), Matrix::Here(packed.clone())));
                    return Some(packed);
                }
                Ok(None) => at += 1,
                Err(error) => {
                    self.notes.push(unusable(open.path(), &error));
                    self.files.remove(at);
                }
            }
        }
        None
    }

    /// A matrix that had to be packed.
    pub fn keep(&mut self, place: Place, packed: &Packed) {
        self.held.push((place, Matrix::Here(packed.clone())));
        self.packed += 1;
    }

    /// Where the matrices that came since the last call have gone: what a card holds is not held here as well.
    pub fn settle(&mut self, at: &[(Place, &Weight)]) {
        for (place, held) in &mut self.held[self.settled..] {
            let there = at.iter().find(|(moved, _)| moved == place);
            if let Some(matrix) = there.and_then(|(_, weight)| Matrix::on_card(weight)) {
                *held = matrix;
            }
        }
        self.settled = self.held.len();
    }

    /// What a person should know, and what is to be written.
    pub fn finish(mut self) -> (Vec<String>, Option<PendingWrite>) {
        // What was read in vain, because its neighbour was not to be had, has been packed too.
        let mut seen = HashSet::new();
        self.held.retain(|(place, _)| seen.insert(place.clone()));
        self.files.iter().filter(|file| file.was_read()).for_each(CacheFile::touch);
        let bytes: u64 = self.held.iter().map(|(_, matrix)| matrix.stored_bytes() as u64).sum();
        let worth_it = self.packed > 0 && bytes >= self.cache.bytes_min;
        let pending = PendingWrite { cache: self.cache, key: self.key, matrices: self.held };
        (self.notes, worth_it.then_some(pending))
    }
}

fn unusable(path: &std::path::Path, error: &CacheError) -> String {
    format!("packed weights: {} {error}; it is not used, and made again", path.display())
}

impl PendingWrite {
    /// The bytes of all matrices.
    pub fn bytes(&self) -> u64 {
        self.matrices.iter().map(|(_, matrix)| matrix.stored_bytes() as u64).sum()
    }

    /// Writes the file; takes seconds. `written` is told of bytes. Whatever fails, the model runs without.
    pub fn write(self, written: &mut dyn FnMut(u64)) -> Result<Written, CacheError> {
        let folder = &self.cache.folder;
        if !self.key.is_current() {
            return Err(CacheError("the model's files have changed since they were opened".to_string()));
        }
        std::fs::create_dir_all(folder).map_err(CacheError::io(&folder.display().to_string()))?;
        // The file of this key, if there still is one, is replaced.
        folder::make_room(folder, self.bytes(), self.cache.bytes_max)?;
        let (path, bytes) = writer::write(folder, &self.key, &self.matrices, written)?;
        Ok(Written { path, bytes })
    }
}
