//! A trunk of a model's shape whose weights say nothing.

use gaterail_kernels::{Buffer, Bytes, Device, ElementType, KernelError, Matrix, MatrixData, Stream, Weight};
use gaterail_model::spec::{AttentionSpec, LayerSpec, MlpSpec, ModelSpec, QkNorm};
use gaterail_model::weights::{
    AttentionWeights, Latent, LayerWeights, Linear, Mlp, MlpWeights, SparseWeights, TrunkWeights,
};

use super::kind::{Kind, any_bytes};

/// Rows of its embedding: a row is as good as any other.
pub const TOKENS: usize = 256;

/// How the parts of a trunk are stored.
#[derive(Clone, Copy, Debug)]
pub struct Blank {
    pub projections: Kind,
    /// Projections that are not packed at load, whatever the precision: those of latent attention.
    pub stored: Kind,
    pub gate: Kind,
    pub head: Kind,
}

/// Bytes of a layer's weights on the lane.
pub fn layer_bytes(blank: &Blank, spec: &ModelSpec, layer: &LayerSpec) -> u64 {
    let hidden = spec.hidden;
    let each = |(rows, cols): (usize, usize)| blank.projections.bytes(rows, cols);
    let attention: usize = match &layer.attention {
        AttentionSpec::Grouped(a) => {
            let (query, key) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
            [(query, hidden), (key, hidden), (key, hidden), (hidden, query)].map(each).iter().sum()
        }
        AttentionSpec::Latent(a) => {
            let query = a.heads * a.query_dim();
            let low =
                a.q_rank.map_or(each((query, hidden)), |rank| each((rank, hidden)) + each((query, rank)));
            let kv = each((a.stored_dim(), hidden)) + each((a.heads * (a.nope_dim + a.value_dim), a.kv_rank));
            low + kv + each((hidden, a.heads * a.value_dim))
        }
    };
    let width = match &layer.mlp {
        MlpSpec::Dense { width, .. } => *width,
        MlpSpec::Sparse(sparse) => sparse.shared.map_or(0, |shared| shared.width),
    };
    (attention + if width > 0 { 3 * each((width, hidden)) } else { 0 }) as u64
}

impl Blank {
    pub fn trunk(&self, device: &Device, spec: &ModelSpec) -> Result<TrunkWeights, KernelError> {
        let layers = spec.layers.iter().map(|layer| self.layer(device, spec, layer));
        Ok(TrunkWeights {
            embedding: plain(TOKENS, spec.hidden).into(),
            norm: ones(device, spec.hidden)?,
            head: weight(self.head, spec.vocab, spec.hidden),
            layers: layers.collect::<Result<_, _>>()?,
        })
    }

    fn layer(
        &self,
        device: &Device,
        spec: &ModelSpec,
        layer: &LayerSpec,
    ) -> Result<LayerWeights, KernelError> {
        let hidden = spec.hidden;
        let attention = match &layer.attention {
            AttentionSpec::Grouped(a) => {
                let (query, key) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
                let normed = |width: usize| match a.qk_norm {
                    QkNorm::PerHead => ones(device, a.head_dim).map(Some),
                    QkNorm::AllHeads => ones(device, width).map(Some),
                    QkNorm::None | QkNorm::AfterRope => Ok(None),
                };
                AttentionWeights::Grouped {
                    query: self.linear(query, hidden),
                    key: self.linear(key, hidden),
                    value: self.linear(key, hidden),
                    output: self.linear(hidden, query),
                    query_norm: normed(query)?,
                    key_norm: normed(key)?,
                    sinks: if a.sinks { Some(ones(device, a.heads)?) } else { None },
                }
            }
            AttentionSpec::Latent(a) => AttentionWeights::Latent(Latent {
                query_a: match a.q_rank {
                    Some(rank) => Some((self.stored(rank, hidden), ones(device, rank)?)),
                    None => None,
                },
                query: plain(a.heads * a.query_dim(), a.q_rank.unwrap_or(hidden)),
                kv_a: self.stored(a.stored_dim(), hidden),
                kv_norm: ones(device, a.kv_rank)?,
                key_up: plain(a.heads * a.kv_rank, a.nope_dim),
                value_up: plain(a.heads * a.value_dim, a.kv_rank),
                output: self.stored(hidden, a.heads * a.value_dim),
            }),
        };
        let mlp = match &layer.mlp {
            MlpSpec::Dense { width, .. } => MlpWeights::Dense(self.mlp(*width, hidden)),
            MlpSpec::Sparse(sparse) => MlpWeights::Sparse(SparseWeights {
                router: Linear { weight: weight(self.gate, sparse.experts, hidden), bias: None },
                correction: if sparse.correction_bias { Some(ones(device, sparse.experts)?) } else { None },
                shared: sparse.shared.map(|shared| self.mlp(shared.width, hidden)),
                shared_logit: sparse.shared.filter(|shared| shared.gated).map(|_| plain(1, hidden)),
            }),
        };
        let norm = || ones(device, hidden);
        Ok(LayerWeights { input_norm: norm()?, post_norm: norm()?, attention, mlp })
    }

    fn mlp(&self, width: usize, hidden: usize) -> Mlp {
        Mlp {
            gate: self.linear(width, hidden),
            up: self.linear(width, hidden),
            down: self.linear(hidden, width),
        }
    }

    fn stored(&self, rows: usize, cols: usize) -> Linear {
        Linear { weight: weight(self.stored, rows, cols), bias: None }
    }

    fn linear(&self, rows: usize, cols: usize) -> Linear {
        Linear { weight: weight(self.projections, rows, cols), bias: None }
    }
}

fn weight(kind: Kind, rows: usize, cols: usize) -> Weight {
    kind.weight(any_bytes(kind.bytes(rows, cols)), rows, cols)
}

/// What stays a matrix in every precision: per-head products.
fn plain(rows: usize, cols: usize) -> Matrix {
    let elements: Bytes = any_bytes(2 * rows * cols);
    Matrix::new(MatrixData::Plain { kind: ElementType::Bf16, elements }, rows, cols)
}

fn ones(device: &Device, len: usize) -> Result<Buffer<f32>, KernelError> {
    let mut buffer = Buffer::zeros(device, len)?;
    Stream::new(device).upload(&vec![1.0; len], &mut buffer)?;
    Ok(buffer)
}
