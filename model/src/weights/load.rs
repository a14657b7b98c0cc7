//! Checking a checkpoint against the table, and taking tensors out of it by slot.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use gaterail_kernels::{
    Arena, Buffer, Bytes, Device, ElementType, FP8_BLOCK, KernelError, MXFP4_GROUP, Matrix, MatrixData,
    Weight,
};

use super::cache::Store;
use super::expected::{Expected, Form, Slot, expected_tensors, stored_form};
use super::int4;
use super::mixed::expert_uses;
use super::precision::{Precision, Use};
use crate::arch::TensorNames;
use crate::checkpoint::{Checkpoint, CheckpointError, StoredType, Tensor};
use crate::config::{Int4Linear, Quantization};
use crate::spec::ModelSpec;

/// Problems that one error lists.
const PROBLEMS_MAX: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("shards: {0}")]
    Shards(String),
}

/// Told of every run of bytes that has been read.
pub type Loading<'a> = &'a mut dyn FnMut(u64);

/// Finds every missing, extra, wrong-shaped or wrong-typed tensor, before anything is loaded.
pub fn check_tensors(spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let mut problems = Vec::new();
    let mut used: HashSet<String> = HashSet::new();
    for expected in expected_tensors(spec) {
        match spec.names.tensors {
            TensorNames::HuggingFace => check_one(spec, checkpoint, &expected, &mut used, &mut problems),
            TensorNames::Gguf => check_gguf(checkpoint, expected, &mut used, &mut problems),
        }
    }
    let mut extra: Vec<&str> = checkpoint
        .names()
        .filter(|name| {
            !used.contains(*name) && !is_ignored(spec, name) && !int4::is_empty_bias(checkpoint, name)
        })
        .collect();
    extra.sort_unstable();
    problems.extend(extra.into_iter().map(|name| format!("{name}: not part of this architecture")));
    if problems.is_empty() {
        return Ok(());
    }
    let count = problems.len();
    let mut list: Vec<String> =
        problems.into_iter().take(PROBLEMS_MAX).map(|line| format!("  {line}")).collect();
    if count > PROBLEMS_MAX {
        list.push(format!("  … and {} more", count - PROBLEMS_MAX));
    }
    Err(CheckpointError::Tensors { path: checkpoint.folder().to_path_buf(), count, list: list.join("\n") })
}

/// Tensors of parts that are not run: other modalities, layers for multi-token prediction, old buffers, a tied head.
fn is_ignored(spec: &ModelSpec, name: &str) -> bool {
    let layers = format!("{}layers.", spec.names.model);
    let beyond = name
        .strip_prefix(&layers)
        .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok())
        .is_some_and(|layer| {
            (spec.layers.len()..spec.layers.len() + spec.prediction_layers).contains(&layer)
        });
    beyond
        || name.ends_with(".rotary_emb.inv_freq")
        || (spec.tied_embeddings && name == spec.names.head)
        || spec.names.ignored.iter().any(|prefix| name.starts_with(prefix))
}

fn check_one(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    expected: &Expected,
    used: &mut HashSet<String>,
    problems: &mut Vec<String>,
) {
    let Expected { name, shape, form, .. } = expected;
    if *form == Form::Stack && checkpoint.tensor(name).is_none() {
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        if checkpoint.tensor(&blocks).is_some() {
            let [e, inputs, outputs] = [shape[0], shape[1], shape[2]];
            if inputs % MXFP4_GROUP != 0 {
                problems.push(format!("{blocks}: {inputs} inputs are no multiple of {MXFP4_GROUP}"));
            }
            let groups = inputs / MXFP4_GROUP;
            check_tensor(checkpoint, &blocks, &[e, outputs, groups, 16], &[StoredType::U8], problems);
            check_tensor(checkpoint, &scales, &[e, outputs, groups], &[StoredType::U8], problems);
            used.extend([blocks, scales]);
            return;
        }
    }
    if let Quantization::Int4(stored) = stored_form(spec.quantization, *form) {
        // Layers that were left out of the quantisation have their weight as it was.
        if checkpoint.tensor(name).is_none() {
            int4::check(stored, checkpoint, expected, used, problems);
            return;
        }
    }
    const PLAIN: [StoredType; 3] = [StoredType::F32, StoredType::F16, StoredType::Bf16];
    let coded = *form == Form::Matrix;
    let with_fp8 = [StoredType::F32, StoredType::F16, StoredType::Bf16, StoredType::F8E4m3];
    check_tensor(checkpoint, name, shape, if coded { &with_fp8 } else { &PLAIN }, problems);
    if checkpoint.tensor(name).is_some_and(|tensor| tensor.stored == StoredType::F8E4m3) {
        let scale = scale_name(name);
        let blocks: Vec<usize> = shape.iter().map(|n| n.div_ceil(FP8_BLOCK)).collect();
        check_tensor(checkpoint, &scale, &blocks, &PLAIN, problems);
        used.insert(scale);
    }
    used.insert(name.clone());
}

