//! A frame: a header of 64 bytes, and raw bytes. All numbers are little-endian.
//!
//! ```text
//! at  type  what
//!  0  u32   magic "GRX2"
//!  4  u8    kind
//!  5  u8    the rows' form: 0 f32; 1, 2, 4 int8 in groups of 32, 64, 128
//!  6  u8[2] zero
//!  8  u64   router
//! 16  u64   epoch
//! 24  u64   call: counts the calls of a channel; a reply has its call's
//! 32  u32   layer
//! 36  u32   rows, T
//! 40  u32   width, H
//! 44  u32   experts per row, K
//! 48  u64   body bytes
//! 56  u64   nanoseconds that the worker computed (replies)
//! ```

use gaterail_proto::{Epoch, LayerId, RouterId};

pub const HEADER_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"GRX2");

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Rows and their routing, to a worker.
    Call,
    /// Their sums, to the router.
    Reply,
    /// A call of an epoch that the worker does not hold: nothing was computed.
    Aborted,
    /// The worker could not compute; the body says why, in UTF-8.
    Failed,
}

/// What rows are on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowForm {
    #[default]
    F32,
    /// Codes in groups of `32 * thirty_twos` along H, each with a scale (ARITHMETIC.md, 7).
    Int8 {
        /// 1, 2 or 4
        thirty_twos: u8,
    },
}

impl RowForm {
    /// int8 in groups of so many, if there are such.
    pub fn int8(group: usize) -> Option<RowForm> {
        let thirty_twos = u8::try_from(group / 32).unwrap_or(0);
        let form = RowForm::from_byte(thirty_twos)?;
        (form != RowForm::F32 && group.is_multiple_of(32)).then_some(form)
    }

    /// G, where there are groups.
    pub fn group(self) -> Option<usize> {
        match self {
            RowForm::F32 => None,
            RowForm::Int8 { thirty_twos } => Some(32 * usize::from(thirty_twos)),
        }
    }

    /// Bytes of a row of `width`; int8 fills up the last group.
    pub fn row_bytes(self, width: usize) -> usize {
        match self.group() {
            None => 4 * width,
            Some(group) => width.div_ceil(group) * (group + 4),
        }
    }

    fn byte(self) -> u8 {
        match self {
            RowForm::F32 => 0,
            RowForm::Int8 { thirty_twos } => thirty_twos,
        }
    }

    fn from_byte(byte: u8) -> Option<RowForm> {
        match byte {
            0 => Some(RowForm::F32),
            1 | 2 | 4 => Some(RowForm::Int8 { thirty_twos: byte }),
            _ => None,
        }
    }
}

/// What stands before every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: FrameKind,
    /// Of the rows of a call; in a reply, the form in which its worker would take the layer's rows.
    pub form: RowForm,
    pub router: RouterId,
    pub epoch: Epoch,
    pub call: u64,
    pub layer: LayerId,
    /// T
    pub rows: u32,
    /// H
    pub width: u32,
    /// K
    pub top_k: u32,
    pub body_bytes: u64,
    pub computed_ns: u64,
}

/// What is wrong with bytes that should have been a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("not a frame")]
    Magic,
    #[error("a frame of an unknown kind: {0}")]
    Kind(u8),
    #[error("rows in an unknown form: {0}")]
    Form(u8),
    #[error("a frame with {bytes} bytes; at most {max} are taken")]
    TooLarge { bytes: u64, max: u64 },
    #[error("a frame's body: {0}")]
    Body(String),
    #[error("a counter of {theirs}, which cannot be where {ours} is known")]
    Counter { ours: u64, theirs: u64 },
}

impl Header {
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_le_bytes());
        put(4, &[self.kind as u8 + 1, self.form.byte()]);
        put(8, &self.router.0.to_le_bytes());
        put(16, &self.epoch.0.to_le_bytes());
        put(24, &self.call.to_le_bytes());
        put(32, &self.layer.0.to_le_bytes());
        put(36, &self.rows.to_le_bytes());
        put(40, &self.width.to_le_bytes());
        put(44, &self.top_k.to_le_bytes());
        put(48, &self.body_bytes.to_le_bytes());
        put(56, &self.computed_ns.to_le_bytes());
        bytes
    }

    /// Reads a header whose body may have `body_max` bytes.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES], body_max: u64) -> Result<Header, FrameError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC || bytes[6..8] != [0; 2] {
            return Err(FrameError::Magic);
        }
        let kinds = [FrameKind::Call, FrameKind::Reply, FrameKind::Aborted, FrameKind::Failed];
        let kind = kinds.into_iter().find(|kind| *kind as u8 + 1 == bytes[4]);
        let header = Header {
            kind: kind.ok_or(FrameError::Kind(bytes[4]))?,
            form: RowForm::from_byte(bytes[5]).ok_or(FrameError::Form(bytes[5]))?,
            router: RouterId(u64_at(8)),
            epoch: Epoch(u64_at(16)),
            call: u64_at(24),
            layer: LayerId(u32_at(32)),
            rows: u32_at(36),
            width: u32_at(40),
            top_k: u32_at(44),
            body_bytes: u64_at(48),
            computed_ns: u64_at(56),
        };
        if header.body_bytes > body_max {
            return Err(FrameError::TooLarge { bytes: header.body_bytes, max: body_max });
        }
        Ok(header)
    }
}

/// A body, kept from frame to frame; its first byte lies on 8, so that numbers in it can be read in place.
#[derive(Default)]
pub struct FrameBody {
    words: Vec<u64>,
    bytes: usize,
}

impl FrameBody {
    /// Room for `bytes` bytes, whatever they hold.
    pub fn resize(&mut self, bytes: usize) -> &mut [u8] {
        let words = bytes.div_ceil(8);
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        self.bytes = bytes;
        &mut bytemuck::cast_slice_mut(&mut self.words)[..bytes]
    }

    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }
}
