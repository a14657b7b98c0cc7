//! Partial sums on their way from one process to another: bytes that hold the same integers.
//!
//! ```text
//! tags   [T] u8, then zeros to a multiple of 8
//! rows   in order, each to a multiple of 8 bytes
//! ```
//!
//! A row of zeros (tag 0) and a poisoned row (tag 3: whatever it sums up to is NaN) have no bytes; a row whose sums fit has
//! `[H]` i32 (tag 1), any other `[H]` i64 (tag 2), little-endian. ARITHMETIC.md, 6.

use super::PartialSums;
use crate::cpu::travel::{add_i32, add_i64, narrow};
use crate::device::{Device, Isa};
use crate::error::KernelError;
use crate::stream::Stream;

const ZERO: u8 = 0;
const I32: u8 = 1;
const I64: u8 = 2;
const POISONED: u8 = 3;

/// What is wrong with bytes that should have been sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TravelError {
    #[error("a row of sums of an unknown kind: {0}")]
    Tag(u8),
    #[error("sums of {rows} rows of {width} in {bytes} bytes")]
    Length { rows: usize, width: usize, bytes: usize },
}

/// The bytes of sums, and what making them needs; kept from call to call.
#[derive(Default)]
pub struct SumsBytes {
    words: Vec<u64>,
    bytes: usize,
    /// A GPU's sums on the host.
    sums: Vec<i64>,
    poison: Vec<u32>,
}

impl SumsBytes {
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    /// Takes the place of what was there with the bytes of `sums`.
    pub fn encode(&mut self, stream: &Stream, sums: &PartialSums) -> Result<(), KernelError> {
        let (rows, width) = (sums.rows, sums.width);
        let (words_of_tags, words_of_row) = (rows.div_ceil(8), width);
        let most = words_of_tags + rows * words_of_row;
        if self.words.len() < most {
            self.words.resize(most, 0);
        }
        let isa = isa(stream);
        let (values, poison) = if stream.cuda().is_some() {
            self.sums.resize(rows * width, 0);
            self.poison.resize(rows, 0);
            stream.download(&sums.sums, 0, &mut self.sums)?;
            stream.download(&sums.poison, 0, &mut self.poison)?;
            (&self.sums[..], &self.poison[..])
        } else {
            (&sums.sums.host()[..rows * width], &sums.poison.host()[..rows])
        };
        let (tags, mut free) = self.words.split_at_mut(words_of_tags);
        tags.fill(0);
        let tags: &mut [u8] = bytemuck::cast_slice_mut(tags);
        let mut words = words_of_tags;
        for ((row, poison), tag) in values.chunks_exact(width.max(1)).zip(poison).zip(tags) {
            if *poison != 0 {
                *tag = POISONED;
                continue;
            }
            let narrow_words = width.div_ceil(2);
            free[narrow_words - 1] = 0;
            let out: &mut [i32] = &mut bytemuck::cast_slice_mut(&mut free[..narrow_words])[..width];
            let mut seen = Seen::default();
            narrow(isa, row, out, &mut seen);
            let taken = match seen {
                Seen { any: false, .. } => continue,
                Seen { wide: false, .. } => {
                    *tag = I32;
                    narrow_words
                }
                _ => {
                    *tag = I64;
                    free[..width].copy_from_slice(bytemuck::cast_slice(row));
                    width
                }
            };
            words += taken;
            free = &mut free[taken..];
        }
        self.bytes = 8 * words;
        Ok(())
    }
}

/// What a row's sums are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether one is not zero.
    pub any: bool,
    /// Whether one does not fit 32 bits.
    pub wide: bool,
}

/// Adds sums that have travelled. Their row `i` belongs to row `rows[i]` of `to`, or to row `i`. The bytes come from another
/// process: nothing is added where they are no sums of that many rows.
pub fn add_travelled(
    stream: &Stream,
    bytes: &[u8],
    count: usize,
    rows: Option<&[u32]>,
    to: &mut PartialSums,
) -> Result<(), TravelError> {
    assert!(matches!(stream.device(), Device::Cpu(_)), "travelled sums are added on the host");
    assert!(rows.map_or(count <= to.rows, |rows| rows.len() == count), "travelled sums: rows");
    let width = to.width;
    let length = TravelError::Length { rows: count, width, bytes: bytes.len() };
    let (tags, mut body) = bytes.split_at_checked(count.next_multiple_of(8)).ok_or(length)?;
    check(tags, count, width, body.len())?.then_some(()).ok_or(length)?;
    let isa = isa(stream);
    for (index, &tag) in tags[..count].iter().enumerate() {
        let row = rows.map_or(index, |rows| rows[index] as usize);
        assert!(row < to.rows, "travelled sums: row {row} of {}", to.rows);
        if tag == POISONED {
            to.poison.host_mut()[row] = 1;
        }
        let sums = &mut to.sums.host_mut()[row * width..][..width];
        let (own, rest) = body.split_at(row_bytes(tag, width));
        match tag {
            I32 => add_i32(isa, own, sums),
            I64 => add_i64(isa, own, sums),
            _ => {}
        }
        body = rest;
    }
    Ok(())
}

