//! Streams that decode together, each step between two measurements of the bandwidth.

use std::time::Instant;

use gaterail_benches::{Spread, row};
use gaterail_kernels::measure::ReadBandwidth;
use gaterail_kernels::ops::PAGE_POSITIONS;
use gaterail_model::kv::PageTable;
use gaterail_model::walk::Batch;

use crate::model::{Model, touched};
use crate::{ROWS_MAX, token};

/// A step counts for the share if the bandwidth before and after it is the same but for this: the machine may be shared.
const APART_MAX: f64 = 0.1;
const PASSES: usize = 2;

/// Streams with as many tokens behind them.
pub struct Decode {
    tables: Vec<PageTable>,
    position: usize,
}

/// One step.
struct Step {
    seconds: f64,
    /// Bytes per second that were read at least.
    read: f64,
    bandwidth: f64,
    /// Bandwidth before and after, apart as a share of the larger.
    apart: f64,
    touched: f64,
}

impl Decode {
    /// What KV holds does not matter for speed, but it has to be memory of its own: a row is written into every page.
    pub fn new(model: &mut Model, streams: usize, context: usize, steps: usize) -> Decode {
        let tables = (0..streams).map(|_| {
            let mut table = PageTable::default();
            model.runner.grow(&mut table, context + steps).expect("pages");
            for starts in (0..context).step_by(PAGE_POSITIONS).collect::<Vec<_>>().chunks(ROWS_MAX) {
                let mut batch = Batch::default();
                starts.iter().for_each(|&start| batch.add(&[0], start, &table, |_| true));
                model.runner.step(&batch).expect("a step");
            }
            table
        });
        Decode { tables: tables.collect(), position: context }
    }

    /// A line of the table: tokens per second, and their share of the bandwidth.
    pub fn measure(&mut self, model: &mut Model, memory: &ReadBandwidth<'_>, steps: usize) -> String {
        let context = self.position;
        // The first reads what nobody has touched yet.
        self.step(model, memory);
        let steps: Vec<Step> = (1..steps).map(|_| self.step(model, memory)).collect();
        let streams = self.tables.len();
        let rates = Spread::new(steps.iter().map(|step| streams as f64 / step.seconds).collect());
        let calm = || steps.iter().filter(|step| step.apart <= APART_MAX);
        let note = match calm().count() {
            0 => "the bandwidth never stayed the same over a step".to_string(),
            kept => {
                let shares = Spread::new(calm().map(|step| step.read / step.bandwidth * 100.0).collect());
                let bandwidths = Spread::new(calm().map(|step| step.bandwidth / 1e9).collect());
                let experts = Spread::new(calm().map(|step| step.touched).collect());
                format!(
                    "{:.0} % ({:.0} to {:.0}) of {:.1} GB/s ({:.1} to {:.1}), {:.1} experts a layer, {kept} of {} steps",
                    shares.median,
                    shares.lower,
                    shares.upper,
                    bandwidths.median,
                    bandwidths.smallest,
                    bandwidths.largest,
                    experts.median,
                    steps.len()
                )
            }
        };
        row(&format!("decode, {streams} streams at {context}"), "tokens/s", &rates, &note)
    }

    fn step(&mut self, model: &mut Model, memory: &ReadBandwidth<'_>) -> Step {
        let mut batch = Batch::default();
        for (stream, table) in self.tables.iter().enumerate() {
            let token = token(self.position * 31 + stream, model.runner.spec().vocab);
            batch.add(&[token], self.position, table, |_| true);
        }
        let bandwidth = || (0..PASSES).map(|_| memory.pass()).fold(0.0, f64::max);
        model.runner.experts().take();
        let before = bandwidth();
        let started = Instant::now();
        model.runner.step(&batch).expect("a step");
        let seconds = started.elapsed().as_secs_f64();
        let after = bandwidth();
        self.position += 1;
        let choices = model.runner.experts().take();
        let kv = (self.tables.len() * self.position * model.position_bytes) as f64;
        Step {
            seconds,
            read: (model.step_bytes(&choices) + kv) / seconds,
            bandwidth: (before + after) / 2.0,
            apart: (before - after).abs() / before.max(after),
            touched: touched(&choices),
        }
    }

    pub fn release(self, model: &mut Model) {
        self.tables.into_iter().for_each(|table| model.runner.release(table));
    }
}
