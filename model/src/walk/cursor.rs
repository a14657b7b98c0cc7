//! How far a batch is on its way through the layers.

use gaterail_kernels::ops::{self, PAGE_POSITIONS, Projection};
use gaterail_kernels::{Buffer, KernelError, Stream, View, ViewMut};
use gaterail_proto::LayerId;

use super::batch::Batch;
use super::lane::{Lane, LaneId};
use super::seam::{ActRows, Routing, StepError};
use super::times::LaneTimes;
use super::workspace::Workspace;
use crate::spec::{MlpSpec, ModelSpec};
use crate::weights::MlpWeights;

/// A batch between two layers. `begin` starts it over with the next batch.
pub struct Cursor {
    lane: LaneId,
    pub(super) work: Workspace,
    /// The layer that comes next; the number of layers when the logits are there.
    layer: usize,
    /// T of the batch; behind the last layer's keys and values the rows whose logits are wanted, if it narrows.
    pub(super) rows: usize,
    /// Rows whose logits are wanted.
    pub(super) wanted: usize,
    /// Whether those are fewer than all.
    pub(super) narrows: bool,
    done: bool,
}

impl Cursor {
    /// A cursor on a lane, with room for `rows_max` rows.
    pub fn new(id: LaneId, lane: &Lane, rows_max: usize) -> Result<Cursor, KernelError> {
        let work = Workspace::new(&lane.spec, lane.stream().device(), rows_max)?;
        Ok(Cursor { lane: id, work, layer: 0, rows: 0, wanted: 0, narrows: false, done: true })
    }

    /// Bytes of a cursor's buffers.
    pub fn bytes(spec: &ModelSpec, rows_max: usize, wanted: usize) -> u64 {
        Workspace::bytes(spec, rows_max, wanted)
    }

    pub fn lane(&self) -> LaneId {
        self.lane
    }

    /// Rows that it has room for.
    pub fn rows_max(&self) -> usize {
        self.work.rows_max
    }

    /// Whether the logits are there.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Puts a batch before the first layer. Panics when it has more rows than the cursor has room for.
    pub fn begin(&mut self, lane: &Lane, batch: &Batch) -> Result<(), StepError> {
        let spec = &lane.spec;
        assert!(
            batch.rows.len() <= self.work.rows_max,
            "{} rows in a cursor for {}",
            batch.rows.len(),
            self.work.rows_max
        );
        if let Some(row) = batch.rows.iter().find(|row| row.token as usize >= spec.vocab) {
            return Err(StepError::Token { token: row.token, vocab: spec.vocab });
        }
        let times = lane.times().clone();
        let _clock = LaneTimes::clock(&times.ends_ns);
        (self.rows, self.wanted, self.layer, self.done) = (batch.rows.len(), batch.logits.len(), 0, false);
        self.narrows = self.wanted < self.rows && !lane.keeps_all;
        if self.work.logits.len() < self.wanted * spec.vocab {
            self.work.logits = Buffer::zeros(lane.stream().device(), self.wanted * spec.vocab)?;
        }
        self.upload(lane, batch)?;
        let hidden = ViewMut::rows(&mut self.work.hidden, self.rows, spec.hidden);
        ops::embed(lane.stream(), &self.work.inputs.tokens, &lane.weights.embedding, hidden);
        Ok(())
    }

    /// Runs to the next sparse layer's gate, or to the logits. `Some`: `outgoing` is ready to be dispatched.
    pub fn until_dispatch(&mut self, lane: &mut Lane) -> Result<Option<LayerId>, StepError> {
        if self.done {
            return Ok(None);
        }
        let times = lane.times().clone();
        while self.layer < lane.spec.layers.len() {
            let clock = LaneTimes::clock(&times.attention_ns);
            self.attention(lane, self.layer);
            drop(clock);
            if self.rows == 0 {
                // Nobody asks for more than keys and values.
                break;
            }
            match &lane.spec.layers[self.layer].mlp {
                MlpSpec::Dense { .. } => {
                    let _clock = LaneTimes::clock(&times.dense_ns);
                    self.post_norm(lane, self.layer);
                    self.dense(lane, self.layer);
                }
                MlpSpec::Sparse(_) => {
                    let _clock = LaneTimes::clock(&times.gate_ns);
                    self.post_norm(lane, self.layer);
                    self.gate(lane, self.layer);
                    return Ok(Some(LayerId(self.layer as u32)));
                }
            }
            self.layer += 1;
        }
        let _clock = LaneTimes::clock(&times.ends_ns);
        self.head(lane);
        self.done = true;
        Ok(None)
    }

    /// The rows and routing of the layer that `until_dispatch` returned.
    pub fn outgoing(&self, lane: &Lane) -> (ActRows<'_>, Routing<'_>) {
        let rows = ActRows { x: &self.work.normed, rows: self.rows, width: lane.spec.hidden };
        let top_k = lane.spec.layers[self.layer].mlp.sparse().map_or(0, |sparse| sparse.top_k);
        (rows, Routing { ids: &self.work.ids, weights: &self.work.weights, top_k })
    }

