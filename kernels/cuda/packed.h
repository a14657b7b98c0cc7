// Products of packed weights with quantised rows: what packed_linear.cu and experts.cu are made of. ARITHMETIC.md, 8.
//
// A translation unit is compiled for one form of weights:
//   CODES   0: 4-bit codes that stand for c - 8   1: 4-bit codes with a table   2: 8-bit codes that stand for c - 128
//   GROUP   32, 64 or 128
// Whether scales are f16 or f32, and whether there are offsets, is each matrix' own: a uniform branch a group.
//
// The layout is packed.rs': a panel of 16 rows is a run of records, one per group of K: 16 scales, 16 offsets where there
// are any, `GROUP_BYTES` of codes in 64-byte lines. A warp streams a panel's records into its own ring in shared memory
// with 16-byte asynchronous copies and computes from there: bytes in flight cost no registers, and every weight is read
// once for all rows. Two forms compute a group from a stage of the ring:
//
//   DotForm   a row or two, dp4a. Lane r + 16h has row r of the panel and the lines with j % 2 == h; one shuffle adds
//             the halves. 16 lanes x 4 bytes of neighbouring lines: no bank conflict.
//   MmaForm   rows in eights, mma m16n8k32. Weights are the operand of 16 rows: fragment row g is the panel's row 2g,
//             fragment row g + 8 the panel's row 2g + 1, so that a lane reads both with one 8-byte load and a warp reads
//             256 bytes in a row. Along K the operands may be permuted alike: of 4-bit lines, register 0/1 takes the
//             low nibbles of line 4i + t (columns 8t..8t+4), register 2/3 the high ones (8t+4..8t+8), and the rows'
//             side reads its 8 bytes at column 8t. 8-bit lines keep their order.
//
// Integer sums are exact, and the f32 steps are per group in both, so that they give the same bits.
#pragma once

#include "arithmetic.h"
#include "weights.h"

#ifndef CODES
#error "CODES and GROUP choose the form of the weights"
#endif

#define JOIN_(name, codes, group) name##_c##codes##_g##group
#define JOIN(name, codes, group) JOIN_(name, codes, group)
// The kernel's name in this form.
#define NAMED(name) JOIN(name, CODES, GROUP)

constexpr int PANEL_ROWS = 16;
constexpr int LINE = 64;
constexpr int LINE_COLUMNS = CODES == 2 ? 4 : 8;
constexpr int LINES = GROUP / LINE_COLUMNS;
constexpr int GROUP_BYTES = LINES * LINE;
// A record in shared memory, at its longest.
constexpr int STAGE_BYTES = GROUP_BYTES + 128;
// Stages of a warp's ring.
constexpr int STAGES = GROUP_BYTES <= 256 ? 8 : GROUP_BYTES <= 512 ? 6 : GROUP_BYTES <= 1024 ? 3 : 2;
constexpr int RING_BYTES = STAGES * STAGE_BYTES;
// A plain code is the integer plus 8; the sum of the row's codes takes the 8 off again.
constexpr int SHIFTED_BY = CODES == 0 ? 8 : 0;

// A warp asks for one record.
DEVICE void fetch_record(u8* stage, const u8* record, u32 bytes, int lane) {
#pragma unroll
    for (int at = lane * 16; at < STAGE_BYTES; at += 512)
        if (at < (int)bytes) copy_async_16(stage + at, record + at);
}

// The record of a panel's group.
DEVICE const u8* record_of(const PackedPart& part, u64 panel, int group) {
    return part.records + panel * part.panel_bytes + (u64)group * part.record;
}

DEVICE float stage_scale(const u8* stage, const PackedPart& part, int row) {
    if (part.wide_scales) return ((const float*)stage)[row];
    return half_to_float(((const u16*)stage)[row]);
}

// Offsets are the 64 bytes before the codes.
DEVICE float stage_offset(const u8* stage, const PackedPart& part, int row) {
    return ((const float*)(stage + part.codes_at - 64))[row];
}

// The integers (plain codes: plus 8) of a word of a line: columns 0..4, and 4..8 of 4-bit lines.
DEVICE void unpack(u32 word, const Table& table, u32& low, u32& high) {
    if (CODES == 0) {
        low = word & 0x0f0f0f0fu;
        high = word >> 4 & 0x0f0f0f0fu;
    } else if (CODES == 1) {
        // Four nibbles at a time: both halves of the table, then the half that bit 3 wants, then even from odd.
        u32 values[2];
        for (int i = 0; i < 2; i++) {
            const u32 nibbles = word >> (16 * i) & 0xffffu, select = nibbles & 0x7777u;
            const u32 first = pick_bytes(table.words[0], table.words[1], select);
            const u32 second = pick_bytes(table.words[2], table.words[3], select);
            values[i] = pick_bytes(first, second, 0x3210u | (nibbles & 0x8888u) >> 1);
        }
        low = pick_bytes(values[0], values[1], 0x6420u);
        high = pick_bytes(values[0], values[1], 0x7531u);
    } else {
        low = word ^ 0x80808080u;
        high = 0;
    }
}

