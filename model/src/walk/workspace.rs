//! The buffers of one cursor: made for a number of rows, used again for every step that fits.

use gaterail_kernels::ops::{QuantRows, attention_scratch_bytes};
use gaterail_kernels::{Buffer, Device, KernelError, Stream};

use super::batch::Row;
use crate::spec::{AttentionSpec, MlpSpec, ModelSpec};

/// A step's inputs on the device.
pub(super) struct Inputs {
    /// `[T]` each
    pub tokens: Buffer<u32>,
    pub slots: Buffer<u32>,
    pub rows: RowInputs,
    /// Of the rows whose logits are wanted, where those are not all.
    pub asked: RowInputs,
    /// `[sequences, table_stride]`
    pub tables: Buffer<u32>,
    pub table_stride: usize,
    /// Rows whose logits are wanted.
    pub wanted: Buffer<u32>,
}

/// What attention has to know of rows.
pub(super) struct RowInputs {
    /// `[T]` each
    pub positions: Buffer<u32>,
    pub sequences: Buffer<u32>,
    /// Per rotation: cosines and sines, `[T, rotated / 2]`.
    pub angles: Vec<(Buffer<f32>, Buffer<f32>)>,
    /// The temperature of each row, `[T]`.
    pub temperature: Buffer<f32>,
}

impl RowInputs {
    fn new(spec: &ModelSpec, device: &Device, rows_max: usize) -> Result<RowInputs, KernelError> {
        let values = |width: usize| Buffer::<f32>::zeros(device, rows_max * width);
        let angles =
            |rope: &crate::config::Rope| Ok((values(rope.inv_freq.len())?, values(rope.inv_freq.len())?));
        Ok(RowInputs {
            positions: Buffer::zeros(device, rows_max)?,
            sequences: Buffer::zeros(device, rows_max)?,
            angles: spec.ropes.iter().map(angles).collect::<Result<_, KernelError>>()?,
            temperature: values(1)?,
        })
    }

    pub fn upload<'a>(
        &mut self,
        spec: &ModelSpec,
        stream: &Stream,
        rows: impl Iterator<Item = &'a Row> + Clone,
    ) -> Result<(), KernelError> {
        let column = |of: fn(&Row) -> u32| rows.clone().map(of).collect::<Vec<u32>>();
        stream.upload(&column(|row| row.position), &mut self.positions)?;
        stream.upload(&column(|row| row.sequence), &mut self.sequences)?;
        for (rope, (cos_to, sin_to)) in spec.ropes.iter().zip(&mut self.angles) {
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            rows.clone().for_each(|row| rope.angles(row.position, &mut cos, &mut sin));
            stream.upload(&cos, cos_to)?;
            stream.upload(&sin, sin_to)?;
        }
        let temperature = spec.layers.iter().find_map(|layer| match &layer.attention {
            AttentionSpec::Grouped(grouped) => grouped.temperature,
            AttentionSpec::Latent(_) => None,
        });
        if let Some(temperature) = temperature {
            let scales: Vec<f32> = rows.map(|row| temperature.at(row.position)).collect();
            stream.upload(&scales, &mut self.temperature)?;
        }
        Ok(())
    }
}

/// What the layers write, `[T, …]` each.
pub(super) struct Workspace {
    pub rows_max: usize,
    pub inputs: Inputs,
    pub hidden: Buffer<f32>,
    pub normed: Buffer<f32>,
    pub query: Buffer<f32>,
    pub query_normed: Buffer<f32>,
    pub key: Buffer<f32>,
    pub key_normed: Buffer<f32>,
    pub value: Buffer<f32>,
    pub attended: Buffer<f32>,
    /// Latent attention's values before their up-projection, and its low-rank query.
    pub latent: Buffer<f32>,
    pub projected: Buffer<f32>,
    /// Rows in int8, where they meet packed weights.
    pub quantized: QuantRows,
    pub gate: Buffer<f32>,
    pub up: Buffer<f32>,
    pub router: Buffer<f32>,
    pub ids: Buffer<u32>,
    pub weights: Buffer<f32>,
    pub combined: Buffer<f32>,
    pub shared: Buffer<f32>,
    pub shared_logit: Buffer<f32>,
    /// Final norms and logits of the wanted rows.
    pub last: Buffer<f32>,
    pub logits: Buffer<f32>,
}