/// Every matrix of a GGUF file may be in blocks.
fn check_gguf(
    checkpoint: &Checkpoint,
    expected: Expected,
    used: &mut HashSet<String>,
    problems: &mut Vec<String>,
) {
    use StoredType::{Bf16, F16, F32, Q4_0, Q8_0};
    const PLAIN: &[StoredType] = &[F32, F16, Bf16];
    const ALL: &[StoredType] = &[F32, F16, Bf16, Q4_0, Q8_0];
    let types = if expected.form == Form::Vector { PLAIN } else { ALL };
    check_tensor(checkpoint, &expected.name, &expected.shape, types, problems);
    used.insert(expected.name);
}

pub(super) fn check_tensor(
    checkpoint: &Checkpoint,
    name: &str,
    shape: &[usize],
    types: &[StoredType],
    problems: &mut Vec<String>,
) {
    let Some(tensor) = checkpoint.tensor(name) else {
        problems.push(format!("{name}: missing, {shape:?} expected"));
        return;
    };
    let file = tensor.path.file_name().unwrap_or_default().to_string_lossy();
    if tensor.shape != shape {
        problems.push(format!("{name} in {file}: shape {:?}, {shape:?} expected", tensor.shape));
    }
    if !types.contains(&tensor.stored) {
        let types: Vec<String> = types.iter().map(StoredType::to_string).collect();
        problems.push(format!(
            "{name} in {file}: stored as {}, {} expected",
            tensor.stored,
            types.join(" or ")
        ));
    }
}

/// DeepSeek-V3's name for the scales beside a weight.
fn scale_name(name: &str) -> String {
    format!("{name}_scale_inv")
}

/// Takes tensors out of a checked checkpoint by slot.
pub struct Loader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    table: HashMap<Slot, Expected>,
    layers: usize,
    pub(super) quantization: Quantization,
    pub(super) device: &'a Device,
    pub(super) precision: Precision,
    /// Where packed matrices lie.
    pub(super) arena: Arena,
    /// Packed matrices that are kept from one start to the next.
    pub(super) store: Option<Store>,
    pub(super) loading: Loading<'a>,
}

