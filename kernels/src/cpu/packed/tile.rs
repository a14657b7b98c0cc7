//! A tile: the groups of one panel times up to eight rows that lie side by side.

#![allow(clippy::needless_range_loop)] // rows and lanes by number, over several arrays at once

use super::PEAK_CHAINS;
use super::form::{Decode, Form, INT8, Span};
use super::rows::TileRows;
use crate::cpu::lanes::{LANES, Lanes};
use crate::packed::{LINE, Packed, Scales};

/// Sixteen i32 lanes that gather a group's integer products.
///
/// # Safety
/// As for `Lanes`; pointers must be good for the extents named.
pub(crate) trait IntLanes: Lanes {
    type Int: Copy;
    /// The integer products of one group: `lines` 64-byte lines of codes at `codes`, T rows of activations side by side at
    /// `x`. The result is that of the signed integers: `starts` holds what each row begins with where codes are biased.
    unsafe fn group<F: Form, const T: usize>(
        codes: *const u8,
        lines: usize,
        decode: &Decode,
        x: *const i8,
        starts: *const i32,
    ) -> [Self::Int; T];
    /// `rounds` times the integer products of one line of codes with 16 rows, all in registers.
    unsafe fn peak(line: *const u8, rounds: usize);
    unsafe fn to_f32(int: Self::Int) -> Self;
    /// Times `d`, which is a power of two or NaN.
    unsafe fn times_power(self, d: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// Adds `y[i * step] * scale` for up to eight `i`, each rounded half to even, to 16 sums; adds nothing and says so where a
    /// term's magnitude is `SMALL` or more, or NaN.
    unsafe fn add_rounded(
        y: *const [f32; LANES],
        step: usize,
        count: usize,
        scale: f32,
        sums: &mut [i64; LANES],
    ) -> bool;
}

/// Eight integers of less than this magnitude have a sum in i32.
pub(super) const SMALL: f32 = (1 << 28) as f32;

/// The records of one panel.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    records: *const u8,
    record: usize,
    offsets_at: usize,
    codes_at: usize,
    wide_scales: bool,
    has_offsets: bool,
    /// 64-byte lines of a group.
    lines: usize,
}

impl Panel {
    #[inline(always)]
    pub fn new(w: &Packed, panel: usize) -> Panel {
        let format = w.format();
        Panel {
            records: w.panel(panel).as_ptr(),
            record: format.record(),
            offsets_at: format.offsets_at(),
            codes_at: format.codes_at(),
            wide_scales: format.scales == Scales::F32,
            has_offsets: format.offsets,
            lines: format.group / format.codes.line_columns(),
        }
    }
}

/// The products of groups of a panel with the `T` rows of a tile, which begins at group 0.
///
/// # Safety
/// The panel and the tile have these groups.
#[inline(always)]
pub(crate) unsafe fn tile<L: IntLanes, F: Form, const T: usize>(
    panel: &Panel,
    decode: &Decode,
    x: &TileRows,
    span: Span,
    out: &mut [[f32; LANES]],
) {
    assert!(span.units() * T <= out.len(), "room for the sums");
    let end = span.first + span.count;
    for (first, out) in (span.first..end).step_by(span.unit).zip(out.chunks_exact_mut(T)) {
        // SAFETY: passed on to the caller.
        unsafe { tile_unit::<L, F, T>(panel, decode, x, (first, span.unit.min(end - first)), out) };
    }
}

