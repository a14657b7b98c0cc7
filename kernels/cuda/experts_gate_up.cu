// experts_gate_up: a = activation(gate x, up x) of the rows of each piece, quantised for down. Tensors: experts.h.
//
//   g = Wg x, u = Wu x;  times the gate's weight where that is on the input;  + bias;  a = activation(g, u)
//   then ARITHMETIC.md, 7 in the groups of down, all in one kernel
//
// experts_gate_up_rows_*: tiles of at most 1 (dp4a), 8 or 32 (mma) slots. Grid: any; block 32 * ROWS_WARPS. Work items
//   are (tile, 64 or 128 rows of F: whole groups of down), taken in stripes by the grid's blocks. In an item every
//   (panel, gate or up, half of the chains) is a stream of its own; a barrier, then the halves are added, activated,
//   and after another barrier quantised by a warp per (slot, group). Each weight is read once for all rows of a tile.
//   Two halves of K per panel, because one expert's 64 rows must keep a whole multiprocessor's memory pipes busy.
// experts_gate_up_tiles: grid (ceil(widest / 128), limit of tiles), block 256: tiles.h, gate and up as a warp's panels.
//
// Registers: experts_gate_up_rows 176; experts_gate_up_tiles 255

#include "experts.h"
#include "tiles.h"

// Eight where the rings of sixteen would not leave room.
constexpr int ROWS_WARPS = GROUP_BYTES <= 512 ? 16 : 8;

// The activated values of a tile, `[slots][wide]` in shared memory, into `hidden`.
DEVICE void quantize_hidden(const ExpertsArgs& args, const ExpertPiece& piece, const ExpertTile& tile, const float* a,
                            u32 wide, u32 first_row, u32 warps) {
    const u32 group = args.hidden_group, groups = wide / group;
    for (u32 i = threadIdx.x / 32; i < tile.count * groups; i += warps) {
        const u32 token = i / groups, start = i % groups * group;
        if (first_row + start >= piece.width) continue;
        const u32 left = piece.width - first_row - start;
        const float* values = a + token * wide + start;
        const u64 at = (u64)(tile.slot + token) * args.hidden_groups + (first_row + start) / group;
        quantize_group(
            threadIdx.x % 32, group, left < group ? left : group, [values](int i) { return values[i]; },
            args.hidden_codes + at * group, args.hidden_scales + at, args.hidden_sums + at);
    }
}

DEVICE float activated(const ExpertsArgs& args, const ExpertPiece& piece, u32 pair, u32 row, float g, float u) {
    if (args.weight_on_input) {
        const float weight = args.weights[pair];
        g = mul_rn(weight, g);
        u = mul_rn(weight, u);
    }
    if (piece.gate_bias) g = add_rn(g, piece.gate_bias[row]);
    if (piece.up_bias) u = add_rn(u, piece.up_bias[row]);
    return activate(args.activation, g, u);
}

