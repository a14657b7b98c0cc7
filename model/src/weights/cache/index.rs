//! The head of a file of packed weights.
//!
//! ```text
//! 0    magic     8 bytes
//! 8    layout    u32, `PACKED_LAYOUT`; then four zeros
//! 16   index     u64, the bytes of the index
//! 24   sums      u64, the number of checksums
//! 32   checksum  u64, XXH3 of everything from 0 to here and of index and checksums
//! 40   index     JSON: key, model, precision, and the entries in the order of their data
//!      sums      u64 each, XXH3 of every block of 128 rows of every entry, in order
//!      data      from the next multiple of 4096 on, each entry on a multiple of 4096
//! ```
//!
//! All numbers are little-endian. Offsets of entries count from the data's beginning.

use std::hash::Hasher;

use gaterail_kernels::ops::BLOCK_PANELS;
use gaterail_kernels::{Codes, PACKED_LAYOUT, PANEL_ROWS, PackedFormat, Scales};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

pub(super) const MAGIC: [u8; 8] = *b"GRPACKED";
/// Bytes before the index.
pub(super) const FIXED: usize = 40;
pub(super) const ALIGNMENT: u64 = 4096;
/// Larger heads are refused.
pub(super) const HEAD_BYTES_MAX: u64 = 256 << 20;
/// Rows or columns beyond this are refused.
const DIMENSION_MAX: u64 = 1 << 32;

/// A part of a matrix of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The tensor; with the expert and the half in it, where a tensor holds several.
    pub name: String,
    pub first_row: usize,
    pub rows: usize,
    pub first_col: usize,
    pub cols: usize,
}

/// One packed matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    pub first_row: u64,
    pub rows: u64,
    pub first_col: u64,
    pub cols: u64,
    /// Such as `int4 f16 32`.
    pub form: String,
    pub offset: u64,
    pub bytes: u64,
}

/// What a file says about itself, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub key: String,
    pub held: String,
    pub model: String,
    pub precision: String,
    pub entries: Vec<Entry>,
}

/// A checked head.
#[derive(Debug)]
pub struct Head {
    pub index: Index,
    pub formats: Vec<PackedFormat>,
    /// The index of every entry's first checksum.
    pub first_sums: Vec<usize>,
    pub sums: Vec<u64>,
    /// Where the data begins.
    pub data: u64,
}

impl Entry {
    /// Blocks of an entry of so many rows.
    pub(super) fn blocks(rows: u64) -> u64 {
        rows.div_ceil((BLOCK_PANELS * PANEL_ROWS) as u64)
    }
}

/// The bytes of index and checksums that a file's first 40 bytes announce.
pub(super) fn head_bytes(fixed: &[u8], file_bytes: u64) -> Result<u64, String> {
    if fixed.len() < FIXED || fixed[..8] != MAGIC {
        return Err("does not begin like packed weights".to_string());
    }
    let layout = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]);
    if layout != PACKED_LAYOUT || fixed[12..16] != [0; 4] {
        return Err(format!("has layout {layout}, {PACKED_LAYOUT} is read"));
    }
    let (index, sums) = (number(&fixed[16..24]), number(&fixed[24..32]));
    let bytes = sums.checked_mul(8).and_then(|sums| sums.checked_add(index));
    match bytes.and_then(|bytes| bytes.checked_add(FIXED as u64)) {
        Some(head) if head <= file_bytes.min(HEAD_BYTES_MAX) => Ok(head - FIXED as u64),
        _ => Err(format!("announces an index of {index} bytes and {sums} checksums")),
    }
}

/// What a file of `file_bytes` bytes that begins with `bytes` holds, its checksum not looked at (which would keep a fuzzer
/// out). The error is a sentence about the file.
pub fn parse_cache(bytes: &[u8], file_bytes: u64) -> Result<Index, String> {
    parse_body(bytes, body(bytes, file_bytes)?, file_bytes).map(|head| head.index)
}

/// The checked head of a file of `file_bytes` bytes that begins with `bytes`.
pub(super) fn parse_head(bytes: &[u8], file_bytes: u64) -> Result<Head, String> {
    let body = body(bytes, file_bytes)?;
    if checksum_of_head(&bytes[..32], body) != number(&bytes[32..40]) {
        return Err("has an index that does not fit its checksum".to_string());
    }
    parse_body(bytes, body, file_bytes)
}

/// Index and checksums, as bytes.
fn body(bytes: &[u8], file_bytes: u64) -> Result<&[u8], String> {
    let length = head_bytes(bytes, file_bytes)? as usize;
    bytes.get(FIXED..FIXED + length).ok_or("is cut off in its index".to_string())
}

