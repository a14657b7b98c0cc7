// packed_linear: out[t, n] = product(x[t], W[n]) + bias[n]. ARITHMETIC.md, 7 and 8.
//
//   x     [T, K]  quantised in the weights' groups: quantize.cu
//   W     [N, K]  packed: kernels/src/packed.rs
//   bias  [N]  f32, or null
//   out   [T, N]  f32, rows `out_stride` elements apart
//
// packed_linear_rows_*: at most TOKENS rows (1 by dp4a; 8 or 32 by mma). Grid ceil(N / 16), block 128: a block owns a
//   panel, its four warps the four chains, each with a ring of its own; a barrier before the chains are added. Weights
//   are read once for all rows. One panel a block, because a matrix of a few thousand rows must fill all
//   multiprocessors, and four short streams of a panel reach memory earlier than one long one.
// packed_linear_tiles: any number of rows. Grid (ceil(N / 256), ceil(T / 32)), block 256: tiles.h.
//
// All give the same bits.
//
// Registers: packed_linear_rows 128; packed_linear_tiles 255

#include "tiles.h"

struct PackedLinearArgs {
    QuantizedRows x;
    PackedPart weights;
    Table table;
    const float* bias;
    float* out;
    u64 out_stride;
    u32 tokens;
    u32 rows;
    u32 groups;
    u32 padding;
};
static_assert(sizeof(PackedLinearArgs) == 120, "arguments.rs");

// Shared memory: four rings, then the chains' results [4][TOKENS][16] f32.
template <class Form>
DEVICE void linear_rows(const PackedLinearArgs& args) {
    u8* shared = shared_memory();
    float* results = (float*)(shared + 4 * RING_BYTES);
    const int lane = threadIdx.x % 32, chain = threadIdx.x / 32, panel = blockIdx.x, tokens = args.tokens;
    Form form;
    form.bind(args.x, tokens, lane, [](int i) { return i; });
    float acc[Form::COUNT];
    for (int i = 0; i < Form::COUNT; i++) acc[i] = 0.0f;
    int group = chain_start(chain, args.groups);
    const int end = chain_start(chain + 1, args.groups);
    PanelSource source{record_of(args.weights, panel, group), args.weights.record, end - group, lane};
    stream_groups(shared + chain * RING_BYTES, source, end - group,
                  [&](const u8* stage) { form.step(acc, stage, args.weights, args.table, group++); });
    if (form.owner())
        for (int i = 0; i < Form::COUNT; i++)
            results[(chain * Form::TOKENS + form.token(i)) * PANEL_ROWS + form.panel_row(i)] = acc[i];
    sync_threads();
    for (int i = threadIdx.x; i < tokens * PANEL_ROWS; i += 128) {
        const int row = panel * PANEL_ROWS + i % PANEL_ROWS, token = i / PANEL_ROWS;
        if (row >= (int)args.rows) continue;
        constexpr int CHAIN = Form::TOKENS * PANEL_ROWS;
        float y = add_rn(add_rn(results[i], results[CHAIN + i]), add_rn(results[2 * CHAIN + i], results[3 * CHAIN + i]));
        if (args.bias) y = add_rn(y, args.bias[row]);
        args.out[token * args.out_stride + row] = y;
    }
}

KERNEL(128, 4) NAMED(packed_linear_rows_1)(PackedLinearArgs args) { linear_rows<DotForm<1>>(args); }
KERNEL(128, 4) NAMED(packed_linear_rows_8)(PackedLinearArgs args) { linear_rows<MmaForm<1>>(args); }
KERNEL(128, 4) NAMED(packed_linear_rows_32)(PackedLinearArgs args) { linear_rows<MmaForm<4>>(args); }

KERNEL(256, 1) NAMED(packed_linear_tiles)(PackedLinearArgs args) {
    const int panels = (args.rows + PANEL_ROWS - 1) / PANEL_ROWS, warp = threadIdx.x / 32;
    const int first = blockIdx.y * TILE_TOKENS, left = args.tokens - first;
    Tile tile{args.x, args.table, left < TILE_TOKENS ? left : TILE_TOKENS, {}, {}, {}};
    for (int i = 0; i < 2; i++) {
        tile.parts[i] = args.weights;
        tile.panels[i] = (int)blockIdx.x * TILE_PANELS + 2 * warp + i;
        tile.present[i] = tile.panels[i] < panels;
    }
    multiply_tile<false>(tile, args.groups, args.groups, [first](int i) { return first + i; },
                  [&](int, const TileSums& sums) {
                      for (int i = 0; i < 2; i++)
                          for (int e = 0; e < TILE_COUNT; e++) {
                              const int row = tile.panels[i] * PANEL_ROWS + tile_panel_row(e), token = tile_token(e);
                              if (token >= tile.count || row >= (int)args.rows) continue;
                              float y = sums[i].total(e);
                              if (args.bias) y = add_rn(y, args.bias[row]);
                              args.out[(u64)(first + token) * args.out_stride + row] = y;
                          }
                  });
}
