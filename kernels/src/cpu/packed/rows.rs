//! Rows in int8, and how a tile reads them.

use crate::cpu::lanes::{LANES, Lanes, ROUND, by_isa};

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

/// Rows of one tile side by side, group after group: `[groups][T]` of everything.
#[derive(Clone, Copy)]
pub(crate) struct TileRows {
    pub codes: *const i8,
    pub scales: *const f32,
    pub sums: *const i32,
    /// What the integer products begin with: minus the codes' bias times the sum.
    pub starts: *const i32,
    /// T
    pub rows: usize,
    /// Whether it is the first tile that meets a block of panels, which may still have to come from memory.
    pub first: bool,
}

/// Tiles of eight rows one after the other; the last may have fewer.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub codes: *mut i8,
    pub scales: *mut f32,
    pub sums: *mut i32,
    pub starts: *mut i32,
    /// Rows of all tiles.
    pub rows: usize,
    /// Groups of a row, of `group` codes each.
    pub groups: usize,
    pub group: usize,
}

// SAFETY: plain addresses; what may be done with them is said where they are used.
unsafe impl Send for Tiles {}
// SAFETY: as above.
unsafe impl Sync for Tiles {}

impl Tiles {
    pub fn count(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// # Safety
    /// There is such a tile.
    #[inline(always)]
    pub unsafe fn tile(&self, index: usize) -> TileRows {
        let first = index * TILE;
        // SAFETY: the tiles before it have eight rows each.
        unsafe {
            TileRows {
                codes: self.codes.add(first * self.groups * self.group),
                scales: self.scales.add(first * self.groups),
                sums: self.sums.add(first * self.groups),
                starts: self.starts.add(first * self.groups),
                rows: TILE.min(self.rows - first),
                first: index == 0,
            }
        }
    }

    /// Puts a row in its place, for codes with that bias.
    ///
    /// # Safety
    /// There is room for the row, which nobody else uses meanwhile, and it has these groups.
    pub unsafe fn put(&self, t: usize, row: &QuantRow, bias: i32) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self.group {
                32 => lay_row::<32>(self, t, row, bias),
                64 => lay_row::<64>(self, t, row, bias),
                128 => lay_row::<128>(self, t, row, bias),
                group => panic!("groups of {group}"),
            }
        }
    }

    /// Where a group of a row lies, counted in groups.
    #[inline(always)]
    pub fn place(&self, row: usize, group: usize) -> usize {
        let first = row / TILE * TILE;
        first * self.groups + group * TILE.min(self.rows - first) + row % TILE
    }
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

    /// Lays `count` rows of a set side by side, for codes with that bias; `row` says which row of the set comes where.
    ///
    /// # Safety
    /// The set has these rows, and stays while the tiles are read; so does the scratch.
    pub unsafe fn lay(
        &mut self,
        set: &QuantSet,
        count: usize,
        bias: i32,
        row: impl Fn(usize) -> usize,
    ) -> Tiles {
        let groups = set.groups;
        if count == 1 {
            self.starts.resize(groups.max(self.starts.len()), 0);
            // SAFETY: the caller's row has these groups.
            let row = unsafe { set.row(row(0)) };
            // SAFETY: as above.
            let sums = unsafe { std::slice::from_raw_parts(row.sums, groups) };
            self.starts.iter_mut().zip(sums).for_each(|(start, sum)| *start = -bias * sum);
            // Nobody writes through these.
            let (codes, scales, sums) = (row.codes.cast_mut(), row.scales.cast_mut(), row.sums.cast_mut());
            let starts = self.starts.as_mut_ptr();
            return Tiles { codes, scales, sums, starts, rows: 1, groups, group: set.group };
        }
        let tiles = self.room(set, count);
        for t in 0..count {
            // SAFETY: inside the set, as the caller promises, and inside the scratch, which was made to fit.
            unsafe { tiles.put(t, &set.row(row(t)), bias) };
        }
        tiles
    }

    /// Room for `count` rows of a set, to be `put` there.
    pub fn room(&mut self, set: &QuantSet, count: usize) -> Tiles {
        let (groups, group) = (set.groups, set.group);
        if self.scales.len() < count * groups {
            self.scales.resize(count * groups, 0.0);
            self.sums.resize(count * groups, 0);
            self.starts.resize((count * groups).max(self.starts.len()), 0);
        }
        if self.codes.len() < count * groups * group {
            self.codes.resize(count * groups * group, 0);
        }
        Tiles {
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            starts: self.starts.as_mut_ptr(),
            rows: count,
            groups,
            group,
        }
    }
}

/// Copies a row's groups to their places, the codes in moves of registers.
///
/// # Safety
/// The tiles and the row have these groups.
#[inline(always)]
unsafe fn lay_row<const G: usize>(tiles: &Tiles, t: usize, row: &QuantRow, bias: i32) {
    let (mut at, step) = (tiles.place(t, 0), TILE.min(tiles.rows - t / TILE * TILE));
    for g in 0..tiles.groups {
        // SAFETY: passed on to the caller.
        unsafe {
            let codes = (row.codes.add(g * G) as *const [i8; G]).read_unaligned();
            (tiles.codes.add(at * G) as *mut [i8; G]).write_unaligned(codes);
            let sum = *row.sums.add(g);
            *tiles.scales.add(at) = *row.scales.add(g);
            *tiles.sums.add(at) = sum;
            *tiles.starts.add(at) = -bias * sum;
        }
        at += step;
    }
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
        (*scale, *sum) = quantize_group::<L>(x, codes);
    }
}

/// Codes of one group, and its scale and sum.
#[inline(always)]
pub(crate) fn quantize_group<L: Lanes>(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    let (head, tail) = codes.split_at_mut(x.len());
    tail.fill(0);
    let (whole, rest) = x.as_chunks::<LANES>();
    // SAFETY: so many times sixteen elements.
    let m = unsafe { L::largest(whole.as_ptr().cast(), whole.len()) };
    let m = f32::from_bits(rest.iter().fold(m, |m, x| m.max(x.to_bits() & 0x7fff_ffff)));
    if !m.is_finite() {
        head.fill(0);
        return (f32::NAN, 0);
    }
    let (d, r) = power_of(m);
    let (whole_codes, rest_codes) = head.as_chunks_mut::<LANES>();
    // SAFETY: as many elements of each; the products lie within +-127.5, for no magnitude is above `m`.
    let mut sum = unsafe { L::codes(whole.as_ptr().cast(), whole.len(), r, whole_codes.as_mut_ptr().cast()) };
    for (code, x) in rest_codes.iter_mut().zip(rest) {
        let q = ((x * r + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        sum += q;
        *code = q as i8;
    }
    (d, sum)
}

/// The scale of magnitudes up to `m`, a power of two, and its inverse: the exponent of `m`, one more from 255/256 of the way to the
/// next on, where 127.5 steps would be rounded to 128, and not less than -100.
#[inline(always)]
fn power_of(m: f32) -> (f32, f32) {
    let exponent = ((m.to_bits() + 0x1_0000) >> 23).max(127 - 100);
    (f32::from_bits((exponent - 6) << 23), f32::from_bits((254 + 6 - exponent) << 23))
}
