//! A piece of an expert as bytes, for who cannot read the checkpoint: what `write_piece` writes, `read_piece` reads back to
//! the same bits. All numbers are little-endian.
//!
//! ```text
//! piece   "GREX", expert u32, biases u32 (bit 0 gate, 1 up, 2 down), zero u32; gate, up, down; biases f32, as the bits say
//! weight  form u8, three bytes that depend on it, rows u32, cols u32; then its planes, whose bytes follow from these
//!         0 packed   codes (0 int4, 1 mxfp4, 2 int8), scales + 2 if there are offsets, group / 32; panels in order
//!         1 plain    element type; elements
//!         2 fp8      codes, then f32 scales of 128 x 128 blocks
//!         3 mxfp4    blocks, then exponents
//!         4 int4     0, scales + 2 if there are offsets, group / 32; codes, scales, offsets
//!         5 q4_0, 6 q8_0  blocks
//! ```
//!
//! The reader takes nothing on trust: it is told which piece comes, and refuses all others before it takes memory for them.

use crate::bytes::Bytes;
use crate::int4::Int4;
use crate::matrix::{
    ElementType, FP8_BLOCK, GGUF_GROUP, MXFP4_GROUP, Matrix, MatrixData, Q4_0_BLOCK, Q8_0_BLOCK,
};
use crate::ops::{ExpertPiece, UNIT_MIN};
use crate::packed::{Codes, PANEL_ROWS, Packed, PackedFormat, Scales};
use crate::weight::Weight;
use crate::{Arena, Device, ops};

const MAGIC: &[u8; 4] = b"GREX";
const PIECE_HEADER: usize = 16;
const WEIGHT_HEADER: usize = 12;
/// The codes of packed forms, by their number.
const CODES: [Codes; 3] = [Codes::INT4, Codes::MXFP4, Codes::Int8];
const ELEMENTS: [ElementType; 3] = [ElementType::F32, ElementType::F16, ElementType::Bf16];

