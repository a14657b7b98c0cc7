//! The structs that kernels take: twins of those in `kernels/cuda/*.cu` and `*.h`, field by field. Addresses are u64.
//!
//! The kernels assert these sizes too, so that a field on one side only does not compile.

use bytemuck::{Pod, Zeroable};

use crate::ops::Activation;
use crate::packed::Codes;

macro_rules! argument {
    ($(#[$doc:meta])* $name:ident: $bytes:literal { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
        pub(super) struct $name { $(pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

argument! { PackedPart: 32 { records: u64, panel_bytes: u64, record: u32, codes_at: u32, wide_scales: u32, offsets: u32, } }
argument! { PlainMatrix: 16 { elements: u64, kind: u32, cols: u32, } }
argument! { Table: 16 { words: [u32; 4], } }
argument! { QuantizedRows: 32 { codes: u64, scales: u64, sums: u64, groups: u64, } }

argument! { QuantizeArgs: 48 { x: u64, codes: u64, scales: u64, sums: u64, x_stride: u64, width: u32, group: u32, } }

argument! { RmsNormArgs: 64 {
    x: u64, weight: u64, out: u64, x_row: u64, x_head: u64, out_row: u64, out_head: u64, width: u32, eps: f32,
} }

argument! { PeakArgs: 32 { words: u64, out: u64, count: u64, rounds: u32, padding: u32, } }

argument! { RopeArgs: 48 { x: u64, cos: u64, sin: u64, x_row: u64, x_head: u64, half: u32, pairs: u32, } }

argument! { LinearArgs: 64 {
    x: u64, weights: PlainMatrix, bias: u64, out: u64, x_stride: u64, out_stride: u64, tokens: u32, rows: u32,
} }

argument! { RowsArgs: 112 {
    to: u64, from: u64, to_row: u64, to_head: u64, from_row: u64, from_head: u64, scales: u64, index: u64,
    table: PlainMatrix, width: u32, from_rows: u32, limit: f32, activation: ActivationArgs, padding: [u32; 2],
} }

argument! { SelectArgs: 80 {
    logits: u64, correction: u64, ids: u64, weights: u64, logits_row: u64, experts: u32, top_k: u32, score: u32,
    groups: u32, taken: u32, two_largest: u32, normalise: u32, epsilon: f32, scale: f32, padding: u32,
} }

argument! { AttentionArgs: 144 {
    q: u64, keys: u64, values: u64, tables: u64, sequences: u64, positions: u64, sinks: u64, out: u64,
    q_row: u64, q_head: u64, out_row: u64, out_head: u64, table_stride: u32, sequence_count: u32, pages: u32,
    heads: u32, kv_heads: u32, key_width: u32, value_width: u32, mask: u32, mask_size: u32, scale: f32, half: u32,
    padding: u32,
} }

argument! { KvWriteArgs: 64 {
    from: u64, slots: u64, cache: u64, from_row: u64, from_head: u64, width: u32, heads: u32, cache_width: u32,
    column: u32, pages: u32, half: u32,
} }

argument! { SumsArgs: 64 {
    sums: u64, poison: u64, from_sums: u64, from_poison: u64, out: u64, out_stride: u64, unit: f64, width: u32,
    padding: u32,
} }

argument! { PackedLinearArgs: 120 {
    x: QuantizedRows, weights: PackedPart, table: Table, bias: u64, out: u64, out_stride: u64,
    tokens: u32, rows: u32, groups: u32, padding: u32,
} }

argument! { ExpertPiece: 128 {
    gate: PackedPart, up: PackedPart, down: PackedPart, gate_bias: u64, up_bias: u64, down_bias: u64,
    expert: u32, width: u32,
} }

argument! { ExpertTile: 16 { piece: u32, slot: u32, count: u32, padding: u32, } }

argument! { ActivationArgs: 12 { clamped: u32, alpha: f32, limit: f32, } }

argument! { ExpertsArgs: 248 {
    pieces: u64, ids: u64, weights: u64, x: QuantizedRows, pairs: u64, slots: u64, tiles: u64, tile_count: u64,
    hidden_codes: u64, hidden_scales: u64, hidden_sums: u64, terms: u64, sums: u64, poison: u64,
    inner_table: Table, down_table: Table,
    piece_count: u32, experts: u32, tokens: u32, top_k: u32, copies: u32, width: u32, inner_groups: u32,
    hidden_groups: u32, hidden_group: u32, widest: u32, unit_groups: u32, tile_tokens: u32, first_column: u32,
    term_columns: u32, activation: ActivationArgs, weight_on_input: u32, two_to_b: f32, limit: f32,
} }

impl Table {
    pub(super) fn of(codes: Codes) -> Table {
        let words = match codes {
            Codes::Int4 { table } => std::array::from_fn(|word| {
                u32::from_le_bytes(std::array::from_fn(|byte| table[4 * word + byte] as u8))
            }),
            Codes::Int8 => [0; 4],
        };
        Table { words }
    }
}

impl From<Activation> for ActivationArgs {
    fn from(activation: Activation) -> ActivationArgs {
        match activation {
            Activation::SwiGlu => ActivationArgs::default(),
            Activation::ClampedSwiGlu { alpha, limit } => ActivationArgs { clamped: 1, alpha, limit },
        }
    }
}
