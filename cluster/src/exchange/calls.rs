//! What is in a call: x `[T, H]` f32, ids `[T, K]` u32, weights `[T, K]` f32, one after another.
//!
//! The rows are those that the worker needs, in the router's order; the router alone knows where they stand in its batch. An id
//! of an expert that the worker does not hold is passed over. A reply's body is what `kernels` makes of partial sums.

use std::time::Instant;

use super::channel::{Channel, ChannelError};
use super::frame::{FrameError, FrameKind, Header};

const _: () = assert!(cfg!(target_endian = "little"), "frames are little-endian, and read in place");

/// The rows of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CallRows<'a> {
    /// `[T, H]`
    pub x: &'a [f32],
    /// `[T, K]`
    pub ids: &'a [u32],
    /// `[T, K]`
    pub weights: &'a [f32],
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
        assert!(self.x.len() == rows * width && self.ids.len() == rows * top_k, "a call's shape");
        assert_eq!(self.ids.len(), self.weights.len(), "a call's shape");
        let parts = [
            bytemuck::cast_slice(self.x),
            bytemuck::cast_slice(self.ids),
            bytemuck::cast_slice(self.weights),
        ];
        channel.send(header, &parts, deadline)
    }

    /// The rows in a call's body.
    pub fn read(header: &Header, body: &'a [u8]) -> Result<CallRows<'a>, FrameError> {
        let (rows, width, top_k) = (u64::from(header.rows), u64::from(header.width), u64::from(header.top_k));
        let wanted = rows.checked_mul(4 * (width + 2 * top_k));
        if header.kind != FrameKind::Call || wanted != Some(body.len() as u64) {
            let detail = format!("{} bytes for {rows} rows of {width} with {top_k} experts", body.len());
            return Err(FrameError::Body(detail));
        }
        let (x, routing) = body.split_at((rows * width * 4) as usize);
        let (ids, weights) = routing.split_at(routing.len() / 2);
        let cast = |_| FrameError::Body("not aligned".to_string());
        Ok(CallRows {
            x: bytemuck::try_cast_slice(x).map_err(cast)?,
            ids: bytemuck::try_cast_slice(ids).map_err(cast)?,
            weights: bytemuck::try_cast_slice(weights).map_err(cast)?,
        })
    }
}

/// The bytes of the largest body for steps of `rows` rows: a reply's, whose sums have 8 bytes each, or a call's.
pub fn body_bytes_max(rows: usize, width: usize, top_k: usize) -> u64 {
    let call = rows * 4 * (width + 2 * top_k);
    let reply = rows.next_multiple_of(8) + rows * (8 * width + 8);
    call.max(reply) as u64
}