/// What is wrong with bytes that should have been a piece.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a piece of an expert")]
    Magic,
    #[error("ends within {0}")]
    Short(&'static str),
    #[error("{0} bytes more than the piece has")]
    Long(usize),
    #[error("expert {0} where {1} was expected")]
    Expert(u32, u32),
    #[error("{what}: {rows} x {cols} where {expected:?} was expected")]
    Shape { what: &'static str, rows: u32, cols: u32, expected: [usize; 2] },
    #[error("{0}: a form that is not known, or that has no such shape")]
    Form(&'static str),
    #[error("matrices in forms that do not go together")]
    Mixed,
    #[error("a bias that this piece cannot have")]
    Bias,
}

/// Which piece is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceShape {
    pub expert: u32,
    /// H
    pub hidden: usize,
    /// f: the length of the piece along F.
    pub run: usize,
    /// Whether it holds unit 0, and with it the bias of down.
    pub first: bool,
    /// The length of a unit.
    pub unit: usize,
}

impl PieceShape {
    /// More bytes than these no such piece has: f32 is the widest form, but for panels and groups that are padded.
    pub fn bytes_max(&self) -> u64 {
        let padded = |n: usize| n.next_multiple_of(FP8_BLOCK) as u64;
        let elements = padded(self.hidden) * padded(self.run);
        let headers = PIECE_HEADER + 3 * WEIGHT_HEADER;
        headers as u64 + 3 * 4 * elements + 4 * (2 * self.run + self.hidden) as u64
    }
}

/// Writes a piece, a run of bytes at a time. Panics for weights in a GPU's memory.
pub fn write_piece(piece: &ExpertPiece, put: &mut dyn FnMut(&[u8])) {
    let biases = [&piece.gate_bias, &piece.up_bias, &piece.down_bias];
    let bits = biases.iter().enumerate().map(|(bit, bias)| u32::from(bias.is_some()) << bit).sum::<u32>();
    put(MAGIC);
    [piece.expert, bits, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    for weight in [&piece.gate, &piece.up, &piece.down] {
        match weight {
            Weight::Packed(packed) => write_packed(packed, put),
            Weight::Plain(matrix) => write_matrix(matrix, put),
            Weight::Cuda(weight) => panic!("{weight:?} does not travel"),
        }
    }
    biases.into_iter().flatten().for_each(|bias| put(bytemuck::cast_slice(bias)));
}

fn write_header(form: [u8; 4], rows: usize, cols: usize, put: &mut dyn FnMut(&[u8])) {
    put(&form);
    [rows, cols].iter().for_each(|&n| put(&(n as u32).to_le_bytes()));
}

fn write_packed(packed: &Packed, put: &mut dyn FnMut(&[u8])) {
    let format = packed.format();
    let codes = CODES.iter().position(|codes| *codes == format.codes).expect("a table with a number");
    let form = [0, codes as u8, scales_byte(format.scales, format.offsets), (format.group / 32) as u8];
    write_header(form, packed.rows(), packed.cols(), put);
    (0..packed.panels()).for_each(|panel| put(packed.panel(panel)));
}

fn scales_byte(scales: Scales, offsets: bool) -> u8 {
    u8::from(scales == Scales::F32) + 2 * u8::from(offsets)
}

fn write_matrix(matrix: &Matrix, put: &mut dyn FnMut(&[u8])) {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let stored_row = |row: usize| matrix.first_row + row * matrix.row_step;
    // The part of every row in a plane that has `bytes` bytes for `group` columns.
    let plane = |plane: &Bytes, group: usize, bytes: usize, put: &mut dyn FnMut(&[u8])| {
        let stored = matrix.stored_cols.div_ceil(group);
        for row in 0..rows {
            let start = stored_row(row) * stored + matrix.first_col / group;
            put(&plane.as_slice()[start * bytes..(start + cols.div_ceil(group)) * bytes]);
        }
    };
    match &matrix.data {
        MatrixData::Plain { kind, elements } => {
            let number = ELEMENTS.iter().position(|known| known == kind).expect("one of three");
            write_header([1, number as u8, 0, 0], rows, cols, put);
            plane(elements, 1, kind.bytes(), put);
        }
        MatrixData::Fp8 { codes, scales } => {
            let [first, row_step, col] = [matrix.first_row, matrix.row_step, matrix.first_col];
            if !first.is_multiple_of(FP8_BLOCK) || row_step != 1 || !col.is_multiple_of(FP8_BLOCK) {
                return write_values(matrix, put);
            }
            write_header([2, 0, 0, 0], rows, cols, put);
            plane(codes, 1, 1, put);
            let stored = matrix.stored_cols.div_ceil(FP8_BLOCK);
            for block in 0..rows.div_ceil(FP8_BLOCK) {
                let start = (first / FP8_BLOCK + block) * stored + col / FP8_BLOCK;
                put(bytemuck::cast_slice(&scales[start..start + cols.div_ceil(FP8_BLOCK)]));
            }
        }
        MatrixData::Mxfp4 { blocks, scales } => {
            write_header([3, 0, 0, 0], rows, cols, put);
            plane(blocks, MXFP4_GROUP, MXFP4_GROUP / 2, put);
            plane(scales, MXFP4_GROUP, 1, put);
        }
        MatrixData::Int4(int4) => {
            let scales = scales_byte(int4.scale_type, int4.offsets.is_some());
            write_header([4, 0, scales, (int4.group / 32) as u8], rows, cols, put);
            plane(&int4.codes, 2, 1, put);
            plane(&int4.scales, int4.group, int4.scale_type.bytes(), put);
            if let Some(offsets) = &int4.offsets {
                let stored = matrix.stored_cols.div_ceil(int4.group);
                for row in 0..rows {
                    let start = stored_row(row) * stored + matrix.first_col / int4.group;
                    put(bytemuck::cast_slice(&offsets[start..start + cols.div_ceil(int4.group)]));
                }
            }
        }
        MatrixData::Q4_0 { blocks } => {
            write_header([5, 0, 0, 0], rows, cols, put);
            plane(blocks, GGUF_GROUP, Q4_0_BLOCK, put);
        }
        MatrixData::Q8_0 { blocks } => {
            write_header([6, 0, 0, 0], rows, cols, put);
            plane(blocks, GGUF_GROUP, Q8_0_BLOCK, put);
        }
    }
}

/// Any matrix as the f32 values that kernels take it to be.
fn write_values(matrix: &Matrix, put: &mut dyn FnMut(&[u8])) {
    write_header([1, 0, 0, 0], matrix.rows(), matrix.cols(), put);
    let mut values = vec![0.0f32; matrix.cols()];
    for row in 0..matrix.rows() {
        matrix.dequantize_row(row, &mut values);
        put(bytemuck::cast_slice(&values));
    }
}

/// Reads the piece that `shape` says; packed matrices are put into the arena. The device is a CPU.
pub fn read_piece(
    bytes: &[u8],
    shape: &PieceShape,
    device: &Device,
    arena: &mut Arena,
) -> Result<ExpertPiece, WireError> {
    let mut reader = Reader { rest: bytes, device, arena };
    let header = reader.take(PIECE_HEADER, "its header")?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (expert, biases) = (word(4), word(8));
    if header[..4] != MAGIC[..] || word(12) != 0 || biases > 7 {
        return Err(WireError::Magic);
    }
    if expert != shape.expert {
        return Err(WireError::Expert(expert, shape.expert));
    }
    if biases & 4 != 0 && !shape.first {
        return Err(WireError::Bias);
    }
    let gate = reader.weight("gate", [shape.run, shape.hidden])?;
    let up = reader.weight("up", [shape.run, shape.hidden])?;
    let down = reader.weight("down", [shape.hidden, shape.run])?;
    let mut bias = |bit: u32, length: usize| match biases & 1 << bit {
        0 => Ok(None),
        _ => reader.take(4 * length, "a bias").map(|bytes| Some(floats(bytes))),
    };
    let (gate_bias, up_bias, down_bias) = (bias(0, shape.run)?, bias(1, shape.run)?, bias(2, shape.hidden)?);
    if !reader.rest.is_empty() {
        return Err(WireError::Long(reader.rest.len()));
    }
    let piece = ExpertPiece { expert, gate, up, down, gate_bias, up_bias, down_bias };
    if !is_of_one_kind(&piece, shape.unit) {
        return Err(WireError::Mixed);
    }
    Ok(piece)
}

/// Whether kernels take the three matrices together.
fn is_of_one_kind(piece: &ExpertPiece, unit: usize) -> bool {
    match (&piece.gate, &piece.up, &piece.down) {
        (Weight::Plain(_), Weight::Plain(_), Weight::Plain(_)) => true,
        (Weight::Packed(gate), Weight::Packed(up), Weight::Packed(_)) => {
            let (gate, up) = (gate.format(), up.format());
            unit == UNIT_MIN && (gate.codes, gate.group) == (up.codes, up.group)
        }
        _ => false,
    }
}

impl ExpertPiece {
    /// Whether kernels take both in one layer: plain ones with plain ones, packed ones whose gates have groups of one size.
    pub fn goes_with(&self, other: &ExpertPiece) -> bool {
        let group = |piece: &ExpertPiece| piece.gate.packed().map(|packed| packed.format().group);
        group(self) == group(other)
    }
}

struct Reader<'a, 'b> {
    rest: &'a [u8],
    device: &'b Device,
    arena: &'b mut Arena,
}

impl<'a> Reader<'a, '_> {
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(WireError::Short(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn weight(&mut self, what: &'static str, expected: [usize; 2]) -> Result<Weight, WireError> {
        let header = self.take(WEIGHT_HEADER, what)?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (rows, cols) = (word(4), word(8));
        if [rows as usize, cols as usize] != expected {
            return Err(WireError::Shape { what, rows, cols, expected });
        }
        // The expected shape is that of a model, whose bytes can be counted.
        let [rows, cols] = expected;
        let form = WireError::Form(what);
        match header[..4] {
            [0, codes, scales, group] => self.packed(what, (codes, scales, group), expected),
            [1, kind @ 0..3, 0, 0] => {
                let kind = ELEMENTS[usize::from(kind)];
                let elements = self.plane(rows * cols * kind.bytes(), what)?;
                Ok(Matrix::new(MatrixData::Plain { kind, elements }, rows, cols).into())
            }
            [2, 0, 0, 0] => {
                let codes = self.plane(rows * cols, what)?;
                let scales = rows.div_ceil(FP8_BLOCK) * cols.div_ceil(FP8_BLOCK);
                let scales = floats(self.take(4 * scales, what)?).into();
                Ok(Matrix::new(MatrixData::Fp8 { codes, scales }, rows, cols).into())
            }
            [3, 0, 0, 0] if cols.is_multiple_of(MXFP4_GROUP) => {
                let blocks = self.plane(rows * cols / 2, what)?;
                let scales = self.plane(rows * cols / MXFP4_GROUP, what)?;
                Ok(Matrix::new(MatrixData::Mxfp4 { blocks, scales }, rows, cols).into())
            }
            [4, 0, scales, group] if cols.is_multiple_of(2) => {
                let (scale_type, offsets) = scales_of(scales).ok_or(form.clone())?;
                let group = group_of(group).ok_or(form)?;
                let groups = rows * cols.div_ceil(group);
                let codes = self.plane(rows * cols / 2, what)?;
                let scales = self.plane(groups * scale_type.bytes(), what)?;
                let offsets = match offsets {
                    true => Some(floats(self.take(4 * groups, what)?).into()),
                    false => None,
                };
                let int4 = Int4 { codes, scales, scale_type, offsets, group };
                Ok(Matrix::new(MatrixData::Int4(int4.into()), rows, cols).into())
            }
            [5, 0, 0, 0] if cols.is_multiple_of(GGUF_GROUP) => {
                let blocks = self.plane(rows * cols / GGUF_GROUP * Q4_0_BLOCK, what)?;
                Ok(Matrix::new(MatrixData::Q4_0 { blocks }, rows, cols).into())
            }
            [6, 0, 0, 0] if cols.is_multiple_of(GGUF_GROUP) => {
                let blocks = self.plane(rows * cols / GGUF_GROUP * Q8_0_BLOCK, what)?;
                Ok(Matrix::new(MatrixData::Q8_0 { blocks }, rows, cols).into())
            }
            _ => Err(form),
        }
    }

    /// A copy in memory of its own, aligned for whatever it holds.
    fn plane(&mut self, bytes: usize, what: &'static str) -> Result<Bytes, WireError> {
        Ok(Bytes::copied(self.take(bytes, what)?))
    }

    fn packed(
        &mut self,
        what: &'static str,
        (codes, scales, group): (u8, u8, u8),
        [rows, cols]: [usize; 2],
    ) -> Result<Weight, WireError> {
        let known = || {
            let codes = *CODES.get(usize::from(codes))?;
            let (scales, offsets) = scales_of(scales)?;
            Some(PackedFormat { codes, scales, offsets, group: group_of(group)? })
        };
        let format = known().ok_or(WireError::Form(what))?;
        let bytes = self.take(format.bytes(rows, cols), what)?;
        let block = ops::BLOCK_PANELS * cols.div_ceil(format.group) * format.record();
        debug_assert!(rows.div_ceil(PANEL_ROWS) * block >= bytes.len());
        let packed = ops::restore(self.device, (format, rows, cols), self.arena, &|index, out| {
            out.copy_from_slice(&bytes[index * block..index * block + out.len()]);
            Ok::<(), WireError>(())
        })?;
        Ok(packed.into())
    }
}

fn scales_of(byte: u8) -> Option<(Scales, bool)> {
    let scales = if byte & 1 == 0 { Scales::F16 } else { Scales::F32 };
    (byte < 4).then_some((scales, byte & 2 != 0))
}

fn group_of(byte: u8) -> Option<usize> {
    matches!(byte, 1 | 2 | 4).then_some(usize::from(byte) * 32)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|raw| f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])).collect()
}

#[cfg(test)]
mod tests;
