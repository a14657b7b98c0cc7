//! Which files of a repository are taken. Pure: names in, names out.
//!
//! Gaterail reads `config.json`, a tokenizer, and `model.safetensors` or the shards that
//! `model.safetensors.index.json` names. A repository often holds the same weights several times
//! (`consolidated.safetensors`, `original/`, `pytorch_model.bin`, `onnx/`): none of those is taken.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::HubError;
use super::limits::FILES_MAX;
use super::name::{RepoPath, visible};

pub const CONFIG: &str = "config.json";
pub const INDEX: &str = "model.safetensors.index.json";
pub const SINGLE: &str = "model.safetensors";
pub const TOKENIZER: &str = "tokenizer.json";
const METADATA: [&str; 7] = [
    CONFIG,
    INDEX,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// Weights in Python's own format: reading them can run any code that they carry.
const PICKLES: [&str; 6] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"];
const OTHER_WEIGHTS: [&str; 10] =
    [".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".ot", ".npz", ".mlmodel"];

/// What the user asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FileChoice {
    /// What Gaterail reads.
    #[default]
    Needed,
    /// Everything but weights in other formats.
    All,
    /// The files that match one of these patterns, whatever they are.
    Matching(Vec<String>),
}

/// The files to take, small ones first: a snapshot that has its weights has all the rest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    pub metadata: Vec<RepoPath>,
    pub weights: Vec<RepoPath>,
}

/// The shards that an index names.
pub type Shards = BTreeSet<RepoPath>;

/// `shards` is what the index names, if the repository has one.
pub fn choose(
    repo: &str,
    names: &[&RepoPath],
    shards: Option<&Shards>,
    choice: &FileChoice,
) -> Result<Chosen, HubError> {
    let taken: Vec<&RepoPath> = match choice {
        FileChoice::Matching(patterns) => {
            let asked = |name: &RepoPath| patterns.iter().any(|pattern| matches(pattern, name.as_str()));
            names.iter().copied().filter(|name| asked(name)).collect()
        }
        FileChoice::Needed | FileChoice::All => {
            let weights = loadable_weights(repo, names, shards)?;
            let rest = |name: &RepoPath| match choice {
                FileChoice::Needed => METADATA.contains(&name.as_str()) || is_chat_template(name.as_str()),
                _ => !is_weights(name.as_str()) || is_extra_safetensors(name.as_str()),
            };
            names.iter().copied().filter(|name| weights.contains(name) || rest(name)).collect()
        }
    };
    if taken.is_empty() {
        let why = format!("none of its {} files matches the given pattern(s)", names.len());
        return Err(HubError::Unusable { repo: repo.to_owned(), why });
    }
    let (weights, metadata) = taken.into_iter().cloned().partition(|name| is_weights(name.as_str()));
    Ok(Chosen { metadata, weights })
}

/// The weights that Gaterail reads, or why there are none.
fn loadable_weights<'n>(
    repo: &str,
    names: &[&'n RepoPath],
    shards: Option<&Shards>,
) -> Result<BTreeSet<&'n RepoPath>, HubError> {
    let unusable = |why: String| HubError::Unusable { repo: repo.to_owned(), why };
    let has = |wanted: &str| names.iter().copied().find(|name| name.as_str() == wanted);
    let weights: BTreeSet<&RepoPath> = match (shards, has(SINGLE)) {
        (Some(shards), _) => {
            if let Some(missing) = shards.iter().find(|shard| has(shard.as_str()).is_none()) {
                return Err(unusable(format!("its {INDEX} names {missing}, which it does not have.")));
            }
            names.iter().copied().filter(|name| shards.contains(*name)).collect()
        }
        (None, Some(single)) => BTreeSet::from([single]),
        (None, None) => return Err(unusable(no_weights(repo, names))),
    };
    if has(CONFIG).is_none() {
        return Err(unusable(format!("it has weights but no {CONFIG}, so that their shape is not known.")));
    }
    Ok(weights)
}

