// experts_down: the pieces' terms of every output column, in fixed point. Tensors: experts.h.
//
//   y = Wd[h, unit] a[unit] per unit;  times the gate's weight where that is on the output;  round_half_even(y * 2^B)
//   the bias of `down` is one more term of the piece that holds unit 0
//
// experts_down_rows_*: tiles of at most 1 (dp4a), 8 or 32 (mma) slots, T <= 32. Grid ceil(H / 16), block 256. A block
//   owns 16 columns of all rows and goes over all tiles: (tile, unit) by (tile, unit), in stripes over its eight warps,
//   whose stream of groups runs on from one to the next. Each warp adds into integers of its own in shared memory; after
//   a barrier they are added to the sums, each written once by the one thread that owns it.
// experts_down_tiles: grid (ceil(term_columns / 256), limit of tiles), block 256: tiles.h. Terms of a slot are written
//   to `terms`, a run of columns at a time, from where experts_sum takes them: 8 bytes a term out and in, which a tile's
//   product hides from some 16 rows per expert on, and which keeps sums free of atomics and of order.
//
// Registers: experts_down_rows 128; experts_down_tiles 255

#include "experts.h"
#include "tiles.h"

constexpr int DOWN_WARPS = 8;

// A warp's (tile, unit) items: every eighth.
struct Items {
    const ExpertsArgs& args;
    u32 tiles;
    u32 tile;
    u32 unit;
    ExpertTile at;
    u32 groups;  // of the piece

    DEVICE_MEMBER void load() {
        if (tile >= tiles) return;
        at = args.tiles[tile];
        groups = (args.pieces[at.piece].width + args.hidden_group - 1) / args.hidden_group;
    }
    DEVICE_MEMBER u32 units() const { return (groups + args.unit_groups - 1) / args.unit_groups; }
    DEVICE_MEMBER void skip(u32 items) {
        unit += items;
        while (tile < tiles && unit >= units()) {
            unit -= units();
            tile++;
            load();
        }
    }
    DEVICE_MEMBER u32 first_group() const { return unit * args.unit_groups; }
    DEVICE_MEMBER u32 unit_length() const {
        const u32 left = groups - first_group();
        return left < args.unit_groups ? left : args.unit_groups;
    }
};

struct ItemsSource {
    Items items;
    u64 panel;
    u32 within;
    int lane;

    DEVICE_MEMBER bool more() const { return items.tile < items.tiles; }
    DEVICE_MEMBER void fetch(u8* stage) {
        const ExpertPiece& piece = items.args.pieces[items.at.piece];
        const PackedPart& part = piece.down;
        fetch_record(stage, record_of(part, panel, items.first_group() + within), part.record, lane);
        if (++within == items.unit_length()) {
            within = 0;
            items.skip(DOWN_WARPS);
        }
    }
};

// Shared memory: a ring per warp, then sums [8 warps][T][16] i64.
template <class Form>
DEVICE void down_rows(const ExpertsArgs& args) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_column = blockIdx.x * PANEL_ROWS;
    u8* ring = shared_memory() + warp * RING_BYTES;
    i64* all = (i64*)(shared_memory() + DOWN_WARPS * RING_BYTES);
    const u32 size = args.tokens * PANEL_ROWS;
    for (u32 i = threadIdx.x; i < DOWN_WARPS * size; i += 256) all[i] = 0;
    sync_threads();
    i64* mine = all + warp * size;

    const QuantizedRows hidden{args.hidden_codes, args.hidden_scales, args.hidden_sums, args.hidden_groups};
    Items items{args, *args.tile_count, 0, 0, {}, 0};
    items.load();
    items.skip(warp);
    ItemsSource source{items, blockIdx.x, 0, (int)lane};
    u32 total = 0;
    for (Items counted = items; counted.tile < counted.tiles; counted.skip(DOWN_WARPS)) total += counted.unit_length();

    Form form;
    PackedPart part{};
    Chains<Form::COUNT> chains;
    u32 within = 0;
    int chain = 0;
    stream_groups(ring, source, total, [&](const u8* stage) {
        const ExpertTile tile = items.at;
        const ExpertPiece& piece = args.pieces[tile.piece];
        const u32 length = items.unit_length();
        if (within == 0) {
            form.bind(hidden, tile.count, lane, [&](int i) { return tile.slot + i; });
            part = piece.down;
            chains.clear();
            chain = 0;
        }
        while (chain < 3 && (int)within >= chain_start(chain + 1, length)) chains.close(chain++);
        form.step(chains.acc, stage, part, args.down_table, items.first_group() + within);
        if (++within < length) return;
        while (chain < 3) chains.close(chain++);
        for (int i = 0; i < Form::COUNT; i++) {
            const u32 token = form.token(i), column = first_column + form.panel_row(i);
            if (token >= tile.count || column >= args.width || !form.owner()) continue;
            const u32 pair = args.pairs[tile.slot + token], row = pair / args.top_k;
            const float weight = args.weight_on_input ? 1.0f : args.weights[pair];
            const bool weighted = !args.weight_on_input;
            const float y = chains.total(i);
            i64 sum = term(args, weighted ? mul_rn(weight, y) : y, row);
            if (piece.down_bias && items.unit == 0) {
                const float bias = piece.down_bias[column];
                sum += term(args, weighted ? mul_rn(weight, bias) : bias, row);
            }
            mine[row * PANEL_ROWS + form.panel_row(i)] += sum;
        }
        within = 0;
        items.skip(DOWN_WARPS);
    });

    sync_threads();
    for (u32 i = threadIdx.x; i < size; i += 256) {
        const u32 column = first_column + i % PANEL_ROWS;
        if (column >= args.width) continue;
        i64 sum = 0;
        for (int w = 0; w < DOWN_WARPS; w++) sum += all[w * size + i];
        args.sums[(u64)(i / PANEL_ROWS) * args.width + column] += sum;
    }
}

