// attention over paged KV, and kv_write that fills it. ARITHMETIC.md, 4.
//
//   q          [T, heads, key_width]  f32, rows and heads at strides
//   keys       [pages, kv_heads, 64, key_width]  f32 or f16; position p of a sequence lies in page table[p / 64] at p % 64
//   values     [pages, kv_heads, 64, value_width]  as keys; null: the first value_width columns of the key
//   tables     [sequences, table_stride]  u32
//   sequences  [T]  u32;  positions [T]  u32
//   sinks      [heads]  f32, or null
//   out        [T, heads, value_width]  f32, rows and heads at strides
//
// attention: grid (heads, T), block 256, shared 4 * (key_width + value_width + 256 + 16) bytes. A block owns a (row, head)
//   and goes through the chunks of 256 positions in order: scores by sixteen lanes a position (the chains of the dot),
//   the largest of them by all threads, e^x by all, their sum by sixteen lanes, then a thread per column goes through the
//   chunk's values. Four barriers a chunk. The plain form: one row of a long context has `heads` blocks only, and heads
//   that share keys read them each for themselves. Chunks do not depend on each other: a block per chunk and a merge is
//   the next step. A row whose sequence, position or page is out of range becomes NaN and reads nothing.
// kv_write: grid (ceil(n / 256), kv_heads, T), block 256. A thread copies an element to where the row's slot says,
//   rounded where the cache is f16; a slot that the cache does not have is not written.
//
// Registers: attention 96; kv_write 32

#include "arithmetic.h"

struct AttentionArgs {
    const float* q;
    const void* keys;
    const void* values;
    const u32* tables;
    const u32* sequences;
    const u32* positions;
    const float* sinks;
    float* out;
    u64 q_row, q_head, out_row, out_head;
    u32 table_stride;
    u32 sequence_count;
    u32 pages;
    u32 heads;
    u32 kv_heads;
    u32 key_width;
    u32 value_width;
    u32 mask;  // 0: all, 1: the last `mask_size`, 2: those of the own block of `mask_size`
    u32 mask_size;
    float scale;
    u32 half;  // whether the caches are f16
    u32 padding;
};
static_assert(sizeof(AttentionArgs) == 144, "arguments.rs");

constexpr u32 PAGE = 64, CHUNK = 256;

// The first position that `position` sees.
DEVICE u32 first_seen(const AttentionArgs& args, u32 position) {
    if (args.mask == 1) return position + 1 > args.mask_size ? position + 1 - args.mask_size : 0;
    return args.mask == 2 ? position / args.mask_size * args.mask_size : 0;
}

// What a head of a row works on.
struct Attended {
    const u32* table;
    u32 kv_head, kv_heads;
    // Where a position's row begins.
    DEVICE_MEMBER u64 row(u32 width, u32 position) const {
        const u64 page = table[position / PAGE];
        return ((page * kv_heads + kv_head) * PAGE + position % PAGE) * width;
    }
};

DEVICE float cache_element(const void* cache, u32 half, u64 at) {
    return half ? half_to_float(((const u16*)cache)[at]) : ((const float*)cache)[at];
}

// The largest over all 256 threads, for all of them; NaN is none. `exchange` holds 8 values.
DEVICE float block_max(float value, float* exchange) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = shuffle_xor(value, lanes);
        value = other > value ? other : value;
    }
    if (threadIdx.x % 32 == 0) exchange[threadIdx.x / 32] = value;
    sync_threads();
    for (int warp = 0; warp < 8; warp++) value = exchange[warp] > value ? exchange[warp] : value;
    return value;
}

// Whether all that a row names is there. For all threads.
DEVICE bool in_range(const AttentionArgs& args, u32 sequence, u32 first, u32 last, u32* flag) {
    bool good = sequence < args.sequence_count && last / PAGE < args.table_stride;
    if (threadIdx.x == 0) *flag = 0;
    sync_threads();
    for (u32 page = first / PAGE + threadIdx.x; good && page <= last / PAGE; page += 256)
        if (args.tables[(u64)sequence * args.table_stride + page] >= args.pages) atomic_add_shared(flag, 1);
    sync_threads();
    return good && *flag == 0;
}