// One group's step of a chain.
DEVICE float chain_step(float acc, float scale, float d, int integer) {
    return fma_rn(mul_rn(scale, d), to_float(integer), acc);
}

// The rows that a warp computes, `count` >= 1 of them; `row(i)` says which. Those beyond repeat the last.
template <int ROWS>
struct DotForm {
    // Of a lane: one per row.
    static constexpr int COUNT = ROWS;
    static constexpr int TOKENS = ROWS;
    QuantizedRows x;
    u32 rows[ROWS];  // times x.groups
    int lane;

    template <class Row>
    DEVICE_MEMBER void bind(const QuantizedRows& from, int count, int at, Row row) {
        x = from;
        lane = at;
        for (int i = 0; i < ROWS; i++) rows[i] = (u32)row(i < count ? i : count - 1) * (u32)x.groups;
    }
    // Whether the lane's elements are its own: the other half warp has the same.
    DEVICE_MEMBER bool owner() const { return lane < PANEL_ROWS; }
    DEVICE_MEMBER int panel_row(int) const { return lane % PANEL_ROWS; }
    DEVICE_MEMBER int token(int element) const { return element; }

    DEVICE_MEMBER void step(float (&acc)[COUNT], const u8* stage, const PackedPart& part, const Table& table,
                            int group) const {
        const int row = lane % PANEL_ROWS, half = lane / PANEL_ROWS;
        int sums[ROWS];
        for (int i = 0; i < ROWS; i++) sums[i] = 0;
#pragma unroll
        for (int line = half; line < LINES; line += 2) {
            const u32 word = *(const u32*)(stage + part.codes_at + line * LINE + 4 * row);
            u32 low, high;
            unpack(word, table, low, high);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const i8* codes = x.codes + (u64)(rows[i] + group) * GROUP + line * LINE_COLUMNS;
                if (CODES == 2) {
                    sums[i] = dot4(low, load_constant((const u32*)codes), sums[i]);
                } else {
                    const uint2 q = load_constant((const uint2*)codes);
                    sums[i] = dot4(high, q.y, dot4(low, q.x, sums[i]));
                }
            }
        }
        const float scale = stage_scale(stage, part, row);
        const float offset = part.offsets ? stage_offset(stage, part, row) : 0.0f;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const float d = load_constant(x.scales + (rows[i] + group));
            const int sum = SHIFTED_BY || part.offsets ? load_constant(x.sums + (rows[i] + group)) : 0;
            const int integer = sums[i] + shuffle_xor(sums[i], PANEL_ROWS) - SHIFTED_BY * sum;
            acc[i] = chain_step(acc[i], scale, d, integer);
            if (part.offsets) acc[i] = chain_step(acc[i], offset, d, sum);
        }
    }
};

// A lane's A fragments of a group, for fragment rows g and g + 8, in steps of 32 along K.
DEVICE void load_weights(u32 (&a)[GROUP / 32][4], const u8* codes, const Table& table, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < GROUP / 32; i++) {
        if (CODES == 2) {
            const uint2 first = *(const uint2*)(codes + (8 * i + t) * LINE + 8 * g);
            const uint2 second = *(const uint2*)(codes + (8 * i + 4 + t) * LINE + 8 * g);
            u32 none;
            unpack(first.x, table, a[i][0], none);
            unpack(first.y, table, a[i][1], none);
            unpack(second.x, table, a[i][2], none);
            unpack(second.y, table, a[i][3], none);
        } else {
            const uint2 words = *(const uint2*)(codes + (4 * i + t) * LINE + 8 * g);
            unpack(words.x, table, a[i][0], a[i][2]);
            unpack(words.y, table, a[i][1], a[i][3]);
        }
    }
}

// The columns of a row's group that belong to one step: where, from the group's start.
DEVICE int step_column(int i, int t) { return CODES == 2 ? 32 * i + 4 * t : 32 * i + 8 * t; }

template <int EIGHTS>
struct MmaForm {
    // Of a lane: (panel rows 2g, 2g + 1) x (rows 2t, 2t + 1), per eight.
    static constexpr int COUNT = 4 * EIGHTS;
    static constexpr int TOKENS = 8 * EIGHTS;
    QuantizedRows x;
    u32 codes_row[EIGHTS];  // times x.groups
    u32 scale_row[EIGHTS][2];
    int lane;
    int count;

