//! The files of a model folder, their tensors by name, and the index that ties shards together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use gaterail_kernels::Bytes;
use serde::Deserialize;

use super::CheckpointError;
use super::header::{StoredType, TensorEntry, parse_header};
use super::map::map_file;
use super::stamp::{FileIdentity, Stamp};
use crate::file::read_limited;
use crate::gguf::GgufFile;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Larger index files are refused.
const INDEX_BYTES_MAX: u64 = 256 << 20;
const SHARDS_MAX: usize = 4096;

/// An open checkpoint. Opening maps files and reads headers; no tensor is touched.
pub struct Checkpoint {
    /// Or the GGUF file itself.
    folder: PathBuf,
    files: Vec<MappedFile>,
    tensors: HashMap<String, (usize, TensorEntry)>,
}

struct MappedFile {
    path: PathBuf,
    bytes: Bytes,
    /// `None` for bytes that are no file.
    stamp: Option<Stamp>,
}

/// One tensor: its description and its bytes.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    pub path: &'a Path,
    pub name: &'a str,
    pub stored: StoredType,
    pub shape: &'a [usize],
    pub bytes: Bytes,
}

impl Checkpoint {
    /// Opens `model.safetensors` if it is there, as transformers does, else the shards that the index names.
    pub fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
        if !folder.is_dir() {
            let detail = "not a folder".to_string();
            return Err(CheckpointError::Invalid { path: folder.to_path_buf(), detail });
        }
        let index = folder.join(INDEX);
        let single = folder.join(SINGLE);
        if single.is_file() {
            let mut checkpoint = Checkpoint::empty(folder);
            checkpoint.add_file(single)?;
            Ok(checkpoint)
        } else if index.is_file() {
            Checkpoint::open_shards(folder, &index)
        } else {
            let detail = match pickles(folder) {
                Some(pickle) => format!(
                    "neither {SINGLE} nor {INDEX}; {pickle} is a pickle, which can run code when read: convert it"
                ),
                None => format!("neither {SINGLE} nor {INDEX}"),
            };
            Err(CheckpointError::Invalid { path: folder.to_path_buf(), detail })
        }
    }

    /// The tensors of an open GGUF file.
    pub fn of_gguf(gguf: &GgufFile) -> Checkpoint {
        let mut checkpoint = Checkpoint::empty(gguf.path());
        // The header has been checked to name no tensor twice.
        let entries = gguf.tensors().iter().map(|entry| (entry.name.clone(), (0, entry.clone())));
        checkpoint.tensors = entries.collect();
        let (path, bytes) = (gguf.path().to_path_buf(), gguf.bytes().clone());
        checkpoint.files.push(MappedFile { path, bytes, stamp: gguf.stamp() });
        checkpoint
    }

    fn empty(folder: &Path) -> Checkpoint {
        Checkpoint { folder: folder.to_path_buf(), files: Vec::new(), tensors: HashMap::new() }
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Checkpoint, CheckpointError> {
        let places = read_index(index)?;
        let invalid = |detail| CheckpointError::Invalid { path: index.to_path_buf(), detail };
        let shards: BTreeSet<&str> = places.values().map(String::as_str).collect();
        let mut checkpoint = Checkpoint::empty(folder);
        for shard in shards {
            let path = folder.join(shard);
            if !path.is_file() {
                return Err(invalid(format!("names {shard}, which is missing in the folder")));
            }
            checkpoint.add_file(path)?;
        }
        checkpoint.check_index(index, &places)?;
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let (bytes, stamp) = map_file(&path)?;
        let entries = parse_header(bytes.as_slice())
            .map_err(|detail| CheckpointError::Invalid { path: path.clone(), detail })?;
        let file = self.files.len();
        for entry in entries {
            let tensor = entry.name.clone();
            if let Some((other, _)) = self.tensors.insert(tensor.clone(), (file, entry)) {
                let detail = format!("stands in {} too", self.files[other].path.display());
                return Err(CheckpointError::Tensor { path, tensor, detail });
            }
        }
        self.files.push(MappedFile { path, bytes, stamp: Some(stamp) });
        Ok(())
    }

    /// The index and the files must agree on every tensor's place.
    fn check_index(&self, index: &Path, places: &BTreeMap<String, String>) -> Result<(), CheckpointError> {
        let tensor = |name: &str, detail| CheckpointError::Tensor {
            path: index.to_path_buf(),
            tensor: name.to_string(),
            detail,
        };
        for (name, file) in places {
            match self.tensors.get(name) {
                None => return Err(tensor(name, format!("is not in {file}"))),
                Some((at, _)) if self.files[*at].path.file_name() != Some(file.as_ref()) => {
                    let actual = self.files[*at].path.display();
                    return Err(tensor(name, format!("should be in {file} but is in {actual}")));
                }
                Some(_) => {}
            }
        }
        match self.tensors.keys().filter(|name| !places.contains_key(*name)).min() {
            Some(name) => Err(tensor(name, "is in a shard but not in the index".to_string())),
            None => Ok(()),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors' data together.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.values().map(|(_, entry)| entry.bytes.len() as u64).sum()
    }

    /// What tells these files from all others; `None` if one of them is no file.
    pub fn identity(&self) -> Option<Vec<FileIdentity<'_>>> {
        let files = self.files.iter().zip(self.parts());
        files
            .map(|(file, (header, _))| {
                Some(FileIdentity { path: file.path.clone(), stamp: file.stamp?, header })
            })
            .collect()
    }

    /// Every file's header, which is all before its first tensor, and its data.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut ends: Vec<usize> = self.files.iter().map(|file| file.bytes.len()).collect();
        for (file, entry) in self.tensors.values() {
            ends[*file] = ends[*file].min(entry.bytes.start);
        }
        self.files.iter().zip(ends).map(|(file, end)| file.bytes.as_slice().split_at(end))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (file, entry) = self.tensors.get(name)?;
        let file = &self.files[*file];
        Some(Tensor {
            path: &file.path,
            name: &entry.name,
            stored: entry.stored,
            shape: &entry.shape,
            bytes: file.bytes.slice(entry.bytes.clone()),
        })
    }
}

/// tensor -> file, as the index at `path` says.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let text = read_limited(path, INDEX_BYTES_MAX)
        .map_err(|source| CheckpointError::Read { path: path.to_path_buf(), source })?;
    parse_index(&text).map_err(|detail| CheckpointError::Invalid { path: path.to_path_buf(), detail })
}

/// tensor -> file, of the text of an index. The error is a sentence about the file.
pub fn parse_index(text: &[u8]) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(text).map_err(|error| format!("malformed: {error}"))?;
    let shards: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if shards.is_empty() || shards.len() > SHARDS_MAX {
        return Err(format!("names {} files; 1 to {SHARDS_MAX} are read", shards.len()));
    }
    if let Some(shard) = shards.into_iter().find(|shard| !is_plain_name(shard)) {
        return Err(format!("{shard:?} points outside the folder"));
    }
    Ok(index.weight_map)
}

/// A name inside the folder: no separator, no parent.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let first = parts.next();
    matches!(first, Some(std::path::Component::Normal(part)) if part == name) && !name.contains(['\\', '\0'])
}

/// A pickled checkpoint in the folder, to say why it is not read.
fn pickles(folder: &Path) -> Option<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end)))
        .collect();
    names.sort();
    names.into_iter().next()
}