impl<'a> Loader<'a> {
    /// The checkpoint must have passed `check_tensors` with this specification.
    pub fn new(
        spec: &ModelSpec,
        checkpoint: &'a Checkpoint,
        device: &'a Device,
        precision: Precision,
        loading: Loading<'a>,
    ) -> Loader<'a> {
        let table = expected_tensors(spec).into_iter().map(|expected| (expected.slot, expected)).collect();
        Loader {
            checkpoint,
            table,
            layers: spec.layers.len(),
            quantization: spec.quantization,
            device,
            precision,
            arena: Arena::default(),
            store: None,
            loading,
        }
    }

    pub fn device(&self) -> &'a Device {
        self.device
    }

    pub(super) fn expected(&self, slot: Slot) -> &Expected {
        self.table.get(&slot).unwrap_or_else(|| panic!("{slot:?} is not part of this model"))
    }

    /// The tensor of a slot; it may stand under other names where it is stored in parts.
    pub fn name(&self, slot: Slot) -> &str {
        &self.expected(slot).name
    }

    /// A tensor that the check has seen, its pages read.
    fn tensor(&mut self, name: &str) -> Tensor<'a> {
        let tensor = self.checkpoint.tensor(name).unwrap_or_else(|| panic!("{name} was checked to be there"));
        read_pages(tensor.bytes.as_slice(), self.loading);
        tensor
    }

    /// A vector as f32, or `None` where the model has none.
    pub fn vector_if(&mut self, slot: Slot) -> Result<Option<Buffer<f32>>, LoadError> {
        if !self.table.contains_key(&slot) {
            return Ok(None);
        }
        let values = self.values(slot);
        let mut buffer = Buffer::zeros(self.device, values.len())?;
        gaterail_kernels::Stream::new(self.device).upload(&values, &mut buffer)?;
        Ok(Some(buffer))
    }

    pub fn vector(&mut self, slot: Slot) -> Result<Buffer<f32>, LoadError> {
        // The table has this slot for every model; `values` names it if not.
        Ok(self.vector_if(slot)?.unwrap_or_else(|| panic!("{slot:?} is not part of this model")))
    }

    /// A tensor's values as f32, row-major.
    pub fn values(&mut self, slot: Slot) -> Vec<f32> {
        let name = self.expected(slot).name.clone();
        let tensor = self.tensor(&name);
        let length: usize = tensor.shape.iter().product();
        let mut values = vec![0.0; length];
        plain_matrix(&tensor, 1, length).dequantize_row(0, &mut values);
        values
    }

    /// Whether the model has this tensor.
    pub fn has(&self, slot: Slot) -> bool {
        self.table.contains_key(&slot)
    }

    /// A matrix `[rows, cols]` as stored.
    pub fn matrix(&mut self, slot: Slot) -> Matrix {
        let Expected { name, shape, .. } = self.expected(slot).clone();
        if let Some(stored) = self.int4(slot) {
            return self.int4_part(stored, slot, 0..shape[0], 0..shape[1]);
        }
        let tensor = self.tensor(&name);
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        if tensor.stored != StoredType::F8E4m3 {
            return whole_matrix(&tensor, rows, cols);
        }
        let scale = self.tensor(&scale_name(&name));
        let count: usize = scale.shape.iter().product();
        let mut scales = vec![0.0; count];
        plain_matrix(&scale, 1, count).dequantize_row(0, &mut scales);
        Matrix::new(MatrixData::Fp8 { codes: tensor.bytes, scales: scales.into() }, rows, cols)
    }

    /// Rows of a matrix; what has to be turned round is copied, and no more than the rows.
    pub fn matrix_rows(&mut self, slot: Slot, rows: Range<usize>) -> Matrix {
        let cols = self.expected(slot).shape[1];
        match self.int4(slot) {
            Some(stored) => self.int4_part(stored, slot, rows, 0..cols),
            None => self.matrix(slot).row_slice(rows.start, 1, rows.len()),
        }
    }

    /// Columns of a matrix, whole groups of what has groups; what has to be turned round is copied, and no more than the
    /// columns.
    pub fn matrix_cols(&mut self, slot: Slot, cols: Range<usize>) -> Matrix {
        let rows = self.expected(slot).shape[0];
        match self.int4(slot) {
            Some(stored) => self.int4_part(stored, slot, 0..rows, cols),
            None => self.matrix(slot).col_slice(cols.start, cols.len()),
        }
    }

    /// How a matrix is stored, if it is in 4 bits.
    fn int4(&self, slot: Slot) -> Option<Int4Linear> {
        let expected = self.expected(slot);
        match stored_form(self.quantization, expected.form) {
            Quantization::Int4(stored) => {
                Some(stored).filter(|_| self.checkpoint.tensor(&expected.name).is_none())
            }
            _ => None,
        }
    }

    fn int4_part(
        &mut self,
        stored: Int4Linear,
        slot: Slot,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Matrix {
        let Expected { name, shape, .. } = self.expected(slot).clone();
        let names = int4::tensor_names(&name).expect("a linear layer's weight");
        let layer = int4::Layer {
            stored,
            rows: shape[0],
            cols: shape[1],
            qweight: self.tensor(&names.qweight).bytes.aligned_for::<u32>(),
            qzeros: self.tensor(&names.qzeros).bytes.aligned_for::<u32>(),
            scales: self.tensor(&names.scales),
        };
        layer.part(rows, cols)
    }

    /// A matrix `[rows, cols]` in the precision asked for.
    pub fn weight(&mut self, slot: Slot, usage: Use) -> Weight {
        let place = self.whole_place(slot);
        if let Some(weight) = self.recall(slot, &place, usage) {
            return weight;
        }
        let matrix = self.matrix(slot);
        self.run_as(&place, matrix, usage)
    }

    /// How the experts of each layer are run.
    pub fn expert_uses(&self) -> Vec<Use> {
        expert_uses(self.layers, self.table.values(), self.checkpoint, self.precision)
    }

    /// One expert of a stack, as stored.
    pub fn stacked(&mut self, slot: Slot, expert: usize) -> Stacked {
        let Expected { name, shape, .. } = self.expected(slot).clone();
        let (inputs, outputs) = (shape[1], shape[2]);
        if self.checkpoint.tensor(&name).is_some() {
            let tensor = self.part_of(&name, expert, shape[0]);
            return Stacked::InputsFirst(plain_matrix(&tensor, inputs, outputs));
        }
        let blocks = self.part_of(&format!("{name}_blocks"), expert, shape[0]).bytes;
        let scales = self.part_of(&format!("{name}_scales"), expert, shape[0]).bytes;
        Stacked::OutputsFirst(Matrix::new(MatrixData::Mxfp4 { blocks, scales }, outputs, inputs))
    }

    /// One expert of a stack `[E, out, in]`, as stored.
    pub fn output_stacked(&mut self, slot: Slot, expert: usize) -> Matrix {
        let Expected { name, shape, .. } = self.expected(slot).clone();
        let tensor = self.part_of(&name, expert, shape[0]);
        whole_matrix(&tensor, shape[1], shape[2])
    }

    /// The values of one expert of a stack of vectors `[E, n]`.
    pub fn stacked_values(&mut self, slot: Slot, expert: usize) -> Vec<f32> {
        let Expected { name, shape, .. } = self.expected(slot).clone();
        let tensor = self.part_of(&name, expert, shape[0]);
        let mut values = vec![0.0; shape[1]];
        plain_matrix(&tensor, 1, shape[1]).dequantize_row(0, &mut values);
        values
    }

    /// The `index`-th of `count` equal parts of a tensor.
    fn part_of(&mut self, name: &str, index: usize, count: usize) -> Tensor<'a> {
        let mut tensor =
            self.checkpoint.tensor(name).unwrap_or_else(|| panic!("{name} was checked to be there"));
        let size = tensor.bytes.len() / count;
        tensor.bytes = tensor.bytes.slice(index * size..(index + 1) * size);
        read_pages(tensor.bytes.as_slice(), self.loading);
        tensor
    }
}