    template <class Row>
    DEVICE_MEMBER void bind(const QuantizedRows& from, int rows, int at, Row row) {
        x = from;
        lane = at;
        count = rows;
        const int g = lane / 4, t = lane % 4;
        for (int n = 0; n < EIGHTS; n++) {
            const int c = 8 * n + g, s = 8 * n + 2 * t;
            codes_row[n] = (u32)row(c < rows ? c : rows - 1) * (u32)x.groups;
            scale_row[n][0] = (u32)row(s < rows ? s : rows - 1) * (u32)x.groups;
            scale_row[n][1] = (u32)row(s + 1 < rows ? s + 1 : rows - 1) * (u32)x.groups;
        }
    }
    DEVICE_MEMBER bool owner() const { return true; }
    DEVICE_MEMBER int panel_row(int element) const { return lane / 4 * 2 + element / 2 % 2; }
    DEVICE_MEMBER int token(int element) const { return element / 4 * 8 + lane % 4 * 2 + element % 2; }

    DEVICE_MEMBER void step(float (&acc)[COUNT], const u8* stage, const PackedPart& part, const Table& table,
                            int group) const {
        const int g = lane / 4, t = lane % 4;
        u32 a[GROUP / 32][4];
        load_weights(a, stage + part.codes_at, table, lane);
        const float scale[2] = {stage_scale(stage, part, 2 * g), stage_scale(stage, part, 2 * g + 1)};
        float offset[2] = {0.0f, 0.0f};
        if (part.offsets)
            for (int j = 0; j < 2; j++) offset[j] = stage_offset(stage, part, 2 * g + j);
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
            if (8 * n >= count) continue;
            int integer[4] = {0, 0, 0, 0};
            const i8* codes = x.codes + (u64)(codes_row[n] + group) * GROUP;
#pragma unroll
            for (int i = 0; i < GROUP / 32; i++) {
                u32 b[2];
                const i8* at = codes + step_column(i, t);
                if (CODES == 2) {
                    b[0] = load_constant((const u32*)at);
                    b[1] = load_constant((const u32*)(at + 16));
                } else {
                    const uint2 q = load_constant((const uint2*)at);
                    b[0] = q.x;
                    b[1] = q.y;
                }
                mma_16_8_32(integer, a[i], b);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const u32 at = scale_row[n][e % 2] + group;
                const float d = load_constant(x.scales + at);
                const int sum = SHIFTED_BY || part.offsets ? load_constant(x.sums + at) : 0;
                float& y = acc[4 * n + e];
                y = chain_step(y, scale[e / 2], d, integer[e] - SHIFTED_BY * sum);
                if (part.offsets) y = chain_step(y, offset[e / 2], d, sum);
            }
        }
    }
};

// Where chain `chain` of `groups` begins; chain 4 is the end.
DEVICE int chain_start(int chain, int groups) { return (int)((u32)chain * (u32)groups / 4u); }

// A warp's stream of groups. `source.more()` says whether there is another, `source.fetch(stage)` asks for it and moves
// on; `work(stage)` gets them in the same order. Every lane takes part.
template <class Source, class Work>
DEVICE void stream_groups(u8* ring, Source& source, int total, Work work) {
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (source.more()) source.fetch(ring + i * STAGE_BYTES);
        copy_async_commit();
    }
    int stage = 0;
    for (int i = 0; i < total; i++) {
        // All but the latest STAGES - 2 have landed, so group i has: for this lane, and behind the barrier for all.
        // The stage that is filled now was read in the round before, which the barrier ends too.
        copy_async_wait<STAGES - 2>();
        sync_warp();
        const int free = stage == 0 ? STAGES - 1 : stage - 1;
        if (source.more()) source.fetch(ring + free * STAGE_BYTES);
        copy_async_commit();
        work(ring + stage * STAGE_BYTES);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    copy_async_wait<0>();
    sync_warp();
}

// Neighbouring groups of one panel.
struct PanelSource {
    const u8* record;  // the next one
    u32 bytes;
    int left, lane;

    DEVICE_MEMBER bool more() const { return left > 0; }
    DEVICE_MEMBER void fetch(u8* stage) {
        fetch_record(stage, record, bytes, lane);
        record += bytes;
        left--;
    }
};

// Chains on their way to (c0 + c1) + (c2 + c3), in order. `COUNT` products of a lane.
template <int COUNT>
struct Chains {
    float acc[COUNT], left[COUNT], right[COUNT];

    DEVICE_MEMBER void clear() {
        for (int i = 0; i < COUNT; i++) acc[i] = 0.0f;
    }
    // Chain 0, 1 or 2 is complete.
    DEVICE_MEMBER void close(int chain) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (chain == 0) left[i] = acc[i];
            if (chain == 1) left[i] = add_rn(left[i], acc[i]);
            if (chain == 2) right[i] = acc[i];
            acc[i] = 0.0f;
        }
    }
    // After chain 3.
    DEVICE_MEMBER float total(int i) const { return add_rn(left[i], add_rn(right[i], acc[i])); }
};
