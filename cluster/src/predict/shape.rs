//! A model's shape, and what a step is.

use serde::Serialize;

/// A sparse layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerShape {
    /// H
    pub hidden: u32,
    /// E
    pub experts: u32,
    /// K
    pub top_k: u32,
    /// F
    pub width: u32,
    /// Units of each expert.
    pub units: u32,
    /// Of one whole expert.
    pub expert_bytes: f64,
    pub gate_bytes: f64,
    /// Experts meet rows in int8, in groups of so many along H; `None`: in f32.
    pub row_group: Option<u32>,
}

/// A model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shape {
    /// The sparse layers, in the order of the inventory.
    pub layers: Vec<LayerShape>,
    /// What the router reads in every step: projections of attention, dense layers, shared experts.
    pub trunk_bytes: f64,
    /// What it computes with that for a row.
    pub trunk_operations_per_row: f64,
    /// The head, which is for the last row of each sequence alone.
    pub head_bytes: f64,
    pub head_operations_per_row: f64,
    /// KV of one position, over all layers.
    pub kv_bytes_per_position: f64,
    /// Of a row's products with the keys and values of one position, over all layers.
    pub attention_operations_per_position: f64,
}

/// A step: so many rows at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// T
    pub rows: u32,
    /// Whose KV is read: as many as rows in decode, one where the rows are a piece of a prompt.
    pub sequences: u32,
    /// Positions of each that are read.
    pub context: u32,
}

impl Step {
    /// A token for each of so many streams.
    pub fn decode(streams: u32, context: u32) -> Step {
        Step { rows: streams, sequences: streams, context }
    }

    /// So many tokens of one prompt.
    pub fn prefill(rows: u32) -> Step {
        Step { rows, sequences: 1, context: rows / 2 }
    }
}

impl Shape {
    /// The rows of a step that meet experts in a sparse layer: in the last one, behind its keys and values, those whose logits are
    /// wanted. (Models end with a sparse layer; that attention narrows there, too, is left out: less than one layer of them all.)
    pub fn rows(&self, layer: usize, step: Step) -> u32 {
        if layer + 1 == self.layers.len() { step.sequences.min(step.rows) } else { step.rows }
    }
}

impl LayerShape {
    /// Of a row in all of an expert: gate, up and down, a product and a sum for each weight.
    pub fn expert_operations(&self) -> f64 {
        2.0 * 3.0 * f64::from(self.hidden) * f64::from(self.width)
    }
}
