//! Products of quantised rows with panels of packed weights, by ARITHMETIC.md, 8.
//!
//! A tile is one panel (16 rows of weights, one per lane) and up to eight rows of activations. Within a group everything is
//! exact integers, so that each instruction set may add them as it likes; the group's term is one product and one fused
//! multiply-add per lane, in the order of the chains, whatever the tile's size.

#![allow(clippy::needless_range_loop)] // rows and lanes by number, over several arrays at once

use crate::cpu::lanes::{LANES, Lanes, by_isa};
use crate::device::Isa;
use crate::packed::{Codes, LINE, Packed, PackedFormat, Scales};

/// The most rows of one tile.
pub(crate) const TILE: usize = 8;

/// Quantised rows to meet a panel: pointers to the codes, scales and sums of each row's first group.
#[derive(Clone, Copy)]
pub(crate) struct QuantRow {
    /// `[groups * G]`, zero behind the row's end.
    pub codes: *const i8,
    /// `[groups]`
    pub scales: *const f32,
    /// `[groups]`
    pub sums: *const i32,
}

/// Quantised rows one after the other.
#[derive(Clone, Copy)]
pub(crate) struct QuantSet {
    pub first: QuantRow,
    /// Groups of a row, of `group` codes each.
    pub groups: usize,
    pub group: usize,
}

impl QuantSet {
    /// # Safety
    /// The set has this row.
    #[inline(always)]
    pub unsafe fn row(&self, row: usize) -> QuantRow {
        // SAFETY: passed on to the caller.
        unsafe {
            QuantRow {
                codes: self.first.codes.add(row * self.groups * self.group),
                scales: self.first.scales.add(row * self.groups),
                sums: self.first.sums.add(row * self.groups),
            }
        }
    }
}

// SAFETY: the pointers are only read, while the rows they point at stay.
unsafe impl Send for QuantSet {}
// SAFETY: as above.
unsafe impl Sync for QuantSet {}

/// What the codes of a matrix need besides themselves.
#[derive(Clone, Copy)]
pub(crate) struct Decode {
    /// The integers of the 4-bit codes, made unsigned by `bias`.
    pub table: [u8; 16],
    /// The integers of the 4-bit codes.
    pub signed: [i8; 16],
    /// What was added to make the codes' integers unsigned.
    pub bias: i32,
}

impl Decode {
    pub fn of(codes: Codes) -> Decode {
        match codes {
            Codes::Int4 { table } => {
                let bias = -i32::from(table.into_iter().min().unwrap_or(0));
                Decode { table: table.map(|value| (i32::from(value) + bias) as u8), signed: table, bias }
            }
            Codes::Int8 => Decode { table: [0; 16], signed: [0; 16], bias: 128 },
        }
    }
}

/// Which instructions unpack the codes.
pub(crate) const PLAIN4: u8 = 0;
pub(crate) const TABLE4: u8 = 1;
pub(crate) const INT8: u8 = 2;

/// A form of packed weights that has code of its own.
pub(crate) trait Form {
    const KIND: u8;
    /// 64-byte lines of a group; 0: as the panel says.
    const LINES: usize;
    /// Whether scales may be f32, and offsets may be there.
    const EXTRA: bool;
}

pub(crate) struct As<const KIND: u8, const LINES: usize, const EXTRA: bool>;

impl<const KIND: u8, const LINES: usize, const EXTRA: bool> Form for As<KIND, LINES, EXTRA> {
    const KIND: u8 = KIND;
    const LINES: usize = LINES;
    const EXTRA: bool = EXTRA;
}

/// The forms with code of their own, most special first.
#[derive(Clone, Copy)]
pub(crate) enum FormOf {
    Plain32,
    Plain64,
    Plain128,
    Plain128Extra,
    Table32Extra,
    Int8Of32,
    Int8Of64,
    AnyPlain,
    AnyTable,
    AnyInt8,
}

impl FormOf {
    pub fn of(format: PackedFormat) -> FormOf {
        let extra = format.offsets || format.scales == Scales::F32;
        match (format.codes, format.group, extra) {
            (Codes::INT4, 32, false) => FormOf::Plain32,
            (Codes::INT4, 64, false) => FormOf::Plain64,
            (Codes::INT4, 128, false) => FormOf::Plain128,
            (Codes::INT4, 128, true) => FormOf::Plain128Extra,
            (Codes::INT4, ..) => FormOf::AnyPlain,
            (Codes::Int4 { .. }, 32, true) => FormOf::Table32Extra,
            (Codes::Int4 { .. }, ..) => FormOf::AnyTable,
            (Codes::Int8, 32, false) => FormOf::Int8Of32,
            (Codes::Int8, 64, false) => FormOf::Int8Of64,
            (Codes::Int8, ..) => FormOf::AnyInt8,
        }
    }
}