// Shared memory: a ring per warp, then halves [2 halves][gate, up][TOKENS][wide] f32.
template <class Form>
DEVICE void gate_up_rows(const ExpertsArgs& args) {
    u8* ring = shared_memory() + threadIdx.x / 32 * RING_BYTES;
    float* halves = (float*)(shared_memory() + ROWS_WARPS * RING_BYTES);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 wide = args.hidden_group > 64 ? args.hidden_group : 64;
    const u32 matrix_size = Form::TOKENS * wide, half_size = 2 * matrix_size;
    const u32 runs = (args.widest + wide - 1) / wide, work = *args.tile_count * runs;
    for (u32 item = blockIdx.x; item < work; item += gridDim.x) {
        const ExpertTile tile = args.tiles[item / runs];
        const ExpertPiece& piece = args.pieces[tile.piece];
        const u32 first_row = item % runs * wide;
        if (first_row >= piece.width) continue;
        Form form;
        form.bind(args.x, tile.count, lane, [&](int i) { return args.pairs[tile.slot + i] / args.top_k; });
        for (u32 stream = warp; stream < wide / PANEL_ROWS * 4; stream += ROWS_WARPS) {
            const u32 half = stream % 2, matrix = stream / 2 % 2, panel = stream / 4;
            if (first_row + panel * PANEL_ROWS >= piece.width) continue;
            const PackedPart part = matrix == 0 ? piece.gate : piece.up;
            int group = chain_start(2 * half, args.inner_groups);
            const int middle = chain_start(2 * half + 1, args.inner_groups);
            const int end = chain_start(2 * half + 2, args.inner_groups);
            float acc[Form::COUNT], first[Form::COUNT];
            for (int i = 0; i < Form::COUNT; i++) acc[i] = first[i] = 0.0f;
            PanelSource source{record_of(part, first_row / PANEL_ROWS + panel, group), part.record, end - group,
                               (int)lane};
            // The second chain of a half is not empty unless the half is: it takes over at `middle`.
            stream_groups(ring, source, end - group, [&](const u8* stage) {
                if (group == middle)
                    for (int i = 0; i < Form::COUNT; i++) first[i] = acc[i], acc[i] = 0.0f;
                form.step(acc, stage, part, args.inner_table, group++);
            });
            if (form.owner())
                for (int i = 0; i < Form::COUNT; i++) {
                    float* to = halves + half * half_size + matrix * matrix_size + form.token(i) * wide;
                    to[panel * PANEL_ROWS + form.panel_row(i)] = add_rn(first[i], acc[i]);
                }
        }
        sync_threads();
        for (u32 i = threadIdx.x; i < tile.count * wide; i += 32 * ROWS_WARPS) {
            const u32 row = first_row + i % wide;
            if (row >= piece.width) continue;
            const float g = add_rn(halves[i], halves[half_size + i]);
            const float u = add_rn(halves[matrix_size + i], halves[half_size + matrix_size + i]);
            halves[i] = activated(args, piece, args.pairs[tile.slot + i / wide], row, g, u);
        }
        sync_threads();
        quantize_hidden(args, piece, tile, halves, wide, first_row, ROWS_WARPS);
        sync_threads();
    }
}

KERNEL(32 * ROWS_WARPS, 1) NAMED(experts_gate_up_rows_1)(ExpertsArgs args) { gate_up_rows<DotForm<1>>(args); }
KERNEL(32 * ROWS_WARPS, 1) NAMED(experts_gate_up_rows_8)(ExpertsArgs args) { gate_up_rows<MmaForm<1>>(args); }
KERNEL(32 * ROWS_WARPS, 1) NAMED(experts_gate_up_rows_32)(ExpertsArgs args) { gate_up_rows<MmaForm<4>>(args); }

KERNEL(256, 1) NAMED(experts_gate_up_tiles)(ExpertsArgs args) {
    if (blockIdx.y >= *args.tile_count) return;
    const ExpertTile at = args.tiles[blockIdx.y];
    const ExpertPiece& piece = args.pieces[at.piece];
    constexpr u32 WIDE = TILE_PANELS / 2 * PANEL_ROWS;
    const u32 first_row = blockIdx.x * WIDE;
    if (first_row >= piece.width) return;
    const u32 panel_row = threadIdx.x / 32 * PANEL_ROWS;
    const int panel = (int)(first_row + panel_row) / PANEL_ROWS;
    const bool present = first_row + panel_row < piece.width;
    const Tile tile{args.x, args.inner_table, (int)at.count, {piece.gate, piece.up}, {panel, panel}, {present, present}};
    float* a = (float*)shared_memory();
    const auto row_of = [&](int i) { return args.pairs[at.slot + i] / args.top_k; };
    multiply_tile<false>(tile, args.inner_groups, args.inner_groups, row_of, [&](int, const TileSums& sums) {
        // Nobody reads the ring any more: this was the only unit.
        sync_threads();
        for (int e = 0; e < TILE_COUNT; e++) {
            const u32 token = tile_token(e), row = panel_row + tile_panel_row(e);
            if (token >= at.count || first_row + row >= piece.width) continue;
            const u32 pair = args.pairs[at.slot + token];
            a[token * WIDE + row] =
                activated(args, piece, pair, first_row + row, sums[0].total(e), sums[1].total(e));
        }
    });
    quantize_hidden(args, piece, at, a, WIDE, first_row, 8);
}
