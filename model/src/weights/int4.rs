//! 4-bit linear layers of GPTQ and AWQ checkpoints: which tensors stand for a weight `[rows, cols]`, the check of them,
//! and the way to codes that lie row by row. No value changes.
//!
//! | tensor | GPTQ | AWQ |
//! |---|---|---|
//! | qweight, i32 | `[cols/8, rows]`, nibble k of a word: column 8i + k | `[cols, rows/8]`, nibble k: row 8i + ORDER[k] |
//! | qzeros, i32 | `[n, rows/8]`, nibble k: row 8i + k | `[n, rows/8]`, nibble k: row 8i + ORDER[k] |
//! | scales | `[n, rows]`, f16 or bf16 | the same |
//! | g_idx, i32 | `[cols]`, each column's group | |
//!
//! with `n = ceil(cols / group)` and ORDER = 0 2 4 6 1 3 5 7. A weight is `scale * (code - zero)`.

use std::collections::HashSet;
use std::ops::Range;

use gaterail_kernels::{Bytes, INT4_GROUP_MAX, Int4, Matrix, MatrixData, Scales};

use super::expected::Expected;
use super::load::check_tensor;
use crate::checkpoint::{Checkpoint, StoredType, Tensor};
use crate::config::{Int4Linear, Int4Packing};

/// Codes in a 32-bit word.
const WORD: usize = 8;
/// The nibble of AWQ's word in which a row of eight is.
const AWQ_NIBBLE: [u32; WORD] = [0, 4, 1, 5, 2, 6, 3, 7];
/// One in every nibble: GPTQ's first format stores zero points less this, subtracted from whole words.
const ONES: u32 = 0x1111_1111;

/// The tensors that stand for `name`, which ends in `.weight`.
pub(super) struct TensorNames {
    pub qweight: String,
    pub qzeros: String,
    pub scales: String,
    pub g_idx: String,
}

pub(super) fn tensor_names(name: &str) -> Option<TensorNames> {
    let module = name.strip_suffix("weight").filter(|module| module.ends_with('.'))?;
    let of = |leaf: &str| format!("{module}{leaf}");
    Some(TensorNames {
        qweight: of("qweight"),
        qzeros: of("qzeros"),
        scales: of("scales"),
        g_idx: of("g_idx"),
    })
}

/// Columns that share a scale in our form: what is stored, or a part of it that divides it.
pub(super) fn our_group(stored: Int4Linear, cols: usize) -> usize {
    let group = stored.stored_group(cols);
    [INT4_GROUP_MAX, 64, 32].into_iter().find(|ours| group.is_multiple_of(*ours)).unwrap_or(INT4_GROUP_MAX)
}

/// Memory that a layer takes once it is read.
pub(super) fn resident_bytes(stored: Int4Linear, rows: usize, cols: usize) -> u64 {
    let groups = (rows as u64).saturating_mul(cols.div_ceil(our_group(stored, cols)) as u64);
    let offsets = if stored.symmetric { 0 } else { 4 };
    let codes = (rows as u64).saturating_mul(cols as u64) / 2;
    codes.saturating_add(groups.saturating_mul(2 + offsets))
}

/// Everything about one layer's tensors that keeps it from being read.
pub(super) fn check(
    stored: Int4Linear,
    checkpoint: &Checkpoint,
    expected: &Expected,
    used: &mut HashSet<String>,
    problems: &mut Vec<String>,
) {
    let [rows, cols] = [expected.shape[0], expected.shape[1]];
    let names = tensor_names(&expected.name).expect("a linear layer's weight");
    let before = problems.len();
    if !rows.is_multiple_of(WORD) || !cols.is_multiple_of(WORD) {
        problems.push(format!("{}: {rows} x {cols} is not in multiples of {WORD}", names.qweight));
    }
    let groups = cols.div_ceil(stored.stored_group(cols));
    let words = match stored.packing {
        Int4Packing::Gptq | Int4Packing::GptqV2 => [cols / WORD, rows],
        Int4Packing::Awq => [cols, rows / WORD],
    };
    let floats = [StoredType::F16, StoredType::Bf16];
    check_tensor(checkpoint, &names.qweight, &words, &[StoredType::I32], problems);
    check_tensor(checkpoint, &names.qzeros, &[groups, rows / WORD], &[StoredType::I32], problems);
    check_tensor(checkpoint, &names.scales, &[groups, rows], &floats, problems);
    // An order that is as it was need not be written down.
    let has_order =
        stored.packing != Int4Packing::Awq && (stored.desc_act || checkpoint.tensor(&names.g_idx).is_some());
    if has_order {
        check_tensor(checkpoint, &names.g_idx, &[cols], &[StoredType::I32], problems);
    }
    if problems.len() == before {
        if has_order {
            check_order(stored, checkpoint, &names.g_idx, cols, problems);
        }
        if stored.packing == Int4Packing::Gptq && !stored.symmetric {
            check_zeros(checkpoint, &names.qzeros, problems);
        }
    }
    used.extend([names.qweight, names.qzeros, names.scales]);
    if has_order {
        used.insert(names.g_idx);
    }
}

