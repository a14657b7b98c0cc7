//! The second step: the down-projection of an expert's rows, unit by unit into fixed point.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ask_for;
use crate::cpu::lanes::{LANES, by_isa};
use crate::cpu::packed::{Decode, IntLanes, Panel, Span, TILE, TileFn, Tiles, blocks};
use crate::ops::{UNIT_MIN, WeightOn};
use crate::packed::{PANEL_ROWS, Packed};
use crate::view::SharedSlice;

/// A task: one expert's part of a run of columns.
pub(crate) struct Down<'a> {
    pub w: &'a Packed,
    pub bias: Option<&'a [f32]>,
    pub x: Tiles,
    /// The rows of `sums`, and what the gate says of each.
    pub rows: &'a [u32],
    pub weights: &'a [f32],
    pub weight_on: WeightOn,
    pub fraction_bits: u32,
    pub panels: Range<usize>,
    /// `[T, width]`
    pub sums: &'a SharedSlice<i64>,
    pub width: usize,
    pub poison: &'a SharedSlice<u32>,
    /// The matrix that comes next.
    pub next: Option<&'a Packed>,
}

/// Units of a panel that are multiplied before they go into fixed point; `add_rounded` adds no more at once.
const UNITS: usize = 8;

by_isa! { fn down_run(task: &Down<'_>, tile: TileFn) = down_panels }

#[inline(always)]
fn down_panels<L: IntLanes>(task: &Down<'_>, tile: TileFn) {
    let decode = Decode::of(task.w.format().codes);
    let (groups, unit) = (task.w.groups(), UNIT_MIN / task.w.format().group);
    let fixed = Fixed::new(task.fraction_bits);
    let mut products = [[0.0; LANES]; UNITS * TILE];
    for panels in blocks(task.panels.clone(), task.w) {
        for index in 0..task.x.count() {
            let (first, count) = (index * TILE, TILE.min(task.rows.len() - index * TILE));
            // SAFETY: there are so many tiles.
            let x = unsafe { task.x.tile(index) };
            let mut worst = [[0u32; LANES]; TILE];
            for panel in panels.clone() {
                if let Some(next) = task.next.filter(|_| panel + 1 == task.panels.end) {
                    ask_for::<L>(next.panel(task.panels.start).as_ptr());
                }
                let column = panel * PANEL_ROWS;
                let width = LANES.min(task.width - column);
                let place = |t: usize| task.rows[first + t] as usize * task.width + column;
                if count > 1 {
                    // The rows lie far apart, where the machine's own prefetchers do not see them coming.
                    for t in 0..count {
                        let at = task.sums.pointer(place(t)) as *const u8;
                        // SAFETY: any address will do.
                        unsafe {
                            L::prefetch_near(at);
                            L::prefetch_near(at.wrapping_add(size_of::<[i64; LANES]>() - 1));
                        }
                    }
                }
                let mut sums = [[0i64; LANES]; TILE];
                let weights = Panel::new(task.w, panel);
                for first_group in (0..groups).step_by(UNITS * unit) {
                    let span =
                        Span { first: first_group, count: (UNITS * unit).min(groups - first_group), unit };
                    // SAFETY: the rows have the matrix's groups.
                    unsafe { tile(&weights, &decode, &x, span, &mut products) };
                    for t in 0..count {
                        let terms = Terms { y: &products[t..], step: count, count: span.units() };
                        fixed.add_all::<L>(&terms, task.weight(first + t), &mut sums[t], &mut worst[t]);
                    }
                }
                if let Some(bias) = task.bias {
                    for t in 0..count {
                        let mut y = [0.0; LANES];
                        y[..width].copy_from_slice(&bias[column..column + width]);
                        fixed.add(&y, task.weight(first + t), &mut sums[t], &mut worst[t]);
                    }
                }
                for (t, terms) in sums.iter().enumerate().take(count) {
                    // SAFETY: these columns belong to this task alone.
                    let sums = unsafe { task.sums.range(place(t), width) };
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum = sum.wrapping_add(*term));
                }
            }
            for (t, worst) in worst.iter().enumerate().take(count) {
                if worst.iter().any(|&worst| worst >= fixed.limit) {
                    let row = task.rows[first + t] as usize;
                    // SAFETY: the flag is inside the slice, and all tasks write it as an atomic.
                    let flag = unsafe { AtomicU32::from_ptr(task.poison.pointer(row)) };
                    flag.store(1, Ordering::Relaxed);
                }
            }
        }
    }
}

impl Down<'_> {
    /// What multiplies a row's terms.
    #[inline(always)]
    fn weight(&self, row: usize) -> f32 {
        // A product with 1 is exact.
        if self.weight_on == WeightOn::Output { self.weights[row] } else { 1.0 }
    }
}

/// f32 terms into 64-bit fixed point. Terms that do not fit leave nonsense behind; the row they poison says so.
pub(crate) struct Fixed {
    unit: f64,
    /// The bits of the least magnitude that does not fit.
    limit: u32,
}