/// One sum of a tile.
#[inline(always)]
unsafe fn tile_unit<L: IntLanes, F: Form, const T: usize>(
    panel: &Panel,
    decode: &Decode,
    x: &TileRows,
    (first, count): (usize, usize),
    out: &mut [[f32; LANES]],
) {
    // SAFETY: passed on to the caller.
    unsafe {
        let lines = if F::LINES > 0 { F::LINES } else { panel.lines };
        let (record, codes_at) = match F::EXTRA {
            true => (panel.record, panel.codes_at),
            false => (2 * LANES + lines * LINE, 2 * LANES),
        };
        // The columns of a line times the lines.
        let group = lines * if F::KIND == INT8 { 4 } else { 8 };
        let mut front = [L::splat(0.0); T];
        let mut pair = front;
        for c in 0..4 {
            let mut acc = [L::splat(0.0); T];
            for g in first + c * count / 4..first + (c + 1) * count / 4 {
                let at = panel.records.add(g * record);
                if T > 4 && x.first {
                    // Few rows are read as fast as the machine's own prefetchers run; with more of them they fall behind.
                    for line in 0..lines {
                        L::prefetch_near(at.wrapping_add(AHEAD + line * LINE));
                    }
                }
                let codes = x.codes.add(g * T * group);
                let ints = L::group::<F, T>(at.add(codes_at), lines, decode, codes, x.starts.add(g * T));
                let scales = match F::EXTRA && panel.wide_scales {
                    false => L::load_f16(at as *const u16),
                    true => L::load(at as *const f32),
                };
                for t in 0..T {
                    let scale = scales.times_power(*x.scales.add(g * T + t));
                    acc[t] = scale.fma(L::to_f32(ints[t]), acc[t]);
                }
                if F::EXTRA && panel.has_offsets {
                    let offsets = L::load(at.add(panel.offsets_at) as *const f32);
                    for t in 0..T {
                        let offset = offsets.times_power(*x.scales.add(g * T + t));
                        acc[t] = offset.fma(L::splat(*x.sums.add(g * T + t) as f32), acc[t]);
                    }
                }
            }
            match c {
                0 | 2 => pair = acc,
                _ => {
                    for t in 0..T {
                        pair[t] = pair[t].add(acc[t]);
                    }
                }
            }
            if c == 1 {
                front = pair;
            }
        }
        for (t, out) in out.iter_mut().enumerate().take(T) {
            front[t].add(pair[t]).store(out.as_mut_ptr());
        }
    }
}

/// How far ahead records are asked for.
const AHEAD: usize = 2048;

/// Calls `tile` with as many rows as there are, 1 to 8.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
pub(crate) unsafe fn tile_of<L: IntLanes, F: Form>(
    panel: &Panel,
    decode: &Decode,
    x: &TileRows,
    span: Span,
    out: &mut [[f32; LANES]],
) {
    macro_rules! sized {
        ($($n:literal)*) => {
            match x.rows {
                $($n => tile::<L, F, $n>(panel, decode, x, span, out),)*
                n => panic!("a tile of {n} rows"),
            }
        };
    }
    // SAFETY: passed on to the caller.
    unsafe { sized!(1 2 3 4 5 6 7 8) }
}

impl IntLanes for crate::cpu::lanes::Portable {
    type Int = [i32; LANES];
    #[inline(always)]
    unsafe fn group<F: Form, const T: usize>(
        codes: *const u8,
        lines: usize,
        decode: &Decode,
        x: *const i8,
        _starts: *const i32,
    ) -> [Self::Int; T] {
        let mut acc = [[0i32; LANES]; T];
        let group = lines * if F::KIND == INT8 { 4 } else { 8 };
        for line in 0..lines {
            for r in 0..LANES {
                for c in 0..4 {
                    // SAFETY: inside the group's lines and codes, as the caller promises.
                    let code = unsafe { *codes.add(line * LINE + 4 * r + c) };
                    for t in 0..T {
                        // SAFETY: as above.
                        let at = |i: usize| i32::from(unsafe { *x.add(t * group + i) });
                        acc[t][r] += match F::KIND {
                            INT8 => (i32::from(code) - 128) * at(4 * line + c),
                            _ => {
                                i32::from(decode.signed[(code & 15) as usize]) * at(8 * line + c)
                                    + i32::from(decode.signed[(code >> 4) as usize]) * at(8 * line + 4 + c)
                            }
                        };
                    }
                }
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn peak(line: *const u8, rounds: usize) {
        for _ in 0..rounds * PEAK_CHAINS {
            // SAFETY: 64 bytes, as the caller promises.
            let codes = unsafe { std::slice::from_raw_parts(line, LINE) };
            std::hint::black_box(codes.iter().map(|&code| (i32::from(code) - 128) * 3).sum::<i32>());
        }
    }
    #[inline(always)]
    unsafe fn to_f32(int: Self::Int) -> Self {
        Self::map(|j| int[j] as f32)
    }
    #[inline(always)]
    unsafe fn times_power(self, d: f32) -> Self {
        Self::map(|j| self.lane(j) * d)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self::map(|j| self.lane(j) + other.lane(j))
    }
    #[inline(always)]
    unsafe fn add_rounded(
        y: *const [f32; LANES],
        step: usize,
        count: usize,
        scale: f32,
        sums: &mut [i64; LANES],
    ) -> bool {
        // SAFETY: the terms are there, as the caller promises.
        let terms = || (0..count).map(|i| unsafe { &*y.add(i * step) }.map(|y| y * scale));
        let small = terms().all(|terms| terms.iter().all(|y| y.abs() < SMALL));
        if small {
            for terms in terms() {
                sums.iter_mut()
                    .zip(terms)
                    .for_each(|(sum, y)| *sum = sum.wrapping_add(i64::from(y.round_ties_even() as i32)));
            }
        }
        small
    }
}
