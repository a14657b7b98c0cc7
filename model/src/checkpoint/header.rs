//! The header of a safetensors file, checked before a byte of data is believed.
//!
//! The `safetensors` crate enforces the format (length, offsets without holes or overlap, sizes that match shapes); what
//! is added here: duplicate names, a limit on their number, the types that Gaterail computes with, and plain messages.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// More tensors in one file than any published model has.
const TENSORS_MAX: usize = 1 << 20;
/// The format's own limit on the header.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The stored types that a reader may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredType {
    F32,
    F16,
    Bf16,
    /// FP8 E4M3
    F8E4m3,
    U8,
    I32,
    /// Blocks of 32 values (GGUF)
    Q4_0,
    Q8_0,
    /// Anything else the format knows; never computed with.
    Other,
}

impl StoredType {
    fn from_dtype(dtype: Dtype) -> StoredType {
        match dtype {
            Dtype::F32 => StoredType::F32,
            Dtype::F16 => StoredType::F16,
            Dtype::BF16 => StoredType::Bf16,
            Dtype::F8_E4M3 => StoredType::F8E4m3,
            Dtype::U8 => StoredType::U8,
            Dtype::I32 => StoredType::I32,
            _ => StoredType::Other,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoredType::F32 => "f32",
            StoredType::F16 => "f16",
            StoredType::Bf16 => "bf16",
            StoredType::F8E4m3 => "f8_e4m3",
            StoredType::U8 => "u8",
            StoredType::I32 => "i32",
            StoredType::Q4_0 => "q4_0",
            StoredType::Q8_0 => "q8_0",
            StoredType::Other => "an unsupported type",
        })
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    pub name: String,
    pub stored: StoredType,
    pub shape: Vec<usize>,
    /// From the start of the file.
    pub bytes: Range<usize>,
}

/// The tensors of a safetensors file, by its bytes. The error is a sentence about the file.
pub fn parse_header(file: &[u8]) -> Result<Vec<TensorEntry>, String> {
    let header = header_text(file)?;
    let names = header_names(header)?;
    if names > TENSORS_MAX {
        return Err(format!("{names} tensors; at most {TENSORS_MAX} are read"));
    }
    let (header_length, metadata) =
        SafeTensors::read_metadata(file).map_err(|error| explain(&error, header, file.len()))?;
    let data = 8 + header_length;
    let mut entries: Vec<TensorEntry> = Vec::with_capacity(names);
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let bytes = data + start..data + end;
        if start > end || bytes.end > file.len() {
            return Err(format!("tensor {name}: offsets {start}..{end} lie outside the file"));
        }
        entries.push(TensorEntry {
            name,
            stored: StoredType::from_dtype(info.dtype),
            shape: info.shape.clone(),
            bytes,
        });
    }
    entries.sort_by(|a, b| a.bytes.start.cmp(&b.bytes.start).then_with(|| a.name.cmp(&b.name)));
    Ok(entries)
}

fn header_text(file: &[u8]) -> Result<&[u8], String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are too few for a safetensors file", file.len()));
    };
    if file.starts_with(b"version https://git-lfs") {
        return Err(
            "this is a pointer of git-lfs, not the file it stands for; fetch that, or use gaterail pull"
                .to_string(),
        );
    }
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(format!("the header claims {length} bytes; the format allows {HEADER_BYTES_MAX}"));
    }
    rest.get(..length as usize).ok_or_else(|| {
        format!(
            "the header claims {length} bytes, but only {} follow: not a safetensors file, or truncated",
            rest.len()
        )
    })
}

/// Counts the names, and refuses a header that has one twice: parsers disagree on which of them counts.
fn header_names(header: &[u8]) -> Result<usize, String> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Result<usize, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = HashSet::new();
            while let Some(name) = map.next_key::<String>()? {
                map.next_value::<IgnoredAny>()?;
                if seen.contains(&name) {
                    return Ok(Err(format!("tensor {name} stands twice in the header")));
                }
                seen.insert(name);
            }
            Ok(Ok(seen.len()))
        }
    }
    let mut json = serde_json::Deserializer::from_slice(header);
    (&mut json).deserialize_map(Names).map_err(|error| format!("the header is not valid JSON: {error}"))?
}

fn explain(error: &SafeTensorError, header: &[u8], file_length: usize) -> String {
    match error {
        SafeTensorError::MetadataIncompleteBuffer => format!(
            "the tensors do not end where the file does ({file_length} bytes): truncated, or with bytes behind its end"
        ),
        SafeTensorError::InvalidOffset(name) => {
            format!("tensor {name}: its offsets overlap another tensor, leave a hole, or run backwards")
        }
        SafeTensorError::TensorInvalidInfo => match misfit(header) {
            Some(name) => format!("tensor {name}: its offsets do not match its shape and type"),
            None => "a tensor's offsets do not match its shape and type".to_string(),
        },
        SafeTensorError::ValidationOverflow => "a tensor's shape is too large to be counted".to_string(),
        SafeTensorError::InvalidHeaderDeserialization(json) => format!("the header is malformed: {json}"),
        other => format!("not a valid safetensors file: {other}"),
    }
}

/// The first tensor whose offsets do not span what its shape and type need; the crate does not say which.
fn misfit(header: &[u8]) -> Option<String> {
    let tensors: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    let fits = |tensor: &serde_json::Value| -> Option<bool> {
        let dtype: Dtype = serde_json::from_value(tensor.get("dtype")?.clone()).ok()?;
        let shape: Vec<u64> = serde_json::from_value(tensor.get("shape")?.clone()).ok()?;
        let [start, end]: [u64; 2] = serde_json::from_value(tensor.get("data_offsets")?.clone()).ok()?;
        let values = shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side))?;
        Some(values.checked_mul(dtype.bitsize() as u64)? == end.checked_sub(start)?.checked_mul(8)?)
    };
    tensors
        .into_iter()
        .find(|(name, tensor)| name != "__metadata__" && fits(tensor) == Some(false))
        .map(|(name, _)| name)
}