/// Adding 1.5 * 2^52 leaves the integer in the low bits, rounded half to even.
const MAGIC: f64 = 6_755_399_441_055_744.0;

impl Fixed {
    fn new(fraction_bits: u32) -> Fixed {
        let limit = ((1u64 << (51 - fraction_bits)) as f32).to_bits();
        Fixed { unit: (1u64 << fraction_bits) as f64, limit }
    }

    /// Adds all terms times `weight`: sixteen at a time in i32, where they are that small.
    #[inline(always)]
    fn add_all<L: IntLanes>(
        &self,
        terms: &Terms<'_>,
        weight: f32,
        sums: &mut [i64; LANES],
        worst: &mut [u32; LANES],
    ) {
        assert!(terms.count <= UNITS && (terms.count - 1) * terms.step < terms.y.len());
        // A power of two times a number is exact, so that a term is rounded once as it would be without; what would be
        // subnormal rounds to 0 in either case.
        let scale = weight * self.unit as f32;
        // SAFETY: the terms are there, as asserted; instructions by `by_isa!`.
        if unsafe { L::add_rounded(terms.y.as_ptr(), terms.step, terms.count, scale, sums) } {
            return;
        }
        for y in terms.y.iter().step_by(terms.step).take(terms.count) {
            self.add(y, weight, sums, worst);
        }
    }

    /// Adds `weight * y` to the sums; `worst` keeps the largest magnitudes' bits, in which NaN is the largest.
    #[inline(always)]
    fn add(&self, y: &[f32; LANES], weight: f32, sums: &mut [i64; LANES], worst: &mut [u32; LANES]) {
        for ((&y, sum), worst) in y.iter().zip(sums.iter_mut()).zip(worst.iter_mut()) {
            let y = y * weight;
            *worst = (*worst).max(y.to_bits() & 0x7fff_ffff);
            // The product is exact, so that one rounding is the same as two.
            let bits = f64::from(y).mul_add(self.unit, MAGIC).to_bits() as i64;
            *sum = sum.wrapping_add(bits.wrapping_sub(MAGIC.to_bits() as i64));
        }
    }
}

/// A row's terms of a few units: `y[i * step]`.
struct Terms<'a> {
    y: &'a [[f32; LANES]],
    step: usize,
    count: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Isa;

    by_isa! {
        fn add_all_on(fixed: &Fixed, terms: &Terms<'_>, weight: f32, out: (&mut [i64; LANES], &mut [u32; LANES])) = add_all_of
    }

    #[inline(always)]
    fn add_all_of<L: IntLanes>(
        fixed: &Fixed,
        terms: &Terms<'_>,
        weight: f32,
        out: (&mut [i64; LANES], &mut [u32; LANES]),
    ) {
        fixed.add_all::<L>(terms, weight, out.0, out.1);
    }

    /// Terms of all magnitudes, halves and what is not a number, against one conversion after the other.
    #[test]
    fn small_terms_in_i32_are_the_same_sums() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available()) {
            for round in 0..4000 {
                let fixed = Fixed::new([24, 20, 30][round % 3]);
                let exponent = [0, 20, 90, 100, 103, 104, 110, 127, 130, 131, 150, 160][round / 3 % 12];
                let y: Vec<[f32; LANES]> = (0..UNITS * 3)
                    .map(|_| {
                        std::array::from_fn(|_| {
                            let near = exponent + random() % 4;
                            let mantissa =
                                if random() % 2 == 0 { random() & 0x70_0000 } else { random() & 0x7f_ffff };
                            f32::from_bits(near << 23 | mantissa | (random() & 1) << 31)
                        })
                    })
                    .collect();
                let mut y = y;
                match round % 50 {
                    7 => y[3][round % LANES] = f32::NAN,
                    8 => y[0][round % LANES] = f32::INFINITY,
                    9 => y[0][round % LANES] = -16.0,
                    _ => {}
                }
                let weight = [1.0, 0.37, 1e38, 1e-40, -0.0, 15.999999][round / 7 % 6];
                let terms = Terms { y: &y, step: 3, count: 1 + round % UNITS };
                let (mut sums, mut worst) = ([round as i64; LANES], [0; LANES]);
                let (mut expected, mut expected_worst) = (sums, worst);
                add_all_on(isa, &fixed, &terms, weight, (&mut sums, &mut worst));
                for y in terms.y.iter().step_by(3).take(terms.count) {
                    fixed.add(y, weight, &mut expected, &mut expected_worst);
                }
                let poisoned = |worst: &[u32; LANES]| worst.map(|worst| worst >= fixed.limit);
                assert_eq!(poisoned(&worst), poisoned(&expected_worst), "round {round} on {isa}");
                for (lane, poisoned) in poisoned(&worst).into_iter().enumerate() {
                    assert!(poisoned || sums[lane] == expected[lane], "round {round}, lane {lane} on {isa}");
                }
            }
        }
    }
}
