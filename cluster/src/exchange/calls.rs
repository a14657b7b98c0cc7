//! What is in a call: scales `[T, groups]` f32 where rows are int8; ids `[T, K]` u32; weights `[T, K]` f32; rows `[T, H]` f32, or
//! `[T, groups * G]` i8. One after another.
//!
//! The rows are those that the worker needs, or all of the batch, in the router's order; the router alone knows where they stand in
//! its batch. An id of an expert that the worker does not hold is passed over. A reply's body is what `kernels` makes of partial sums.

use std::time::Instant;

use super::channel::{Channel, ChannelError};
use super::frame::{FrameError, FrameKind, Header, RowForm};

const _: () = assert!(cfg!(target_endian = "little"), "frames are little-endian, and read in place");

/// The rows of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CallRows<'a> {
    pub x: CallX<'a>,
    /// `[T, K]`
    pub ids: &'a [u32],
    /// `[T, K]`
    pub weights: &'a [f32],
}

/// Activations, in the form that the header says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CallX<'a> {
    /// `[T, H]`
    F32(&'a [f32]),
    Int8 {
        /// `[T, groups * G]`
        codes: &'a [i8],
        /// `[T, groups]`
        scales: &'a [f32],
    },
}

impl<'a> CallX<'a> {
    fn parts(self) -> (&'a [f32], &'a [u8]) {
        match self {
            CallX::F32(x) => (&[], bytemuck::cast_slice(x)),
            CallX::Int8 { codes, scales } => (scales, bytemuck::cast_slice(codes)),
        }
    }
}

/// Bytes of a call's body.
pub fn call_bytes(form: RowForm, rows: usize, width: usize, top_k: usize) -> u64 {
    rows as u64 * (form.row_bytes(width) + 8 * top_k) as u64
}

impl<'a> CallRows<'a> {
    /// Sends a call; `header` has the shape.
    pub fn send(
        self,
        channel: &mut dyn Channel,
        header: &Header,
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        let (rows, width, top_k) = (header.rows as usize, header.width as usize, header.top_k as usize);
        assert_eq!(header.kind, FrameKind::Call, "rows travel in calls");
        let is_int8 = matches!(self.x, CallX::Int8 { .. });
        assert_eq!(is_int8, header.form != RowForm::F32, "a call's form");
        let (scales, x) = self.x.parts();
        assert_eq!(4 * scales.len() + x.len(), rows * header.form.row_bytes(width), "a call's shape");
        assert!(self.ids.len() == rows * top_k && self.weights.len() == rows * top_k, "a call's shape");
        let parts = [
            bytemuck::cast_slice(scales),
            bytemuck::cast_slice(self.ids),
            bytemuck::cast_slice(self.weights),
            x,
        ];
        channel.send(header, &parts, deadline)
    }

    /// The rows in a call's body.
    pub fn read(header: &Header, body: &'a [u8]) -> Result<CallRows<'a>, FrameError> {
        let (rows, width, top_k) = (u64::from(header.rows), u64::from(header.width), u64::from(header.top_k));
        // Below 2^35 each.
        let (scales, x) = match header.form.group() {
            None => (0, 4 * width),
            Some(group) => (4 * width.div_ceil(group as u64), width.next_multiple_of(group as u64)),
        };
        let wanted = rows.checked_mul(scales + x + 8 * top_k);
        if header.kind != FrameKind::Call || wanted != Some(body.len() as u64) {
            let detail = format!("{} bytes for {rows} rows of {width} with {top_k} experts", body.len());
            return Err(FrameError::Body(detail));
        }
        let (scales, rest) = body.split_at((rows * scales) as usize);
        let (ids, rest) = rest.split_at((rows * top_k * 4) as usize);
        let (weights, x) = rest.split_at((rows * top_k * 4) as usize);
        Ok(CallRows {
            x: match header.form {
                RowForm::F32 => CallX::F32(numbers(x)?),
                RowForm::Int8 { .. } => {
                    CallX::Int8 { codes: bytemuck::cast_slice(x), scales: numbers(scales)? }
                }
            },
            ids: numbers(ids)?,
            weights: numbers(weights)?,
        })
    }
}

fn numbers<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Result<&[T], FrameError> {
    bytemuck::try_cast_slice(bytes).map_err(|_| FrameError::Body("not aligned".to_string()))
}

/// The bytes of the largest body for steps of `rows` rows: a reply's, whose sums have 8 bytes each, or a call's in f32. Rows in
/// int8 are sent where they have fewer.
pub fn body_bytes_max(rows: usize, width: usize, top_k: usize) -> u64 {
    let reply = rows.next_multiple_of(8) + rows * (8 * width + 8);
    call_bytes(RowForm::F32, rows, width, top_k).max(reply as u64)
}
