//! Experts in this process: any number of shards that together hold every expert.

use std::sync::Arc;
use std::time::Instant;

use gaterail_kernels::ops::{ExpertsScratch, PartialSums, partial_sums};
use gaterail_kernels::{Buffer, Device, Stream, View, ViewMut};
use gaterail_proto::LayerId;

use super::held::{ExpertMath, RoutedRows};
use super::hits::Hits;
use super::seam::{ActRows, ExpertLayer, Routing, StepError};
use crate::spec::ModelSpec;
use crate::weights::ExpertShard;

/// Computes shard after shard and adds their partial sums, as if each had come over an exchange.
pub struct LocalExperts {
    math: ExpertMath,
    shards: Vec<ExpertShard>,
    /// Sums that no ticket uses.
    spare: Vec<PartialSums>,
    /// Made with the first batch.
    scratch: Option<ExpertsScratch>,
    hits: Arc<Hits>,
    /// Ids on their way to be counted.
    ids: Vec<u32>,
}

/// Sums of rows that are computed and not yet fetched.
#[must_use]
pub struct LocalTicket {
    rows: usize,
    sums: PartialSums,
}

impl LocalExperts {
    pub fn new(spec: &ModelSpec, shards: Vec<ExpertShard>) -> LocalExperts {
        let math = ExpertMath::of(spec);
        let hits = Arc::new(Hits::new(&math));
        LocalExperts { math, shards, spare: Vec::new(), scratch: None, hits, ids: Vec::new() }
    }

    /// Where rows went. Nothing is counted where looking would make the host wait for a GPU.
    pub fn hits(&self) -> &Arc<Hits> {
        &self.hits
    }

    fn count(
        &mut self,
        layer: LayerId,
        rows: usize,
        routing: &Routing<'_>,
        stream: &Stream,
    ) -> Result<(), StepError> {
        if let Device::Cpu(_) = stream.device() {
            self.ids.resize(rows * routing.top_k, 0);
            stream.download(routing.ids, 0, &mut self.ids)?;
            self.hits.count(layer, rows, &self.ids);
        }
        Ok(())
    }

    /// Zero sums for `rows` rows, recycled where possible.
    fn sums(&mut self, rows: usize, stream: &Stream) -> Result<PartialSums, StepError> {
        let width = self.math.hidden;
        let mut sums = match self.spare.iter().position(|sums| sums.fits(rows, width)) {
            Some(index) => self.spare.swap_remove(index),
            None => PartialSums::new(stream.device(), rows, width)?,
        };
        sums.reset(stream, rows);
        Ok(sums)
    }

    fn compute(
        &mut self,
        shard: usize,
        layer: LayerId,
        rows: &ActRows<'_>,
        routing: &Routing<'_>,
        stream: &Stream,
        sums: &mut PartialSums,
    ) -> Result<(), StepError> {
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            none => none.insert(ExpertsScratch::new(stream.device())?),
        };
        let x = View::rows(rows.x, rows.rows, rows.width).into();
        let rows = RoutedRows { x, ids: routing.ids, weights: routing.weights, top_k: routing.top_k };
        Ok(self.math.add(&self.shards[shard], layer, &rows, stream, scratch, sums)?)
    }
}

impl ExpertLayer for LocalExperts {
    type Ticket = LocalTicket;

    fn dispatch(
        &mut self,
        layer: LayerId,
        rows: &ActRows<'_>,
        routing: &Routing<'_>,
        stream: &Stream,
    ) -> Result<LocalTicket, StepError> {
        self.count(layer, rows.rows, routing, stream)?;
        let mut total = self.sums(rows.rows, stream)?;
        match self.shards.len() {
            1 => self.compute(0, layer, rows, routing, stream, &mut total)?,
            shards => {
                let mut partial = self.sums(rows.rows, stream)?;
                for shard in 0..shards {
                    partial.reset(stream, rows.rows);
                    self.compute(shard, layer, rows, routing, stream, &mut partial)?;
                    partial_sums::add(stream, &partial, &mut total);
                }
                self.spare.push(partial);
            }
        }
        Ok(LocalTicket { rows: rows.rows, sums: total })
    }

    fn combine(
        &mut self,
        ticket: LocalTicket,
        out: &mut Buffer<f32>,
        stream: &Stream,
    ) -> Result<(), StepError> {
        let out = ViewMut::rows(out, ticket.rows, self.math.hidden);
        partial_sums::finish(stream, &ticket.sums, self.math.fraction_bits, out);
        self.spare.push(ticket.sums);
        Ok(())
    }

    fn finish(&mut self, _deadline: Instant) -> Result<(), StepError> {
        Ok(())
    }
}
