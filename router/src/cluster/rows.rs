//! The rows of one layer while they are with their experts, and what of them is in a worker's call.

use gaterail_cluster::exchange::{CallRows, CallX, RowForm};
use gaterail_kernels::ops::{self, QuantRows};
use gaterail_kernels::{KernelError, Stream, View};
use gaterail_model::walk::{ActRows, Routing};

use super::routes::Share;

/// Rows and their routing, kept until they are combined: they may have to be sent again.
#[derive(Default)]
pub(super) struct KeptRows {
    /// T
    pub rows: usize,
    /// K
    pub top_k: usize,
    /// `[T, K]`
    pub ids: Vec<u32>,
    /// `[T, K]`
    pub weights: Vec<f32>,
    /// `[T, H]`
    pub x: Vec<f32>,
    /// The same in int8, once somebody wanted it so; f32: nobody did.
    int8: RowForm,
    /// `[T, groups * G]`
    codes: Vec<i8>,
    /// `[T, groups]`
    scales: Vec<f32>,
}

/// Rows that were picked out for one call; kept for its room.
#[derive(Default)]
pub(super) struct Picked {
    x: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    weights: Vec<f32>,
}

impl KeptRows {
    /// Takes the place of what was there.
    pub fn fetch(
        &mut self,
        rows: &ActRows<'_>,
        routing: &Routing<'_>,
        stream: &Stream,
    ) -> Result<(), KernelError> {
        (self.rows, self.top_k, self.int8) = (rows.rows, routing.top_k, RowForm::F32);
        self.x.resize(rows.rows * rows.width, 0.0);
        self.ids.resize(rows.rows * routing.top_k, 0);
        self.weights.resize(rows.rows * routing.top_k, 0.0);
        stream.download(rows.x, 0, &mut self.x)?;
        stream.download(routing.ids, 0, &mut self.ids)?;
        stream.download(routing.weights, 0, &mut self.weights)
    }

    /// Makes them int8 as well; `x` is where they came from.
    pub fn quantize(
        &mut self,
        x: View<'_>,
        form: RowForm,
        room: &mut Option<QuantRows>,
        stream: &Stream,
    ) -> Result<(), KernelError> {
        let Some(group) = form.group() else { return Ok(()) };
        let at = x.layout();
        let room = match room {
            Some(room) if room.has_room(at.rows, at.width) => room,
            room => room.insert(QuantRows::new(stream.device(), at.rows.next_power_of_two(), at.width)?),
        };
        ops::quantize(stream, x, group, room);
        room.download_all(stream, &mut self.codes, &mut self.scales)?;
        self.int8 = form;
        Ok(())
    }

    /// The form that rows go out in where a worker takes `wanted`.
    pub fn form(&self, wanted: RowForm) -> RowForm {
        if wanted == self.int8 { wanted } else { RowForm::F32 }
    }

    /// A share's rows in a form that they are there in.
    pub fn call<'a>(&'a self, share: &'a Share, form: RowForm, picked: &'a mut Picked) -> CallRows<'a> {
        assert_eq!(form, self.form(form), "rows that nobody made int8");
        let is_f32 = form == RowForm::F32;
        if share.rows.len() == self.rows {
            let x = match is_f32 {
                true => CallX::F32(&self.x),
                false => CallX::Int8 { codes: &self.codes, scales: &self.scales },
            };
            return CallRows { x, ids: &share.ids, weights: &self.weights };
        }
        pick(&self.weights, self.rows, &share.rows, &mut picked.weights);
        let x = match is_f32 {
            true => CallX::F32(pick(&self.x, self.rows, &share.rows, &mut picked.x)),
            false => CallX::Int8 {
                codes: pick(&self.codes, self.rows, &share.rows, &mut picked.codes),
                scales: pick(&self.scales, self.rows, &share.rows, &mut picked.scales),
            },
        };
        CallRows { x, ids: &share.ids, weights: &picked.weights }
    }
}

/// Some of `count` rows that lie one after another.
fn pick<'a, T: Copy>(from: &[T], count: usize, rows: &[u32], into: &'a mut Vec<T>) -> &'a [T] {
    let width = from.len() / count;
    into.clear();
    for &row in rows {
        into.extend_from_slice(&from[row as usize * width..][..width]);
    }
    into
}