    /// What the lane does while the rows are with their experts: the shared expert.
    pub fn while_away(&mut self, lane: &Lane) {
        let _clock = LaneTimes::clock(&lane.times().dense_ns);
        if let MlpWeights::Sparse(weights) = &lane.weights.layers[self.layer].mlp {
            self.shared_expert(lane, weights);
        }
    }

    /// Where `combine` writes `[T, H]`.
    pub fn combined(&mut self) -> &mut Buffer<f32> {
        &mut self.work.combined
    }

    /// Adds what came home; the layer is done.
    pub fn after_combine(&mut self, lane: &Lane) {
        let _clock = LaneTimes::clock(&lane.times().dense_ns);
        if let MlpWeights::Sparse(weights) = &lane.weights.layers[self.layer].mlp {
            self.add_combined(lane, weights);
        }
        self.layer += 1;
    }

    /// The logits `[wanted, V]`, in the order of `Batch::logits`.
    pub fn logits(&self, stream: &Stream, vocab: usize) -> Result<Vec<f32>, StepError> {
        let mut logits = vec![0.0; self.logits_len(vocab)];
        self.logits_into(stream, &mut logits)?;
        Ok(logits)
    }

    /// How many those are.
    pub fn logits_len(&self, vocab: usize) -> usize {
        self.wanted * vocab
    }

    /// Copies them to where they are wanted, which is as long.
    pub fn logits_into(&self, stream: &Stream, to: &mut [f32]) -> Result<(), StepError> {
        assert!(self.done, "logits before the end of the walk");
        Ok(stream.download(&self.work.logits, 0, to)?)
    }

    /// The same where the host can work on them; `staging` is used where the device's memory cannot be reached.
    pub fn logits_in_place<'a>(
        &'a mut self,
        stream: &Stream,
        vocab: usize,
        staging: &'a mut Vec<f32>,
    ) -> Result<&'a mut [f32], StepError> {
        assert!(self.done, "logits before the end of the walk");
        Ok(stream.on_host(&mut self.work.logits, self.wanted * vocab, staging)?)
    }

    fn upload(&mut self, lane: &Lane, batch: &Batch) -> Result<(), StepError> {
        let (spec, stream, inputs) = (&lane.spec, lane.stream(), &mut self.work.inputs);
        let tokens: Vec<u32> = batch.rows.iter().map(|row| row.token).collect();
        stream.upload(&tokens, &mut inputs.tokens)?;
        inputs.rows.upload(spec, stream, batch.rows.iter())?;
        if self.narrows {
            let asked = batch.logits.iter().map(|&row| &batch.rows[row as usize]);
            inputs.asked.upload(spec, stream, asked)?;
        }
        let slot = |row: &super::Row| {
            let page = batch.tables[row.sequence as usize][row.position as usize / PAGE_POSITIONS];
            page * PAGE_POSITIONS as u32 + row.position % PAGE_POSITIONS as u32
        };
        stream.upload(&batch.rows.iter().map(slot).collect::<Vec<_>>(), &mut inputs.slots)?;
        stream.upload(&batch.logits, &mut inputs.wanted)?;
        inputs.table_stride = batch.tables.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut tables = vec![0; batch.tables.len() * inputs.table_stride];
        for (row, table) in tables.chunks_exact_mut(inputs.table_stride).zip(&batch.tables) {
            row[..table.len()].copy_from_slice(table);
        }
        if inputs.tables.len() < tables.len() {
            inputs.tables = Buffer::zeros(stream.device(), tables.len().next_power_of_two())?;
        }
        stream.upload(&tables, &mut inputs.tables)?;
        Ok(())
    }

    /// Final norm and head for the wanted rows.
    fn head(&mut self, lane: &Lane) {
        let (spec, stream, work) = (&lane.spec, lane.stream(), &mut self.work);
        if self.wanted == 0 {
            return;
        }
        let wanted = if self.narrows {
            &work.hidden
        } else {
            let hidden = View::rows(&work.hidden, self.rows, spec.hidden);
            let gathered = ViewMut::rows(&mut work.normed, self.wanted, spec.hidden);
            ops::gather_rows(stream, hidden, &work.inputs.wanted, gathered);
            &work.normed
        };
        let wanted = View::rows(wanted, self.wanted, spec.hidden);
        let last = ViewMut::rows(&mut work.last, self.wanted, spec.hidden);
        ops::rms_norm(stream, wanted, Some(&lane.weights.norm), spec.norm_eps, last);
        let last = View::rows(&work.last, self.wanted, spec.hidden);
        let logits = ViewMut::rows(&mut work.logits, self.wanted, spec.vocab);
        let head = Projection { w: &lane.weights.head, bias: None, out: logits };
        ops::project(stream, last, &mut work.quantized, &mut [head]);
    }
}
