// Products of packed weights with many rows, on the tensor cores: a block's tile of 16 panels x 32 rows.
//
// 8 warps, two panels each (two neighbours, or gate and up of the same rows of F: both use the same B fragments). The 32
// rows are shared: each group of K is one stage of a ring in shared memory, filled by asynchronous copies, with one
// barrier a stage. Fragments: MmaForm in packed.h. Rows of the stage lie GROUP + 32 bytes apart (32 for GROUP 32), so
// that the 8-byte loads of a half warp touch all banks once.
//
// The tile is small beside its 255 registers because the chains of ARITHMETIC.md, 8 keep three sets of sums alive.
// Estimated limit: the second-level cache, at 0.02 bytes a product.
#pragma once

#include "packed.h"

constexpr int TILE_TOKENS = 32;
constexpr int TILE_PANELS = 16;
constexpr int TILE_COUNT = TILE_TOKENS / 2;
constexpr int ROW_BYTES = GROUP == 32 ? 32 : GROUP + 32;
constexpr int TILE_ROWS_AT = TILE_PANELS * STAGE_BYTES;
constexpr int TILE_SCALES_AT = TILE_ROWS_AT + TILE_TOKENS * ROW_BYTES;
constexpr int TILE_SUMS_AT = TILE_SCALES_AT + TILE_TOKENS * 4;
constexpr int TILE_STAGE_BYTES = TILE_SUMS_AT + TILE_TOKENS * 4;
constexpr int TILE_STAGES = GROUP_BYTES <= 256 ? 4 : GROUP_BYTES <= 1024 ? 3 : 2;

struct Tile {
    QuantizedRows x;
    Table table;
    int count;  // of rows, 1..=TILE_TOKENS
    // The warp's two panels; one that is not present is not read and gives garbage.
    PackedPart parts[2];
    int panels[2];
    bool present[2];
};

using TileSums = Chains<TILE_COUNT>[2];

// Of element e of a lane's sums.
DEVICE int tile_panel_row(int e) { return threadIdx.x % 32 / 4 * 2 + e / 2 % 2; }
DEVICE int tile_token(int e) { return e / 4 * 8 + threadIdx.x % 4 * 2 + e % 2; }

// All 256 threads ask for one group.
template <class Row>
DEVICE void fetch_tile(u8* stage, const Tile& tile, int group, Row row) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < 2; i++)
        if (tile.present[i])
            fetch_record(stage + (2 * warp + i) * STAGE_BYTES, record_of(tile.parts[i], tile.panels[i], group),
                         tile.parts[i].record, lane);
    constexpr int CHUNKS = GROUP / 16;
    for (int i = threadIdx.x; i < TILE_TOKENS * CHUNKS; i += 256) {
        const int token = i / CHUNKS, at = i % CHUNKS * 16;
        const u64 from = (u64)row(token < tile.count ? token : tile.count - 1) * tile.x.groups + group;
        copy_async_16(stage + TILE_ROWS_AT + token * ROW_BYTES + at, tile.x.codes + from * GROUP + at);
    }
    if (threadIdx.x < 2 * TILE_TOKENS) {
        const int token = threadIdx.x % TILE_TOKENS;
        const u64 from = (u64)row(token < tile.count ? token : tile.count - 1) * tile.x.groups + group;
        if (threadIdx.x < TILE_TOKENS)
            copy_async_4(stage + TILE_SCALES_AT + 4 * token, tile.x.scales + from);
        else
            copy_async_4(stage + TILE_SUMS_AT + 4 * token, tile.x.sums + from);
    }
}

// One group's step of the warp's two panels.
DEVICE void tile_step(TileSums& sums, const u8* stage, const Tile& tile) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 a[2][GROUP / 32][4];
    float scale[2][2], offset[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u8* panel = stage + (2 * warp + i) * STAGE_BYTES;
        load_weights(a[i], panel + tile.parts[i].codes_at, tile.table, lane);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            scale[i][j] = stage_scale(panel, tile.parts[i], 2 * g + j);
            offset[i][j] = tile.parts[i].offsets ? stage_offset(panel, tile.parts[i], 2 * g + j) : 0.0f;
        }
    }
#pragma unroll
    for (int n = 0; n < TILE_TOKENS / 8; n++) {
        if (8 * n >= tile.count) continue;
        int integer[2][4] = {};
        const u8* codes = stage + TILE_ROWS_AT + (8 * n + g) * ROW_BYTES;
#pragma unroll
        for (int k = 0; k < GROUP / 32; k++) {
            const u8* at = codes + step_column(k, t);
            u32 b[2];
            if (CODES == 2) {
                b[0] = *(const u32*)at;
                b[1] = *(const u32*)(at + 16);
            } else {
                const uint2 q = *(const uint2*)at;
                b[0] = q.x;
                b[1] = q.y;
            }
            mma_16_8_32(integer[0], a[0][k], b);
            mma_16_8_32(integer[1], a[1][k], b);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int token = 8 * n + 2 * t + e % 2;
            const float d = ((const float*)(stage + TILE_SCALES_AT))[token];
            const int sum = ((const int*)(stage + TILE_SUMS_AT))[token];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float& y = sums[i].acc[4 * n + e];
                y = chain_step(y, scale[i][e / 2], d, integer[i][e] - SHIFTED_BY * sum);
                if (tile.parts[i].offsets) y = chain_step(y, offset[i][e / 2], d, sum);
            }
        }
    }
}

// All `groups` in units of `unit` groups; `done(unit, sums)` when the chains of a unit are
// complete. `row(i)` is the row of token i. All 256 threads take part, and shared memory is free to use afterwards.
// SINGLE: a chain has at most one group, so that its sums need no registers between groups.
template <bool SINGLE, class Row, class Done>
DEVICE void multiply_tile(const Tile& tile, int groups, int unit, Row row, Done done) {
    u8* ring = shared_memory();
    TileSums sums;
    sums[0].clear();
    sums[1].clear();
#pragma unroll
    for (int i = 0; i < TILE_STAGES - 1; i++) {
        if (i < groups) fetch_tile(ring + i * TILE_STAGE_BYTES, tile, i, row);
        copy_async_commit();
    }
    int next = TILE_STAGES - 1, stage = 0;
    const auto step = [&]() {
        // As in stream_groups, with the block's barrier for the warp's.
        copy_async_wait<TILE_STAGES - 2>();
        sync_threads();
        const int free = stage == 0 ? TILE_STAGES - 1 : stage - 1;
        if (next < groups) fetch_tile(ring + free * TILE_STAGE_BYTES, tile, next, row);
        next++;
        copy_async_commit();
        tile_step(sums, ring + stage * TILE_STAGE_BYTES, tile);
        stage = stage == TILE_STAGES - 1 ? 0 : stage + 1;
    };
    for (int start = 0; start < groups; start += unit) {
        const int length = groups - start < unit ? groups - start : unit;
#pragma unroll
        for (int chain = 0; chain < 4; chain++) {
            const int end = chain_start(chain + 1, length);
            int group = chain_start(chain, length);
            if (SINGLE && group < end) step();
            while (!SINGLE && group++ < end) step();
            if (chain < 3) {
                sums[0].close(chain);
                sums[1].close(chain);
            }
        }
        done(start / unit, sums);
        sums[0].clear();
        sums[1].clear();
    }
    copy_async_wait<0>();
    sync_threads();
}