/// Whether the rows have as many bytes as their tags say.
fn check(tags: &[u8], count: usize, width: usize, bytes: usize) -> Result<bool, TravelError> {
    let mut wanted = 0;
    for &tag in &tags[..count] {
        if tag > POISONED {
            return Err(TravelError::Tag(tag));
        }
        wanted += row_bytes(tag, width);
    }
    Ok(wanted == bytes && tags[count..].iter().all(|&byte| byte == ZERO))
}

fn row_bytes(tag: u8, width: usize) -> usize {
    match tag {
        I32 => (4 * width).next_multiple_of(8),
        I64 => 8 * width,
        _ => 0,
    }
}

fn isa(stream: &Stream) -> Isa {
    match stream.device() {
        Device::Cpu(cpu) => cpu.isa,
        Device::Cuda(_) => Isa::detect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::CpuOptions;

    fn device(isa: Isa) -> Device {
        Device::cpu(CpuOptions { threads: 1, pin: false, isa, grain: 1 }).unwrap()
    }

    /// Rows of zeros, small, large and poisoned sums, at random.
    fn random(device: &Device, rows: usize, width: usize, seed: u64) -> PartialSums {
        let mut sums = PartialSums::new(device, rows, width).unwrap();
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 20
        };
        for row in 0..rows {
            let kind = next() % 5;
            for value in &mut sums.sums.host_mut()[row * width..][..width] {
                *value = match kind {
                    0 => 0,
                    1 => next() as i32 as i64,
                    2 => [i64::from(i32::MIN), i64::from(i32::MAX), 0, -1][(next() % 4) as usize],
                    3 => [i64::from(i32::MIN) - 1, i64::from(i32::MAX) + 1, 0, 5][(next() % 4) as usize],
                    _ => (next() as i64) << 7,
                };
            }
            sums.poison.host_mut()[row] = u32::from(next() % 6 == 0);
        }
        sums
    }

    #[test]
    fn what_arrives_is_what_was_sent() {
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable].into_iter().filter(|isa| isa.is_available()) {
            let device = device(isa);
            let stream = Stream::new(&device);
            let mut bytes = SumsBytes::default();
            for (seed, (rows, width)) in
                [(1, 1), (1, 2), (3, 7), (8, 64), (9, 65), (17, 33), (40, 128)].into_iter().enumerate()
            {
                let from = random(&device, rows, width, 77 + seed as u64);
                bytes.encode(&stream, &from).unwrap();
                // Into every second row of something larger, which has sums of its own.
                let mut to = random(&device, 2 * rows + 1, width, 5);
                let places: Vec<u32> = (0..rows as u32).map(|row| 2 * row + 1).collect();
                let before: Vec<i64> = to.sums.host().to_vec();
                let poison_before: Vec<u32> = to.poison.host().to_vec();
                add_travelled(&stream, bytes.bytes(), rows, Some(&places), &mut to).unwrap();
                for (row, was_poisoned) in poison_before.into_iter().enumerate() {
                    let sent = (row % 2 == 1).then_some(row / 2);
                    let poisoned = sent.is_some_and(|row| from.poison.host()[row] != 0);
                    assert_eq!(
                        to.poison.host()[row] != 0,
                        poisoned || was_poisoned != 0,
                        "{isa}, poison of row {row}"
                    );
                    if poisoned {
                        continue;
                    }
                    for column in 0..width {
                        let added = sent.map_or(0, |row| from.sums.host()[row * width + column]);
                        let at = row * width + column;
                        assert_eq!(
                            to.sums.host()[at],
                            before[at].wrapping_add(added),
                            "{isa} {row} {column}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn small_sums_travel_as_32_bits_and_zeros_as_none() {
        let device = device(Isa::detect());
        let stream = Stream::new(&device);
        let mut sums = PartialSums::new(&device, 3, 16).unwrap();
        sums.sums.host_mut()[16] = -7;
        sums.sums.host_mut()[32] = i64::from(i32::MAX) + 1;
        let mut bytes = SumsBytes::default();
        bytes.encode(&stream, &sums).unwrap();
        assert_eq!(bytes.bytes().len(), 8 + 4 * 16 + 8 * 16);
        assert_eq!(&bytes.bytes()[..8], &[ZERO, I32, I64, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn bytes_that_are_no_sums_add_nothing() {
        let device = device(Isa::detect());
        let stream = Stream::new(&device);
        let from = random(&device, 9, 5, 3);
        let mut good = SumsBytes::default();
        good.encode(&stream, &from).unwrap();
        let mut to = PartialSums::new(&device, 9, 5).unwrap();
        let mut refused = |bytes: &[u8], rows: usize| {
            assert!(add_travelled(&stream, bytes, rows, None, &mut to).is_err());
            assert!(
                to.sums.host().iter().all(|&sum| sum == 0) && to.poison.host().iter().all(|&flag| flag == 0)
            );
        };
        for length in 0..good.bytes().len() {
            refused(&good.bytes()[..length], 9);
        }
        let mut bad = good.bytes().to_vec();
        bad.push(0);
        refused(&bad, 9);
        bad.pop();
        bad[0] = 4;
        refused(&bad, 9);
        bad[0] = good.bytes()[0];
        bad[15] = 1;
        refused(&bad, 9);
    }
}