/// Columns must be in the order of their groups.
fn check_order(
    stored: Int4Linear,
    checkpoint: &Checkpoint,
    name: &str,
    cols: usize,
    problems: &mut Vec<String>,
) {
    let Some(tensor) = checkpoint.tensor(name) else { return };
    let group = stored.stored_group(cols);
    let order = tensor.bytes.aligned_for::<u32>();
    if words(&order).iter().enumerate().any(|(col, &index)| index as usize != col / group) {
        problems.push(format!(
            "{name} in {}: inputs are not in the order of their groups of {group}, which is not supported; quantise with \
             desc_act false, or with static_groups true",
            file_name(&tensor)
        ));
    }
}

/// A zero point stored as 15 in GPTQ's first format means 0 to some readers, 16 to others, and shifts its neighbour to
/// those that add to whole words; writers do not agree either.
fn check_zeros(checkpoint: &Checkpoint, name: &str, problems: &mut Vec<String>) {
    let Some(tensor) = checkpoint.tensor(name) else { return };
    let fifteen = |word: u32| word & (word >> 1) & (word >> 2) & (word >> 3) & ONES != 0;
    if words(&tensor.bytes.aligned_for::<u32>()).iter().any(|&word| fifteen(word)) {
        problems.push(format!(
            "{name} in {}: a zero point stored as 15, on which readers of this format disagree; save the model as gptq_v2",
            file_name(&tensor)
        ));
    }
}

fn file_name(tensor: &Tensor<'_>) -> String {
    tensor.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A bias of zeros, which some writers give to every quantised layer.
pub(super) fn is_empty_bias(checkpoint: &Checkpoint, name: &str) -> bool {
    let quantised = |module: &str| checkpoint.tensor(&format!("{module}qweight")).is_some();
    let zeros = |tensor: Tensor<'_>| tensor.bytes.as_slice().iter().all(|&byte| byte == 0);
    name.strip_suffix("bias").is_some_and(quantised) && checkpoint.tensor(name).is_some_and(zeros)
}

/// One layer's tensors, which the check has seen; words aligned.
pub(super) struct Layer<'a> {
    pub stored: Int4Linear,
    pub rows: usize,
    pub cols: usize,
    pub qweight: Bytes,
    pub qzeros: Bytes,
    pub scales: Tensor<'a>,
}

