//! Attention over KV: of one row for each of many sequences, and of many rows of one.

use gaterail_cluster::predict::Compute;
use gaterail_kernels::ops::{self, AttentionArgs, KvBuffer, KvForm, KvView, Mask, PAGE_POSITIONS};
use gaterail_kernels::{Buffer, Device, KernelError, Stream, View, ViewMut};
use serde::Serialize;

use super::products::some_values;
use super::usual_seconds;

/// KV that is gone through where memory is what counts.
const KV_BYTES: usize = 64 << 20;
const CONTEXT: usize = 512;
const SEQUENCES_MAX: usize = 128;
/// A piece of a prompt, and where it begins.
const PROMPT: (usize, usize) = (128, 128);

/// One layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub key_width: usize,
    pub value_width: usize,
    /// Whether a value is a part of its key.
    pub latent: bool,
}

impl AttentionShape {
    /// Of a row with one position.
    pub fn operations(&self) -> f64 {
        (2 * self.heads * (self.key_width + self.value_width)) as f64
    }

    fn kv_bytes(&self, form: KvForm) -> usize {
        let width = self.key_width + if self.latent { 0 } else { self.value_width };
        self.kv_heads * width * form.bytes()
    }
}

pub fn attention(device: &Device, shape: AttentionShape, form: KvForm) -> Result<Compute, KernelError> {
    let sequences = (KV_BYTES / (shape.kv_bytes(form) * CONTEXT).max(1)).clamp(1, SEQUENCES_MAX);
    let decode = Layer::new(device, shape, form, (0..sequences).map(|at| (at, CONTEXT - 1)).collect())?;
    let (rows, begin) = PROMPT;
    let prompt = Layer::new(device, shape, form, (0..rows).map(|row| (0, begin + row)).collect())?;
    let stored = (sequences * CONTEXT * shape.kv_bytes(form)) as f64;
    let pairs: usize = (0..rows).map(|row| begin + row + 1).sum();
    Ok(Compute {
        read_bytes_per_second: stored / decode.seconds(device)?,
        operations_per_second: pairs as f64 * shape.operations() / prompt.seconds(device)?,
        few_rows: None,
        call_seconds: 0.0,
    })
}

struct Layer {
    shape: AttentionShape,
    rows: usize,
    keys: KvBuffer,
    values: Option<KvBuffer>,
    q: Buffer<f32>,
    tables: Buffer<u32>,
    table_stride: usize,
    sequences: Buffer<u32>,
    positions: Buffer<u32>,
}

impl Layer {
    /// Rows by (sequence, position).
    fn new(
        device: &Device,
        shape: AttentionShape,
        form: KvForm,
        rows: Vec<(usize, usize)>,
    ) -> Result<Layer, KernelError> {
        let stream = Stream::new(device);
        let sequences = rows.iter().map(|row| row.0).max().unwrap_or(0) + 1;
        let last = rows.iter().map(|row| row.1).max().unwrap_or(0);
        let table_stride = (last + 1).div_ceil(PAGE_POSITIONS);
        let len = sequences * table_stride * PAGE_POSITIONS * shape.kv_heads;
        let filled = |width: usize| {
            let mut cache = KvBuffer::zeros(device, form, len * width)?;
            // Pages that nobody wrote would all be one page of zeros, and lie in the cache.
            match &mut cache {
                KvBuffer::F32(cache) => stream.upload(&vec![0.25; len * width], cache)?,
                KvBuffer::F16(cache) => {
                    stream.upload(&vec![half::f16::from_f32_const(0.25); len * width], cache)?;
                }
            }
            Ok::<_, KernelError>(cache)
        };
        let upload = |values: Vec<u32>| {
            let mut to = Buffer::zeros(device, values.len())?;
            stream.upload(&values, &mut to)?;
            Ok::<_, KernelError>(to)
        };
        let mut q = Buffer::zeros(device, rows.len() * shape.heads * shape.key_width)?;
        stream.upload(&some_values(rows.len() * shape.heads * shape.key_width), &mut q)?;
        Ok(Layer {
            shape,
            rows: rows.len(),
            keys: filled(shape.key_width)?,
            values: if shape.latent { None } else { Some(filled(shape.value_width)?) },
            q,
            tables: upload((0..(sequences * table_stride) as u32).collect())?,
            table_stride,
            sequences: upload(rows.iter().map(|row| row.0 as u32).collect())?,
            positions: upload(rows.iter().map(|row| row.1 as u32).collect())?,
        })
    }

    fn seconds(&self, device: &Device) -> Result<f64, KernelError> {
        let AttentionShape { heads, kv_heads, key_width, value_width, .. } = self.shape;
        let stream = Stream::new(device);
        let mut out = Buffer::zeros(device, self.rows * heads * value_width)?;
        Ok(usual_seconds(|| {
            let args = AttentionArgs {
                q: View::heads(&self.q, self.rows, heads, key_width),
                kv: KvView {
                    keys: &self.keys,
                    values: self.values.as_ref(),
                    kv_heads,
                    key_width,
                    value_width,
                },
                tables: &self.tables,
                table_stride: self.table_stride,
                sequences: &self.sequences,
                positions: &self.positions,
                mask: Mask::Full,
                sinks: None,
                scale: 0.1,
            };
            ops::attention(&stream, &args, ViewMut::heads(&mut out, self.rows, heads, value_width));
        }))
    }
}