KERNEL(256, 2) attention(AttentionArgs args) {
    float* q = (float*)shared_memory();
    float* out = q + args.key_width;
    float* scores = out + args.value_width;  // by place in the chunk
    float* exchange = scores + CHUNK;
    const u32 head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x % 16;
    const u32 last = args.positions[row], first = first_seen(args, last), sequence = args.sequences[row];
    float* result = args.out + row * args.out_row + head * args.out_head;
    const bool readable = in_range(args, sequence, first, last, (u32*)exchange);
    for (u32 i = threadIdx.x; i < args.key_width; i += 256) q[i] = args.q[row * args.q_row + head * args.q_head + i];
    for (u32 d = threadIdx.x; d < args.value_width; d += 256) out[d] = 0.0f;
    if (!readable) {
        for (u32 d = threadIdx.x; d < args.value_width; d += 256) result[d] = from_bits(0x7fc00000u);
        return;
    }
    sync_threads();

    const u32* table = args.tables + (u64)sequence * args.table_stride;
    const Attended at{table, head / (args.heads / args.kv_heads), args.kv_heads};
    const void* values = args.values ? args.values : args.keys;
    const u32 value_stride = args.values ? args.value_width : args.key_width;
    const float infinity = from_bits(0x7f800000u);
    float max = -infinity, total = 0.0f;
    for (u32 chunk = first / CHUNK * CHUNK; chunk <= last; chunk += CHUNK) {
        const u32 begin = first > chunk ? first - chunk : 0;
        const u32 end = last - chunk + 1 < CHUNK ? last - chunk + 1 : CHUNK;
        for (u32 base = begin; base < end; base += 16) {
            const u32 place = base + threadIdx.x / 16;
            const u64 key = at.row(args.key_width, chunk + (place < end ? place : end - 1));
            float acc = 0.0f;
            for (u32 i = lane; i < args.key_width; i += 16) 
                acc = fma_rn(q[i], cache_element(args.keys, args.half, key + i), acc);
            acc = sum_of_16(acc);
            if (lane == 0 && place < end) scores[place] = mul_rn(acc, args.scale);
        }
        sync_threads();
        const bool mine = threadIdx.x >= begin && threadIdx.x < end;
        const float score = mine ? scores[threadIdx.x] : -infinity;
        const float m = block_max(score, exchange);
        if (mine) scores[threadIdx.x] = exp_of(add_rn(score, -m));
        sync_threads();
        // Every half of a warp adds them up for itself.
        float l = 0.0f;
        for (u32 place = lane; place < end; place += 16)
            if (place >= begin) l = add_rn(l, scores[place]);
        l = sum_of_16(l);
        const float larger = m > max ? m : max;
        const float a = exp_of(add_rn(max, -larger)), b = exp_of(add_rn(m, -larger));
        total = fma_rn(total, a, mul_rn(l, b));
        max = larger;
        for (u32 d = threadIdx.x; d < args.value_width; d += 256) {
            float o = 0.0f;
            for (u32 place = begin; place < end; place++) {
                const u64 value = at.row(value_stride, chunk + place) + d;
                o = fma_rn(scores[place], cache_element(values, args.half, value), o);
            }
            out[d] = fma_rn(out[d], a, mul_rn(o, b));
        }
        sync_threads();
    }
    float a = 1.0f, none = 0.0f;
    if (args.sinks) {
        const float sink = args.sinks[head], larger = sink > max ? sink : max;
        const float b = exp_of(add_rn(sink, -larger));
        a = exp_of(add_rn(max, -larger));
        total = fma_rn(total, a, b);
        none = mul_rn(0.0f, b);
    }
    for (u32 d = threadIdx.x; d < args.value_width; d += 256)
        result[d] = div_rn(args.sinks ? fma_rn(out[d], a, none) : out[d], total);
}

struct KvWriteArgs {
    const float* from;
    const u32* slots;  // [T]  page * 64 + offset
    void* cache;
    u64 from_row, from_head;
    u32 width;  // of what is written
    u32 heads;
    u32 cache_width;
    u32 column;  // the first one that is written
    u32 pages;
    u32 half;  // whether the cache is f16
};
static_assert(sizeof(KvWriteArgs) == 64, "arguments.rs");

KERNEL(256, 1) kv_write(KvWriteArgs args) {
    const u32 column = blockIdx.x * 256 + threadIdx.x, head = blockIdx.y, row = blockIdx.z;
    const u32 page = args.slots[row] / PAGE, offset = args.slots[row] % PAGE;
    if (column >= args.width || page >= args.pages) return;
    const u64 to = (((u64)page * args.heads + head) * PAGE + offset) * args.cache_width + args.column + column;
    const float value = args.from[row * args.from_row + head * args.from_head + column];
    if (!args.half) {
        ((float*)args.cache)[to] = value;
        return;
    }
    const float most = 65504.0f, low = value > most ? most : value;
    ((u16*)args.cache)[to] = float_to_half(low < -most ? -most : low);
}