fn no_weights(repo: &str, names: &[&RepoPath]) -> String {
    let ending = |endings: &[&str]| {
        let ends = |name: &&&RepoPath| endings.iter().any(|end| name.as_str().ends_with(end));
        names.iter().find(ends).map(|name| name.as_str())
    };
    if let Some(found) = ending(&[".safetensors"]) {
        return format!(
            "it has safetensors files ({found}), but neither {SINGLE} nor {INDEX}, which are what Gaterail reads. \
             `--include '*.safetensors'` fetches them all the same."
        );
    }
    if let Some(found) = ending(&PICKLES) {
        return format!(
            "its weights are in Python's pickle format only ({found}), which can run code when it is read, so \
             Gaterail does not. Look for a safetensors version of it: often another repository, or a pull \
             request of this one, which is fetched as {repo}@refs/pr/N."
        );
    }
    if let Some(found) = ending(&OTHER_WEIGHTS) {
        return format!(
            "its weights are in a format that Gaterail does not read ({found}); safetensors is needed."
        );
    }
    "it has no weights. Is it an adapter, a dataset or a tokenizer?".to_owned()
}

/// A template besides `chat_template.jinja`, for tools or for retrieval: `additional_chat_templates/NAME.jinja`.
fn is_chat_template(name: &str) -> bool {
    let inside = name.strip_prefix("additional_chat_templates/");
    inside.is_some_and(|inside| !inside.contains('/') && inside.ends_with(".jinja"))
}

fn is_weights(name: &str) -> bool {
    let ends = |endings: &[&str]| endings.iter().any(|end| name.ends_with(end));
    name.ends_with(".safetensors") || ends(&PICKLES) || ends(&OTHER_WEIGHTS)
}

/// Safetensors that are no second copy of the model: adapters, encoders in folders of their own.
fn is_extra_safetensors(name: &str) -> bool {
    let copy = name.starts_with("original/") || name.starts_with("consolidated") || !name.contains('/');
    name.ends_with(".safetensors") && !copy
}

/// The shards of an index file. What it names is as untrusted as any other name.
pub fn shards(index: &[u8]) -> Result<Shards, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: FileNames,
    }
    let bad = |why: String| HubError::BadAnswer { what: INDEX.to_owned(), why };
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| bad(format!("it is not a safetensors index ({})", visible(&error.to_string()))))?;
    let names = index.weight_map.0;
    let shards = names.iter().map(|name| RepoPath::parse(name)).collect::<Result<Shards, _>>()?;
    if let Some(other) = shards.iter().find(|shard| !shard.as_str().ends_with(".safetensors")) {
        return Err(bad(format!("it names {other}, which is not a safetensors file")));
    }
    if shards.is_empty() { Err(bad("it names no file".to_owned())) } else { Ok(shards) }
}

/// The distinct values of a `weight_map`. Its keys, a name for every tensor, are passed over: an index of many
/// experts has a hundred thousand of them, and they are not needed here.
struct FileNames(BTreeSet<String>);

impl<'de> Deserialize<'de> for FileNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FileNamesVisitor)
    }
}

struct FileNamesVisitor;

impl<'de> Visitor<'de> for FileNamesVisitor {
    type Value = FileNames;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a file for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FileNames, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((_, name)) = map.next_entry::<IgnoredAny, String>()? {
            names.insert(name);
            if names.len() > FILES_MAX {
                return Err(A::Error::custom(format!("more than {FILES_MAX} files")));
            }
        }
        Ok(FileNames(names))
    }
}

/// Shell patterns as the hub's own tools know them: `*` is any text, folders included; `?` any character; a
/// folder's name with `/` at the end all that is in it.
pub fn matches(pattern: &str, name: &str) -> bool {
    let folder = pattern.ends_with('/').then(|| format!("{pattern}*"));
    let pattern: Vec<char> = folder.as_deref().unwrap_or(pattern).chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where to go on if the text after the last `*` does not fit: the star takes one more character.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((star_p, star_n)) => {
                    *star_n += 1;
                    (p, n) = (*star_p + 1, *star_n);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}