/// A matrix whose inputs or outputs come first. Parts come out as `[out, in]`; only parts that are stored the other way
/// round are copied, and no more than the part.
pub enum Stacked {
    /// `[in, out]`
    InputsFirst(Matrix),
    /// `[out, in]`
    OutputsFirst(Matrix),
}

impl Stacked {
    /// Outputs `first..first + count`.
    pub fn outputs(&self, first: usize, count: usize) -> Matrix {
        match self {
            Stacked::InputsFirst(matrix) => matrix.col_slice(first, count).transposed(),
            Stacked::OutputsFirst(matrix) => matrix.row_slice(first, 1, count),
        }
    }

    /// Inputs `first..first + count`.
    pub fn inputs(&self, first: usize, count: usize) -> Matrix {
        match self {
            Stacked::InputsFirst(matrix) => matrix.row_slice(first, 1, count).transposed(),
            Stacked::OutputsFirst(matrix) => matrix.col_slice(first, count),
        }
    }
}

/// A matrix whose scales, if it has any, lie between its codes.
fn whole_matrix(tensor: &Tensor<'_>, rows: usize, cols: usize) -> Matrix {
    let blocks = || tensor.bytes.clone();
    match tensor.stored {
        StoredType::Q4_0 => Matrix::new(MatrixData::Q4_0 { blocks: blocks() }, rows, cols),
        StoredType::Q8_0 => Matrix::new(MatrixData::Q8_0 { blocks: blocks() }, rows, cols),
        _ => plain_matrix(tensor, rows, cols),
    }
}

fn plain_matrix(tensor: &Tensor<'_>, rows: usize, cols: usize) -> Matrix {
    let (kind, elements): (ElementType, Bytes) = match tensor.stored {
        StoredType::F32 => (ElementType::F32, tensor.bytes.aligned_for::<f32>()),
        StoredType::F16 => (ElementType::F16, tensor.bytes.aligned_for::<u16>()),
        StoredType::Bf16 => (ElementType::Bf16, tensor.bytes.aligned_for::<u16>()),
        other => panic!("{} was checked not to be stored as {other}", tensor.name),
    };
    Matrix::new(MatrixData::Plain { kind, elements }, rows, cols)
}

/// Reads one byte of every page, so that the disk's work happens now, under the progress bar.
fn read_pages(bytes: &[u8], loading: Loading<'_>) {
    const PAGE: usize = 4096;
    const REPORT: usize = 16 << 20;
    for chunk in bytes.chunks(REPORT) {
        let sum = chunk.iter().step_by(PAGE).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        std::hint::black_box(sum);
        loading(chunk.len() as u64);
    }
}