/// The widest rows over all layers.
#[derive(Default)]
struct Widths {
    query: usize,
    key: usize,
    attended: usize,
    latent: usize,
    mlp: usize,
    experts: usize,
    top_k: usize,
}

impl Widths {
    /// The widest row that a projection reads.
    fn widest(&self, spec: &ModelSpec) -> usize {
        spec.hidden.max(self.attended).max(self.mlp).max(self.latent)
    }

    fn of(spec: &ModelSpec) -> Widths {
        let mut w = Widths::default();
        for layer in &spec.layers {
            match &layer.attention {
                AttentionSpec::Grouped(a) => {
                    w.query = w.query.max(a.heads * a.head_dim);
                    w.key = w.key.max(a.kv_heads * a.head_dim);
                    w.attended = w.attended.max(a.heads * a.head_dim);
                }
                AttentionSpec::Latent(a) => {
                    w.query = w.query.max(a.heads * a.stored_dim()).max(a.q_rank.unwrap_or(0));
                    w.key = w.key.max(a.stored_dim());
                    w.attended = w.attended.max(a.heads * a.value_dim.max(a.query_dim()));
                    w.latent = w.latent.max(a.heads * a.kv_rank).max(a.q_rank.unwrap_or(0));
                }
            }
            match &layer.mlp {
                MlpSpec::Dense { width, .. } => w.mlp = w.mlp.max(*width),
                MlpSpec::Sparse(sparse) => {
                    w.experts = w.experts.max(sparse.experts);
                    w.top_k = w.top_k.max(sparse.top_k);
                    w.mlp = w.mlp.max(sparse.shared.map_or(0, |shared| shared.width));
                }
            }
        }
        w
    }
}

impl Workspace {
    pub fn new(spec: &ModelSpec, device: &Device, rows_max: usize) -> Result<Workspace, KernelError> {
        let w = Widths::of(spec);
        let values = |width: usize| Buffer::<f32>::zeros(device, rows_max * width);
        let numbers = |width: usize| Buffer::<u32>::zeros(device, rows_max * width);
        let inputs = Inputs {
            tokens: numbers(1)?,
            rows: RowInputs::new(spec, device, rows_max)?,
            asked: RowInputs::new(spec, device, rows_max)?,
            slots: numbers(1)?,
            tables: numbers(1)?,
            table_stride: 1,
            wanted: numbers(1)?,
        };
        Ok(Workspace {
            rows_max,
            inputs,
            hidden: values(spec.hidden)?,
            normed: values(spec.hidden)?,
            query: values(w.query)?,
            query_normed: values(w.query)?,
            key: values(w.key)?,
            key_normed: values(w.key)?,
            value: values(w.key)?,
            attended: values(w.attended)?,
            latent: values(w.latent)?,
            projected: values(spec.hidden)?,
            quantized: QuantRows::new(device, rows_max, w.widest(spec))?,
            gate: values(w.mlp)?,
            up: values(w.mlp)?,
            router: values(w.experts)?,
            ids: numbers(w.top_k)?,
            weights: values(w.top_k)?,
            combined: values(spec.hidden)?,
            shared: values(spec.hidden)?,
            shared_logit: values(1)?,
            last: values(spec.hidden)?,
            logits: Buffer::zeros(device, 0)?,
        })
    }

    /// Bytes of a workspace for `rows` rows and `wanted` rows of logits, and what attention keeps beside it.
    pub fn bytes(spec: &ModelSpec, rows: usize, wanted: usize) -> u64 {
        let w = Widths::of(spec);
        let per_row = 6 * spec.hidden + 2 * w.query + 3 * w.key + w.attended + w.latent + 2 * w.mlp;
        let angles: usize = spec.ropes.iter().map(|rope| 2 * rope.inv_freq.len()).sum();
        // Twice: of all rows, and of those that are asked for.
        let per_row = per_row + w.experts + 2 * w.top_k + 2 * (angles + 3) + 4;
        let quantized = QuantRows::bytes(rows, w.widest(spec));
        let attention = spec.layers.iter().map(|layer| match &layer.attention {
            AttentionSpec::Grouped(a) => attention_scratch_bytes(rows, spec.context, a.heads, a.head_dim),
            AttentionSpec::Latent(a) => attention_scratch_bytes(rows, spec.context, a.heads, a.kv_rank),
        });
        let beside = quantized + attention.max().unwrap_or(0);
        ((rows * per_row + wanted * spec.vocab) * size_of::<f32>() + beside) as u64
    }
}
