//! What the engine needs of a model.

use gaterail_model::walk::{Batch, ExpertLayer, Runner, StepError};

/// Computes steps. A runner does; so do the tests' twins, whose logits show at once when a page is not what it ought to be.
pub trait Model {
    /// As `config.json` names it.
    fn architecture(&self) -> &str;

    /// V
    fn vocab(&self) -> usize;

    /// Positions that the model can tell apart.
    fn context(&self) -> usize;

    /// Pages of KV over all sequences.
    fn pages(&self) -> usize;

    /// Rows that one step has room for.
    fn rows_max(&self) -> usize;

    /// One step; the logits `[wanted, V]`, to be changed at will.
    fn step(&mut self, batch: &Batch) -> Result<&mut [f32], StepError>;

    /// Nothing is to be computed for now.
    fn rest(&mut self) {}
}

impl<E: ExpertLayer> Model for Runner<E> {
    fn architecture(&self) -> &str {
        &self.spec().architecture
    }

    fn context(&self) -> usize {
        self.spec().context
    }

    fn vocab(&self) -> usize {
        self.spec().vocab
    }

    fn pages(&self) -> usize {
        Runner::pages(self)
    }

    fn rows_max(&self) -> usize {
        Runner::rows_max(self)
    }

    fn step(&mut self, batch: &Batch) -> Result<&mut [f32], StepError> {
        self.step_in_place(batch)
    }

    fn rest(&mut self) {
        self.experts().rest();
    }
}