impl FormOf {
    /// A form that reads both. Panics where codes or groups differ.
    pub fn both(a: PackedFormat, b: PackedFormat) -> FormOf {
        assert_eq!((a.codes, a.group), (b.codes, b.group), "gate and up of one kind");
        if a == b {
            return FormOf::of(a);
        }
        match a.codes {
            Codes::INT4 => FormOf::AnyPlain,
            Codes::Int4 { .. } => FormOf::AnyTable,
            Codes::Int8 => FormOf::AnyInt8,
        }
    }
}

/// The groups of a product, from `first` on, and how many of them make one sum.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub first: usize,
    pub count: usize,
    pub unit: usize,
}

impl Span {
    /// One sum of all groups.
    pub fn whole(groups: usize) -> Span {
        Span { first: 0, count: groups, unit: groups }
    }

    pub fn units(&self) -> usize {
        self.count.div_ceil(self.unit)
    }
}

/// Multiplies groups of a panel with a tile, which begins at group 0. The sums are `[units, T]`.
///
/// # Safety
/// The panel and the rows have these groups, and the instructions are those of the device.
pub(crate) type TileFn =
    unsafe fn(panel: &Panel, decode: &Decode, x: &TileRows, span: Span, out: &mut [[f32; LANES]]);

/// The code for a form.
pub(crate) fn tile_for(form: FormOf, isa: Isa) -> TileFn {
    macro_rules! forms {
        ($($name:ident: $kind:ident, $lines:literal, $extra:literal;)*) => {
            match form {
                $(FormOf::$name => {
                    #[cfg(target_arch = "x86_64")]
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
                    unsafe fn avx512(
                        panel: &Panel,
                        decode: &Decode,
                        x: &TileRows,
                        span: Span,
                        out: &mut [[f32; LANES]],
                    ) {
                        // SAFETY: passed on to the caller.
                        unsafe {
                            tile_of::<crate::cpu::lanes::x86::Avx512, As<$kind, $lines, $extra>>(
                                panel, decode, x, span, out,
                            )
                        }
                    }
                    #[cfg(target_arch = "x86_64")]
                    #[target_feature(enable = "avx2,fma,f16c")]
                    unsafe fn avx2(
                        panel: &Panel,
                        decode: &Decode,
                        x: &TileRows,
                        span: Span,
                        out: &mut [[f32; LANES]],
                    ) {
                        // SAFETY: passed on to the caller.
                        unsafe {
                            tile_of::<crate::cpu::lanes::x86::Avx2, As<$kind, $lines, $extra>>(
                                panel, decode, x, span, out,
                            )
                        }
                    }
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => avx512,
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => avx2,
                        _ => tile_of::<crate::cpu::lanes::Portable, As<$kind, 0, true>>,
                    }
                })*
            }
        };
    }
    forms! {
        Plain32: PLAIN4, 4, false;
        Plain64: PLAIN4, 8, false;
        Plain128: PLAIN4, 16, false;
        Plain128Extra: PLAIN4, 16, true;
        Table32Extra: TABLE4, 4, true;
        Int8Of32: INT8, 8, false;
        Int8Of64: INT8, 16, false;
        AnyPlain: PLAIN4, 0, true;
        AnyTable: TABLE4, 0, true;
        AnyInt8: INT8, 0, true;
    }
}

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
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
}

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
                if T > 1 {
                    // One row is read as fast as the machine's own prefetchers run; with more of them they fall behind.
                    for line in 0..lines {
                        L::prefetch(at.wrapping_add(AHEAD + line * LINE));
                    }
                }
                let codes = x.codes.add(g * T * group);
                let ints = L::group::<F, T>(at.add(codes_at), lines, decode, codes, x.starts.add(g * T));
                let scales = match F::EXTRA && panel.wide_scales {
                    false => L::load_f16(at as *const u16),
                    true => L::load(at as *const f32),
                };
                for t in 0..T {
                    let scale = scales.mul(L::splat(*x.scales.add(g * T + t)));
                    acc[t] = scale.fma(L::to_f32(ints[t]), acc[t]);
                }
                if F::EXTRA && panel.has_offsets {
                    let offsets = L::load(at.add(panel.offsets_at) as *const f32);
                    for t in 0..T {
                        let offset = offsets.mul(L::splat(*x.scales.add(g * T + t)));
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

/// Rows side by side, group after group, as a tile reads them: `[groups][T]` of everything.
#[derive(Clone, Copy)]
pub(crate) struct TileRows {
    codes: *const i8,
    scales: *const f32,
    sums: *const i32,
    /// What the integer products begin with: minus the codes' bias times the sum.
    starts: *const i32,
    /// T
    rows: usize,
}

/// Where a thread puts rows side by side; kept between tasks.
#[derive(Default)]
pub(crate) struct TileScratch {
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    starts: Vec<i32>,
}

thread_local! {
    static SCRATCH: std::cell::Cell<TileScratch> = std::cell::Cell::default();
}

impl TileScratch {
    /// This thread's; to be given back with `keep`.
    pub fn take() -> TileScratch {
        SCRATCH.take()
    }

    pub fn keep(self) {
        SCRATCH.set(self);
    }

    /// Lays `groups` groups of up to eight rows side by side.
    ///
    /// # Safety
    /// The rows have these groups, of `group` codes each, and stay while the tile is used; so does the scratch.
    pub unsafe fn tile(&mut self, rows: &[QuantRow], groups: usize, group: usize, bias: i32) -> TileRows {
        let n = rows.len();
        assert!((1..=TILE).contains(&n), "a tile of {n} rows");
        if self.starts.len() < groups * n {
            self.scales.resize(groups * n, 0.0);
            self.sums.resize(groups * n, 0);
            self.starts.resize(groups * n, 0);
        }
        if let [row] = rows {
            // SAFETY: the caller's row has these groups.
            let sums = unsafe { std::slice::from_raw_parts(row.sums, groups) };
            self.starts.iter_mut().zip(sums).for_each(|(start, sum)| *start = -bias * sum);
            return TileRows {
                codes: row.codes,
                scales: row.scales,
                sums: row.sums,
                starts: self.starts.as_ptr(),
                rows: 1,
            };
        }
        if self.codes.len() < groups * n * group {
            self.codes.resize(groups * n * group, 0);
        }
        for (t, row) in rows.iter().enumerate() {
            for g in 0..groups {
                let at = g * n + t;
                // SAFETY: inside the row, as the caller promises, and inside the scratch, which was made to fit.
                unsafe {
                    let (from, to) = (row.codes.add(g * group), self.codes.as_mut_ptr().add(at * group));
                    // Lengths that the compiler knows become moves of registers.
                    match group {
                        32 => to.copy_from_nonoverlapping(from, 32),
                        64 => to.copy_from_nonoverlapping(from, 64),
                        _ => to.copy_from_nonoverlapping(from, group),
                    }
                    *self.scales.get_unchecked_mut(at) = *row.scales.add(g);
                    let sum = *row.sums.add(g);
                    *self.sums.get_unchecked_mut(at) = sum;
                    *self.starts.get_unchecked_mut(at) = -bias * sum;
                }
            }
        }
        TileRows {
            codes: self.codes.as_ptr(),
            scales: self.scales.as_ptr(),
            sums: self.sums.as_ptr(),
            starts: self.starts.as_ptr(),
            rows: n,
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
unsafe fn tile_of<L: IntLanes, F: Form>(
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

/// Panels that a tile of rows meets before the next tile of rows comes: they stay in the second-level cache.
const BLOCK: usize = 16;

/// A run of panels of a projection.
pub(crate) struct PanelRun<'a> {
    pub w: &'a Packed,
    pub panels: std::ops::Range<usize>,
    pub x: QuantSet,
    /// T
    pub rows: usize,
    pub bias: Option<&'a [f32]>,
    /// Row t goes to `out + t * stride`, from column 0 of the whole matrix on.
    pub out: *mut f32,
    pub stride: usize,
}

/// # Safety
/// `out` is good for all rows and for the columns of these panels, which nobody else uses meanwhile; the rows have the
/// matrix's groups.
pub(crate) unsafe fn panel_run(isa: Isa, run: &PanelRun<'_>) {
    run_panels_on(isa, run, tile_for(FormOf::of(run.w.format()), isa));
}

by_isa! { fn run_panels_on(run: &PanelRun<'_>, tile: TileFn) = run_panels }

#[inline(always)]
fn run_panels<L: Lanes>(run: &PanelRun<'_>, tile: TileFn) {
    let w = run.w;
    let decode = Decode::of(w.format().codes);
    let mut scratch = TileScratch::take();
    let mut block = run.panels.start;
    while block < run.panels.end {
        let end = (block + BLOCK).min(run.panels.end);
        for first in (0..run.rows).step_by(TILE) {
            let mut rows = [run.x.first; TILE];
            let rows = &mut rows[..TILE.min(run.rows - first)];
            for (t, row) in rows.iter_mut().enumerate() {
                // SAFETY: `first + t` is below T.
                *row = unsafe { run.x.row(first + t) };
            }
            // SAFETY: the rows have the matrix's groups.
            let x = unsafe { scratch.tile(rows, w.groups(), w.format().group, decode.bias) };
            for panel in block..end {
                let mut y = [[0.0; LANES]; TILE];
                // SAFETY: as above.
                unsafe { tile(&Panel::new(w, panel), &decode, &x, Span::whole(w.groups()), &mut y) };
                let column = panel * LANES;
                let width = LANES.min(w.rows() - column);
                for (t, y) in y.iter().enumerate().take(rows.len()) {
                    // SAFETY: these columns of this row are the caller's.
                    let out = unsafe {
                        std::slice::from_raw_parts_mut(run.out.add((first + t) * run.stride + column), width)
                    };
                    match <&mut [f32; LANES]>::try_from(&mut *out) {
                        Ok(whole) => *whole = *y,
                        Err(_) => out.copy_from_slice(&y[..width]),
                    }
                    if let Some(bias) = run.bias {
                        out.iter_mut().zip(&bias[column..]).for_each(|(y, b)| *y += b);
                    }
                }
            }
        }
        block = end;
    }
    scratch.keep();
}

by_isa! {
    /// Quantises one row, by ARITHMETIC.md, 7: groups of `group`; codes behind the row's end are zero.
    fn quantize_row(x: &[f32], group: usize, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) = quantize
}

#[inline(always)]
pub(crate) fn quantize<L: Lanes>(
    x: &[f32],
    group: usize,
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    for (((x, codes), scale), sum) in
        x.chunks(group).zip(codes.chunks_exact_mut(group)).zip(scales.iter_mut()).zip(sums.iter_mut())
    {
        // Whole groups with a length that the compiler knows.
        (*scale, *sum) = match (x.len(), codes.len()) {
            (32, 32) => quantize_group(&x[..32], &mut codes[..32]),
            (64, 64) => quantize_group(&x[..64], &mut codes[..64]),
            (128, 128) => quantize_group(&x[..128], &mut codes[..128]),
            _ => quantize_group(x, codes),
        };
    }
}

#[inline(always)]
fn quantize_group(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    // As integers, magnitudes order like the values, infinity and NaN on top.
    let m = x.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    let m = f32::from_bits(m);
    let (d, r) = match m {
        m if !m.is_finite() => (f32::NAN, 0.0),
        m if m < TINY => (0.0, 0.0),
        m => (m / 127.0, 127.0 / m),
    };
    let (head, tail) = codes.split_at_mut(x.len());
    tail.fill(0);
    if r == 0.0 {
        head.fill(0);
        return (d, 0);
    }
    let mut sum = 0i32;
    for (code, x) in head.iter_mut().zip(x) {
        // Within +-127, where adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits.
        let q = ((x * r + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        sum += q;
        *code = q as i8;
    }
    (d, sum)
}

const TINY: f32 = f32::from_bits((127 - 100) << 23);
const ROUND: f32 = 12_582_912.0;

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
    unsafe fn mul(self, other: Self) -> Self {
        Self::map(|j| self.lane(j) * other.lane(j))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self::map(|j| self.lane(j) + other.lane(j))
    }
}

by_isa! {
    /// Integer products from registers alone: `PEAK_OPERATIONS` a round.
    fn peak(rounds: usize) = peak_rounds
}

/// Multiplications and additions of one round of `peak`.
pub(crate) const PEAK_OPERATIONS: usize = 2 * 64 * PEAK_CHAINS;
/// More than latency times width of the multiplier.
const PEAK_CHAINS: usize = 16;

#[inline(always)]
fn peak_rounds<L: IntLanes>(rounds: usize) {
    let bytes = [1u8; LINE];
    // SAFETY: one line of codes, and rows of one line.
    unsafe { L::peak(std::hint::black_box(bytes.as_ptr()), rounds) }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)] // as the trait says: extents by the caller, instructions by `by_isa!`
mod x86 {
    use super::{Decode, Form, INT8, IntLanes, PEAK_CHAINS, PLAIN4};
    use crate::cpu::lanes::x86::{Avx2, Avx512};
    use crate::packed::LINE;
    use std::arch::x86_64::*;

    impl IntLanes for Avx512 {
        type Int = __m512i;
        /// Unsigned codes: the bias times the row's sum is taken off at the start.
        #[inline(always)]
        unsafe fn group<F: Form, const T: usize>(
            codes: *const u8,
            lines: usize,
            decode: &Decode,
            x: *const i8,
            starts: *const i32,
        ) -> [__m512i; T] {
            unsafe {
                let mut acc = [_mm512_setzero_si512(); T];
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_set1_epi32(*starts.add(t));
                }
                let group = lines * if F::KIND == INT8 { 4 } else { 8 };
                let low = _mm512_set1_epi8(15);
                let table = _mm512_broadcast_i32x4(_mm_loadu_si128(decode.table.as_ptr() as *const __m128i));
                for line in 0..lines {
                    let v = _mm512_loadu_si512(codes.add(line * LINE) as *const __m512i);
                    if F::KIND == INT8 {
                        for t in 0..T {
                            acc[t] = _mm512_dpbusd_epi32(acc[t], v, four(x.add(t * group + 4 * line)));
                        }
                        continue;
                    }
                    let (mut a, mut b) =
                        (_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
                    if F::KIND != PLAIN4 {
                        (a, b) = (_mm512_shuffle_epi8(table, a), _mm512_shuffle_epi8(table, b));
                    }
                    for t in 0..T {
                        acc[t] = _mm512_dpbusd_epi32(acc[t], a, four(x.add(t * group + 8 * line)));
                    }
                    for t in 0..T {
                        acc[t] = _mm512_dpbusd_epi32(acc[t], b, four(x.add(t * group + 8 * line + 4)));
                    }
                }
                acc
            }
        }
        #[inline(always)]
        unsafe fn peak(line: *const u8, rounds: usize) {
            unsafe {
                let v = _mm512_loadu_si512(line as *const __m512i);
                let mut acc = [_mm512_setzero_si512(); PEAK_CHAINS];
                for _ in 0..rounds {
                    for acc in &mut acc {
                        *acc = _mm512_dpbusd_epi32(*acc, v, v);
                    }
                }
                std::hint::black_box(acc);
            }
        }
        #[inline(always)]
        unsafe fn to_f32(int: __m512i) -> Self {
            unsafe { Avx512(_mm512_cvtepi32_ps(int)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
        }
    }

    /// Four activations in every lane.
    #[inline(always)]
    unsafe fn four(x: *const i8) -> __m512i {
        unsafe { _mm512_set1_epi32((x as *const i32).read_unaligned()) }
    }

    impl IntLanes for Avx2 {
        type Int = (__m256i, __m256i);
        #[inline(always)]
        unsafe fn group<F: Form, const T: usize>(
            codes: *const u8,
            lines: usize,
            decode: &Decode,
            x: *const i8,
            starts: *const i32,
        ) -> [Self::Int; T] {
            unsafe {
                match F::KIND {
                    PLAIN4 => plain4::<T>(codes, lines, x, starts),
                    _ => signed::<F, T>(codes, lines, decode, x),
                }
            }
        }
        #[inline(always)]
        unsafe fn peak(line: *const u8, rounds: usize) {
            unsafe {
                let v = _mm256_loadu_si256(line as *const __m256i);
                // Half a line each; as in `plain4`, eight products of pairs share the steps to i32.
                let mut acc = [_mm256_setzero_si256(); 4];
                for _ in 0..rounds {
                    for acc in &mut acc {
                        let mut pairs = _mm256_setzero_si256();
                        for _ in 0..2 * PEAK_CHAINS / 4 {
                            let x = std::hint::black_box(v);
                            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(v, x));
                        }
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, v));
                    }
                }
                std::hint::black_box(acc);
            }
        }
        #[inline(always)]
        unsafe fn to_f32(int: Self::Int) -> Self {
            unsafe { Avx2(_mm256_cvtepi32_ps(int.0), _mm256_cvtepi32_ps(int.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }
    }

    #[inline(always)]
    unsafe fn eight(x: *const i8) -> __m256i {
        unsafe { _mm256_set1_epi32((x as *const i32).read_unaligned()) }
    }

    /// Unsigned nibbles: a pair's products are at most 2 * 15 * 127 = 3,810, so that eight of them fit an i16.
    #[inline(always)]
    unsafe fn plain4<const T: usize>(
        codes: *const u8,
        lines: usize,
        x: *const i8,
        starts: *const i32,
    ) -> [(__m256i, __m256i); T] {
        unsafe {
            let zero = _mm256_setzero_si256();
            let mut acc = [(zero, zero); T];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = (_mm256_set1_epi32(*starts.add(t)), _mm256_set1_epi32(*starts.add(t)));
            }
            let group = 8 * lines;
            let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
            let mut line = 0;
            while line < lines {
                let mut halves = [[_mm256_setzero_si256(); T]; 2];
                for step in line..line + 4 {
                    for (half, sums) in halves.iter_mut().enumerate() {
                        let v = _mm256_loadu_si256(codes.add(step * LINE + 32 * half) as *const __m256i);
                        let a = _mm256_and_si256(v, low);
                        let b = _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
                        for t in 0..T {
                            let a = _mm256_maddubs_epi16(a, eight(x.add(t * group + 8 * step)));
                            let b = _mm256_maddubs_epi16(b, eight(x.add(t * group + 8 * step + 4)));
                            sums[t] = _mm256_add_epi16(sums[t], _mm256_add_epi16(a, b));
                        }
                    }
                }
                for t in 0..T {
                    acc[t].0 = _mm256_add_epi32(acc[t].0, _mm256_madd_epi16(halves[0][t], ones));
                    acc[t].1 = _mm256_add_epi32(acc[t].1, _mm256_madd_epi16(halves[1][t], ones));
                }
                line += 4;
            }
            acc
        }
    }

    /// Signed integers w: |w| times x with w's sign. A pair's products are at most 2 * 128 * 127 = 32,512 and fit an i16.
    #[inline(always)]
    unsafe fn signed<F: Form, const T: usize>(
        codes: *const u8,
        lines: usize,
        decode: &Decode,
        x: *const i8,
    ) -> [(__m256i, __m256i); T] {
        unsafe {
            let group = lines * if F::KIND == INT8 { 4 } else { 8 };
            let zero = _mm256_setzero_si256();
            let mut acc = [(zero, zero); T];
            let low = _mm256_set1_epi8(15);
            let table =
                _mm256_broadcastsi128_si256(_mm_loadu_si128(decode.signed.as_ptr() as *const __m128i));
            let flip = _mm256_set1_epi8(-128);
            for line in 0..lines {
                for half in 0..2 {
                    let v = _mm256_loadu_si256(codes.add(line * LINE + 32 * half) as *const __m256i);
                    if F::KIND == INT8 {
                        signed_step(_mm256_xor_si256(v, flip), half, (4 * line, group), x, &mut acc);
                    } else {
                        let a = _mm256_shuffle_epi8(table, _mm256_and_si256(v, low));
                        signed_step(a, half, (8 * line, group), x, &mut acc);
                        let b = _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
                        signed_step(_mm256_shuffle_epi8(table, b), half, (8 * line + 4, group), x, &mut acc);
                    }
                }
            }
            acc
        }
    }

    /// Adds the products of 8 rows' four integers `w` with each row's four activations from `at` on.
    #[inline(always)]
    unsafe fn signed_step<const T: usize>(
        w: __m256i,
        half: usize,
        (at, group): (usize, usize),
        x: *const i8,
        acc: &mut [(__m256i, __m256i); T],
    ) {
        unsafe {
            let (magnitude, ones) = (_mm256_abs_epi8(w), _mm256_set1_epi16(1));
            for t in 0..T {
                let x = _mm256_sign_epi8(eight(x.add(t * group + at)), w);
                let products = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
                match half {
                    0 => acc[t].0 = _mm256_add_epi32(acc[t].0, products),
                    _ => acc[t].1 = _mm256_add_epi32(acc[t].1, products),
                }
            }
        }
    }
}