KERNEL(256, 2) NAMED(experts_down_rows_1)(ExpertsArgs args) { down_rows<DotForm<1>>(args); }
KERNEL(256, 2) NAMED(experts_down_rows_8)(ExpertsArgs args) { down_rows<MmaForm<1>>(args); }
KERNEL(256, 2) NAMED(experts_down_rows_32)(ExpertsArgs args) { down_rows<MmaForm<4>>(args); }

KERNEL(256, 1) NAMED(experts_down_tiles)(ExpertsArgs args) {
    if (blockIdx.y >= *args.tile_count) return;
    const ExpertTile at = args.tiles[blockIdx.y];
    const ExpertPiece& piece = args.pieces[at.piece];
    const int groups = (piece.width + args.hidden_group - 1) / args.hidden_group;
    const QuantizedRows hidden{args.hidden_codes, args.hidden_scales, args.hidden_sums, args.hidden_groups};
    const PackedPart part = piece.down;
    Tile tile{hidden, args.down_table, (int)at.count, {part, part}, {}, {}};
    const int first_panel = args.first_column / PANEL_ROWS + blockIdx.x * TILE_PANELS + threadIdx.x / 32 * 2;
    i64 sums[2][TILE_COUNT];
    for (int i = 0; i < 2; i++) {
        tile.panels[i] = first_panel + i;
        tile.present[i] = (u32)tile.panels[i] * PANEL_ROWS < args.width;
        for (int e = 0; e < TILE_COUNT; e++) sums[i][e] = 0;
    }
    const auto row_of = [&](int i) { return at.slot + i; };
    multiply_tile<true>(tile, groups, args.unit_groups, row_of, [&](int unit, const TileSums& y) {
#pragma unroll
        for (int e = 0; e < TILE_COUNT; e++) {
            const u32 token = tile_token(e);
            if (token >= at.count) continue;
            const u32 pair = args.pairs[at.slot + token], row = pair / args.top_k;
            const float weight = args.weight_on_input ? 1.0f : args.weights[pair];
            const bool weighted = !args.weight_on_input;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 column = tile.panels[i] * PANEL_ROWS + tile_panel_row(e);
                if (column >= args.width) continue;
                const float product = y[i].total(e);
                sums[i][e] += term(args, weighted ? mul_rn(weight, product) : product, row);
                if (piece.down_bias && unit == 0) {
                    const float bias = piece.down_bias[column];
                    sums[i][e] += term(args, weighted ? mul_rn(weight, bias) : bias, row);
                }
            }
        }
    });
#pragma unroll
    for (int e = 0; e < TILE_COUNT; e++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 token = tile_token(e), column = tile.panels[i] * PANEL_ROWS + tile_panel_row(e);
            if (token >= at.count || column >= args.width) continue;
            args.terms[(u64)(at.slot + token) * args.term_columns + column - args.first_column] = sums[i][e];
        }
}
