//! The forms of packed weights that have code of their own, and that code.

use super::rows::TileRows;
use super::tile::{Panel, tile_of};
use crate::cpu::lanes::LANES;
use crate::device::Isa;
use crate::packed::{Codes, PackedFormat, Scales};

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