impl Layer<'_> {
    /// A part of the matrix, its codes row by row; the columns begin with a group of 128.
    pub fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Matrix {
        assert!(cols.start.is_multiple_of(INT4_GROUP_MAX) && rows.end <= self.rows && cols.end <= self.cols);
        let group = our_group(self.stored, self.cols);
        let stored_group = self.stored.stored_group(self.cols);
        // Where each of our groups finds its scale.
        let groups: Vec<usize> = cols.clone().step_by(group).map(|col| col / stored_group).collect();
        let codes = match self.stored.packing {
            Int4Packing::Gptq | Int4Packing::GptqV2 => self.gptq_codes(&rows, &cols),
            Int4Packing::Awq => self.awq_codes(&rows, &cols),
        };
        let scales = self.scales(&rows, &groups);
        let offsets = self.offsets(&rows, &groups, &scales);
        // 16 bits are enough for almost every bf16 scale; if they are not for one, all are kept in 32.
        let halves: Vec<u16> = scales.iter().map(|&scale| half::f16::from_f32(scale).to_bits()).collect();
        let exact =
            |(&half, &scale): (&u16, &f32)| half::f16::from_bits(half).to_f32() == scale || scale.is_nan();
        let (scale_type, scales) = match halves.iter().zip(&scales).all(exact) {
            true => (Scales::F16, Bytes::copied(&halves)),
            false => (Scales::F32, Bytes::copied(&scales)),
        };
        let codes = Bytes::copied(&codes);
        let int4 = Int4 { codes, scales, scale_type, offsets: offsets.map(Into::into), group };
        Matrix::new(MatrixData::Int4(int4.into()), rows.len(), cols.len())
    }

    /// `[rows, cols/8]` words: the stored words turned round.
    fn gptq_codes(&self, rows: &Range<usize>, cols: &Range<usize>) -> Vec<u32> {
        let stored = words(&self.qweight);
        turned(rows.len(), cols.len() / WORD, |row, word| {
            stored[(cols.start / WORD + word) * self.rows + rows.start + row]
        })
    }

    /// `[rows, cols/8]` words, whose nibbles come from eight stored words below each other.
    fn awq_codes(&self, rows: &Range<usize>, cols: &Range<usize>) -> Vec<u32> {
        let stored = words(&self.qweight);
        let width = self.rows / WORD;
        turned(rows.len(), cols.len() / WORD, |row, word| {
            let row = rows.start + row;
            let (at, shift) = (row / WORD, 4 * AWQ_NIBBLE[row % WORD]);
            let col = cols.start + word * WORD;
            (0..WORD).fold(0, |codes, k| codes | (stored[(col + k) * width + at] >> shift & 15) << (4 * k))
        })
    }

    /// `[rows, groups]`
    fn scales(&self, rows: &Range<usize>, groups: &[usize]) -> Vec<f32> {
        let bytes = self.scales.bytes.as_slice();
        let scale = |row: usize, group: usize| {
            let at = 2 * (group * self.rows + row);
            let raw = [bytes[at], bytes[at + 1]];
            match self.scales.stored {
                StoredType::F16 => half::f16::from_le_bytes(raw).to_f32(),
                StoredType::Bf16 => half::bf16::from_le_bytes(raw).to_f32(),
                other => panic!("{} was checked not to be stored as {other}", self.scales.name),
            }
        };
        rows.clone().flat_map(|row| groups.iter().map(move |&group| scale(row, group))).collect()
    }

    /// `scale * (8 - zero)`, `[rows, groups]`: exact, as a scale has at most 11 bits. `None` if all zero points of the whole
    /// matrix are 8, so that no part differs from the whole.
    fn offsets(&self, rows: &Range<usize>, groups: &[usize], scales: &[f32]) -> Option<Vec<f32>> {
        let stored = words(&self.qzeros);
        let add = if self.stored.packing == Int4Packing::Gptq { ONES } else { 0 };
        if stored.iter().all(|&word| word.wrapping_add(add) == 8 * ONES) {
            return None;
        }
        let nibble = |row: usize| match self.stored.packing {
            Int4Packing::Awq => AWQ_NIBBLE[row % WORD],
            Int4Packing::Gptq | Int4Packing::GptqV2 => (row % WORD) as u32,
        };
        let zero = |row: usize, group: usize| {
            let word = stored[group * (self.rows / WORD) + row / WORD].wrapping_add(add);
            (word >> (4 * nibble(row)) & 15) as f32
        };
        let zeros = rows.clone().flat_map(|row| groups.iter().map(move |&group| zero(row, group)));
        Some(zeros.zip(scales).map(|(zero, scale)| scale * (8.0 - zero)).collect())
    }
}

/// `[rows, words]` out of words that lie the other way round, in tiles that stay in the cache.
fn turned(rows: usize, words: usize, at: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    const TILE: usize = 32;
    let mut out = vec![0; rows * words];
    for row_tile in (0..rows).step_by(TILE) {
        for word_tile in (0..words).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for word in word_tile..(word_tile + TILE).min(words) {
                    out[row * words + word] = at(row, word);
                }
            }
        }
    }
    out
}