fn parse_body(bytes: &[u8], body: &[u8], file_bytes: u64) -> Result<Head, String> {
    let (text, sums) = body.split_at(number(&bytes[16..24]) as usize);
    let index: Index = serde_json::from_slice(text).map_err(|error| format!("has no index: {error}"))?;
    let sums: Vec<u64> = sums.chunks_exact(8).map(number).collect();
    let data = ((FIXED + body.len()) as u64).next_multiple_of(ALIGNMENT);
    let mut head = Head { index, formats: Vec::new(), first_sums: Vec::new(), sums, data };
    head.check(file_bytes)?;
    Ok(head)
}

impl Head {
    /// Every entry lies in the file behind the one before, with the bytes and checksums of its shape; nothing else does.
    fn check(&mut self, file_bytes: u64) -> Result<(), String> {
        let (mut end, mut sums) = (0u64, 0u64);
        for entry in &self.index.entries {
            let wrong = |what: &str| format!("has an entry {} with {what}", entry.name);
            let sizes = [entry.rows, entry.cols, entry.first_row, entry.first_col];
            if sizes.iter().any(|&size| size > DIMENSION_MAX) || entry.rows == 0 || entry.cols == 0 {
                return Err(wrong("a shape that no matrix has"));
            }
            let format = parse_form(&entry.form).ok_or_else(|| wrong("a form that is not known"))?;
            if packed_bytes(format, entry.rows, entry.cols) != Some(entry.bytes) {
                return Err(wrong("bytes that do not fit its shape"));
            }
            let next = end.checked_next_multiple_of(ALIGNMENT);
            if Some(entry.offset) != next {
                return Err(wrong("an offset out of order"));
            }
            end = entry.offset.checked_add(entry.bytes).ok_or_else(|| wrong("an end beyond all files"))?;
            self.formats.push(format);
            self.first_sums.push(sums as usize);
            // Each below 2^32, of no more entries than the index has bytes.
            sums += Entry::blocks(entry.rows);
        }
        if self.data.checked_add(end) != Some(file_bytes) {
            return Err(format!(
                "has {file_bytes} bytes where its index ends at {}",
                self.data.saturating_add(end)
            ));
        }
        if sums != self.sums.len() as u64 {
            return Err(format!("has {} checksums for {sums} blocks", self.sums.len()));
        }
        Ok(())
    }
}

/// The bytes of a packed matrix of a shape that has not been checked.
fn packed_bytes(format: PackedFormat, rows: u64, cols: u64) -> Option<u64> {
    let records = rows.div_ceil(PANEL_ROWS as u64).checked_mul(cols.div_ceil(format.group as u64))?;
    records.checked_mul(format.record() as u64)
}

/// A form by name, and back: only what kernels know.
pub(super) fn form_name(format: PackedFormat) -> String {
    let codes = match format.codes {
        Codes::Int8 => "int8",
        codes if codes == Codes::MXFP4 => "mxfp4",
        codes if codes == Codes::INT4 => "int4",
        codes => panic!("a table without a name: {codes:?}"),
    };
    let scales = if format.scales == Scales::F16 { "f16" } else { "f32" };
    format!("{codes} {scales}{} {}", if format.offsets { " offsets" } else { "" }, format.group)
}

pub(super) fn parse_form(form: &str) -> Option<PackedFormat> {
    let words: Vec<&str> = form.split(' ').collect();
    let (codes, scales, offsets, group) = match words[..] {
        [codes, scales, group] => (codes, scales, false, group),
        [codes, scales, "offsets", group] => (codes, scales, true, group),
        _ => return None,
    };
    let codes = match codes {
        "int8" => Codes::Int8,
        "mxfp4" => Codes::MXFP4,
        "int4" => Codes::INT4,
        _ => return None,
    };
    let scales = match scales {
        "f16" => Scales::F16,
        "f32" => Scales::F32,
        _ => return None,
    };
    let group = match group {
        "32" => 32,
        "64" => 64,
        "128" => 128,
        _ => return None,
    };
    Some(PackedFormat { codes, scales, offsets, group })
}

/// The checksum of a block of data.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The checksum of a head: its first 32 bytes, and what comes behind the checksum.
pub(super) fn checksum_of_head(fixed: &[u8], body: &[u8]) -> u64 {
    let mut hash = XxHash3_64::with_seed(0);
    hash.write(fixed);
    hash.write(body);
    hash.finish()
}

/// Eight bytes as a number.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(bytes);
    u64::from_le_bytes(eight)
}
