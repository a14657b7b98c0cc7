//! A GGUF header: magic, version, metadata, tensors. In: the file's bytes. Out: metadata, and where each tensor lies.
//!
//! The tensors' data begins behind the header at the next multiple of the alignment; offsets count from there.

use std::collections::HashSet;

use super::cursor::Cursor;
use super::types::{self, BlockType, block_type};
use super::value::{Metadata, read_metadata};
use crate::checkpoint::TensorEntry;

const MAGIC: [u8; 4] = *b"GGUF";
const VERSIONS: [u32; 2] = [2, 3];
const ALIGNMENT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;
const TENSORS_MAX: u64 = 1 << 20;
const NAME_BYTES_MAX: usize = 1024;
const DIMENSIONS_MAX: u32 = 4;
/// A tensor's name, number of dimensions, one dimension, type and offset.
const TENSOR_BYTES_LEAST: usize = 8 + 4 + 8 + 4 + 8;

/// What a file says about itself.
#[derive(Clone, Debug)]
pub struct Header {
    pub version: u32,
    pub metadata: Metadata,
    /// In the order of their data.
    pub tensors: Vec<TensorEntry>,
}

/// The header of a GGUF file, by its bytes. The error is a sentence about the file.
pub fn parse_gguf(file: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor::new(file);
    let version = version(&mut cursor, file)?;
    let (tensors, keys) = (cursor.u64("the number of tensors")?, cursor.u64("the number of metadata keys")?);
    if tensors > TENSORS_MAX {
        return Err(format!("{tensors} tensors; at most {TENSORS_MAX} are read"));
    }
    let metadata = read_metadata(&mut cursor, keys)?;
    if let Some(parts) = metadata.count("split.count")?.filter(|&parts| parts > 1) {
        return Err(format!(
            "this is one of {parts} files of a model; files that are split are not read, join them"
        ));
    }
    let alignment = metadata.count("general.alignment")?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        return Err(format!("general.alignment: {alignment} is no power of two up to {ALIGNMENT_MAX}"));
    }
    let infos = tensor_infos(&mut cursor, tensors)?;
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    let tensors = place(&infos, data, alignment, file.len() as u64)?;
    Ok(Header { version, metadata, tensors })
}

fn version(cursor: &mut Cursor<'_>, file: &[u8]) -> Result<u32, String> {
    if !file.starts_with(&MAGIC) {
        if file.starts_with(b"version https://git-lfs") {
            return Err("this is a pointer of git-lfs, not the file it stands for; fetch that".to_string());
        }
        return Err("not a GGUF file: it does not begin with GGUF".to_string());
    }
    let _: [u8; 4] = cursor.array("the magic")?;
    let version = cursor.u32("the version")?;
    match version {
        version if VERSIONS.contains(&version) => Ok(version),
        version if VERSIONS.contains(&version.swap_bytes()) => {
            Err("a big-endian file; this version reads little-endian ones".to_string())
        }
        version => Err(format!("GGUF version {version}; this version of Gaterail reads 2 and 3")),
    }
}

/// A tensor as the header describes it.
struct Info<'a> {
    name: &'a str,
    /// Outermost dimension first; the file has them the other way round.
    shape: Vec<usize>,
    kind: BlockType,
    offset: u64,
}

fn tensor_infos<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<Vec<Info<'a>>, String> {
    let count = cursor.expect(count, TENSOR_BYTES_LEAST, "tensors")?;
    let mut infos = Vec::with_capacity(count);
    let mut names = HashSet::with_capacity(count);
    let mut refused: Vec<(&str, String)> = Vec::new();
    for index in 0..count {
        let name = cursor.text(&format!("the name of tensor {index}"))?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(format!("tensor {index}: a name of {} bytes", name.len()));
        }
        if !names.insert(name) {
            return Err(format!("tensor {name}: stands twice in the header"));
        }
        let shape = shape(cursor, name)?;
        let (number, offset) = (cursor.u32(name)?, cursor.u64(name)?);
        match block_type(number) {
            Ok(kind) => infos.push(Info { name, shape, kind, offset }),
            Err(kind) => refused.push((name, kind)),
        }
    }
    match refused.as_slice() {
        [] => Ok(infos),
        [(name, kind), rest @ ..] => Err(refusal(name, kind, rest)),
    }
}

fn refusal(name: &str, kind: &str, rest: &[(&str, String)]) -> String {
    let more = match rest.len() {
        0 => String::new(),
        n => {
            let mut kinds: Vec<&str> = rest.iter().map(|(_, kind)| kind.as_str()).collect();
            kinds.sort_unstable();
            kinds.dedup();
            format!(" (and {n} more tensors as {})", kinds.join(", "))
        }
    };
    format!(
        "tensor {name}: stored as {kind}{more}; this version reads {}. `llama-quantize --pure` writes files of one type",
        types::READ
    )
}

fn shape(cursor: &mut Cursor<'_>, name: &str) -> Result<Vec<usize>, String> {
    let dimensions = cursor.u32(name)?;
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Err(format!("tensor {name}: {dimensions} dimensions; 1 to {DIMENSIONS_MAX} are read"));
    }
    let mut shape = Vec::with_capacity(DIMENSIONS_MAX as usize);
    for _ in 0..dimensions {
        match usize::try_from(cursor.u64(name)?) {
            Ok(side) if side > 0 => shape.push(side),
            _ => return Err(format!("tensor {name}: a side of its shape is 0 or too large")),
        }
    }
    shape.reverse();
    Ok(shape)
}

/// The tensors' bytes, which must lie in the file and not in each other.
fn place(infos: &[Info<'_>], data: u64, alignment: u64, file: u64) -> Result<Vec<TensorEntry>, String> {
    let mut entries = Vec::with_capacity(infos.len());
    for info in infos {
        let fail = |detail: String| Err(format!("tensor {}: {detail}", info.name));
        let Some(length) = stored_length(info) else {
            return fail(format!("its shape {:?} cannot be stored as {}", info.shape, info.kind.stored));
        };
        if !info.offset.is_multiple_of(alignment) {
            return fail(format!("its offset {} is no multiple of {alignment}", info.offset));
        }
        let start = data.checked_add(info.offset);
        let end = start.and_then(|start| start.checked_add(length)).filter(|&end| end <= file);
        let (Some(start), Some(end)) = (start, end) else {
            let offset = info.offset;
            return fail(format!(
                "its {length} bytes at offset {offset} reach beyond the file's end ({file} bytes): truncated or malformed"
            ));
        };
        entries.push(TensorEntry {
            name: info.name.to_string(),
            stored: info.kind.stored,
            shape: info.shape.clone(),
            bytes: start as usize..end as usize,
        });
    }
    entries.sort_by(|a, b| a.bytes.start.cmp(&b.bytes.start).then_with(|| a.name.cmp(&b.name)));
    match entries.windows(2).find(|pair| pair[1].bytes.start < pair[0].bytes.end) {
        Some(pair) => Err(format!("tensor {}: its bytes overlap those of {}", pair[1].name, pair[0].name)),
        None => Ok(entries),
    }
}

/// `None`: rows are no whole blocks, or the size cannot be counted.
fn stored_length(info: &Info<'_>) -> Option<u64> {
    let row = *info.shape.last()?;
    let values = info.shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side))?;
    let blocks = row.is_multiple_of(info.kind.values).then_some(values / info.kind.values)?;
    Some(blocks.checked_mul(info.kind.bytes)? as u64)
}