/// The words of a tensor of i32, which `aligned_for` has aligned.
fn words(bytes: &Bytes) -> &[u32] {
    bytes.as_elements().expect("aligned words")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A layer of random words and scales, and `scale * (code - zero)` of an element, read off the table above.
    fn check(packing: Int4Packing, group: Option<usize>, rows: usize, cols: usize, scale_type: StoredType) {
        let stored = Int4Linear { packing, group, symmetric: false, desc_act: false };
        let stored_group = stored.stored_group(cols);
        let groups = cols.div_ceil(stored_group);
        let mut state = (rows * cols) as u64;
        let mut random = |count: usize| -> Vec<u32> {
            let mut next = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 32) as u32
            };
            (0..count).map(|_| next()).collect()
        };
        let (qweight, zeros) = (random(rows * cols / 8), random(groups * rows / 8));
        let value = |raw: u16| match scale_type {
            StoredType::F16 => half::f16::from_bits(raw).to_f32(),
            _ => half::bf16::from_bits(raw).to_f32(),
        };
        // Finite scales of all magnitudes, or of those that f16 has too.
        let scales: Vec<u16> = random(groups * rows).iter().map(|word| (*word as u16) & 0x3fff).collect();
        let shape = [groups, rows];
        let layer = Layer {
            stored,
            rows,
            cols,
            qweight: Bytes::copied(&qweight),
            qzeros: Bytes::copied(&zeros),
            scales: Tensor {
                path: Path::new("test"),
                name: "scales",
                stored: scale_type,
                shape: &shape,
                bytes: Bytes::copied(&scales),
            },
        };
        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let element = |row: usize, col: usize| {
            let nibble = |word: u32, k: usize| (word >> (4 * k)) & 15;
            let interleaved = ORDER.iter().position(|&place| place == row % 8).expect("one of eight");
            let at = col / stored_group;
            let (code, zero) = match packing {
                Int4Packing::Awq => (
                    nibble(qweight[col * (rows / 8) + row / 8], interleaved),
                    nibble(zeros[at * (rows / 8) + row / 8], interleaved),
                ),
                _ => {
                    let add = if packing == Int4Packing::Gptq { ONES } else { 0 };
                    let word = zeros[at * (rows / 8) + row / 8].wrapping_add(add);
                    (nibble(qweight[col / 8 * rows + row], col % 8), nibble(word, row % 8))
                }
            };
            value(scales[at * rows + row]) * (code as f32 - zero as f32)
        };
        let first = 128.min(cols / 128 * 128);
        for (rows, cols) in [(0..rows, 0..cols), (3..rows - 2, first..cols), (1..2, 0..first)] {
            let part = layer.part(rows.clone(), cols.clone());
            assert_eq!((part.rows(), part.cols()), (rows.len(), cols.len()));
            let mut values = vec![0.0; cols.len()];
            for row in rows.clone() {
                part.dequantize_row(row - rows.start, &mut values);
                for (&value, col) in values.iter().zip(cols.clone()) {
                    assert_eq!(value, element(row, col), "{stored:?}, {scale_type}: ({row}, {col})");
                }
            }
        }
    }

    #[test]
    fn parts_of_every_packing_have_the_stored_values() {
        for packing in [Int4Packing::Gptq, Int4Packing::GptqV2, Int4Packing::Awq] {
            for scale_type in [StoredType::F16, StoredType::Bf16] {
                check(packing, Some(32), 24, 160, scale_type);
                check(packing, Some(64), 16, 200, scale_type); // a short last group
                check(packing, Some(128), 40, 256, scale_type);
                check(packing, Some(256), 16, 640, scale_type); // scales used twice
                check(packing, Some(96), 16, 192, scale_type); // cut into groups of 32
                check(packing, None, 16, 384, scale_type);
                check(packing, None, 16, 136, scale_type); // no group divides the inputs
            }
        }
    }

    #[test]
    fn scales_keep_16_bits_where_those_are_enough_and_offsets_go_where_zeros_are_8() {
        let layer = |scales: [u16; 8], zeros: u32| Layer {
            stored: Int4Linear { packing: Int4Packing::Gptq, group: None, symmetric: true, desc_act: false },
            rows: 8,
            cols: 32,
            qweight: Bytes::copied(&[0x0123_4567u32; 32]),
            qzeros: Bytes::copied(&[zeros]),
            scales: Tensor {
                path: Path::new("test"),
                name: "scales",
                stored: StoredType::Bf16,
                shape: &[1, 8],
                bytes: Bytes::copied(&scales),
            },
        };
        let form = |layer: &Layer<'_>| {
            let part = layer.part(2..4, 0..32);
            let int4 = part.int4().expect("4 bits").clone();
            (int4.scale_type, int4.offsets.is_some(), int4.group)
        };
        let one = half::bf16::from_f32(1.0).to_bits();
        let small = half::bf16::from_f32(1.2890625 * 2f32.powi(-20)).to_bits();
        assert_eq!(form(&layer([one; 8], 0x7777_7777)), (Scales::F16, false, 32));
        assert_eq!(
            form(&layer([one, one, small, one, one, one, one, one], 0x7777_7777)),
            (Scales::F32, false, 32)
        );
        // Rows 2 and 3 have zero points of 8, but not all rows have.
        assert_eq!(form(&layer([one; 8], 0x7777_7778)), (Scales::F16, true, 32));
    }
}
