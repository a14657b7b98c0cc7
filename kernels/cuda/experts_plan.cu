// experts_plan: which rows choose which piece. experts_sum: a row's terms into its sums. Tensors: experts.h.
//
// experts_plan: grid P, block 256, shared 4 * (experts + 16) bytes. Block p counts the ids of all pairs (whole numbers:
//   the order of the additions does not matter), so that it knows by itself how many slots and tiles the pieces before
//   p take; then it lists its own pairs in ascending order by ballots, and writes their slots and its tiles. Nothing is
//   sorted and no block waits for another; reading all ids P times costs less than a second launch. Block 0 marks
//   pairs without a piece and poisons rows that name an expert twice; the last block writes the number of tiles.
//
// experts_sum: grid (ceil(columns / 256), T), block 256. A thread owns a (row, column) and adds the terms of the row's
//   slots: sums are written by their owner, without atomics.
//
// Registers: experts_plan 48; experts_sum 40

#include "experts.h"

// The sum over all 256 threads, for all of them. `exchange` holds 8 words.
DEVICE u32 block_sum(u32 value, u32* exchange) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += (u32)shuffle_xor((int)value, lanes);
    sync_threads();
    if (threadIdx.x % 32 == 0) exchange[threadIdx.x / 32] = value;
    sync_threads();
    u32 total = 0;
    for (int warp = 0; warp < 8; warp++) total += exchange[warp];
    return total;
}

KERNEL(256, 1) experts_plan(ExpertsArgs args) {
    u32* exchange = (u32*)shared_memory();
    u32* chosen = exchange + 16;
    const u32 p = blockIdx.x, pairs = args.tokens * args.top_k;
    for (u32 i = threadIdx.x; i < args.experts; i += 256) chosen[i] = 0;
    sync_threads();
    for (u32 i = threadIdx.x; i < pairs; i += 256)
        if (args.ids[i] < args.experts) atomic_add_shared(chosen + args.ids[i], 1);
    sync_threads();

    u32 slots_before = 0, tiles_before = 0, twins_before = 0;
    const u32 expert = args.pieces[p].expert;
    for (u32 i = threadIdx.x; i < p; i += 256) {
        const u32 other = args.pieces[i].expert;
        slots_before += chosen[other];
        tiles_before += (chosen[other] + args.tile_tokens - 1) / args.tile_tokens;
        twins_before += other == expert;
    }
    const u32 first_slot = block_sum(slots_before, exchange), first_tile = block_sum(tiles_before, exchange);
    const u32 copy = block_sum(twins_before, exchange), count = chosen[expert];

    const u32 tiles = (count + args.tile_tokens - 1) / args.tile_tokens;
    for (u32 i = threadIdx.x; i < tiles; i += 256) {
        const u32 start = i * args.tile_tokens, left = count - start;
        args.tiles[first_tile + i] = {p, first_slot + start, left < args.tile_tokens ? left : args.tile_tokens, 0};
    }
    if (p == args.piece_count - 1 && threadIdx.x == 0) *args.tile_count = first_tile + tiles;

    // 256 pairs a round, in order: before a thread's come those of earlier rounds, earlier warps, and lower lanes.
    u32 placed = first_slot;
    for (u32 start = 0; start < pairs; start += 256) {
        const u32 pair = start + threadIdx.x;
        const bool mine = pair < pairs && args.ids[pair] == expert;
        const u32 votes = vote(mine);
        sync_threads();
        if (threadIdx.x % 32 == 0) exchange[threadIdx.x / 32] = (u32)count_bits(votes);
        sync_threads();
        u32 slot = placed + (u32)count_bits(votes & ((1u << threadIdx.x % 32) - 1));
        for (u32 warp = 0; warp < 8; warp++) {
            slot += warp < threadIdx.x / 32 ? exchange[warp] : 0;
            placed += exchange[warp];
        }
        if (mine) {
            args.pairs[slot] = pair;
            args.slots[pair * args.copies + copy] = (int)slot;
        }
    }

    if (p != 0) return;
    // What no piece writes: the slots of an expert that has fewer pieces than another.
    sync_threads();
    for (u32 i = threadIdx.x; i < args.experts; i += 256) chosen[i] = 0;
    sync_threads();
    for (u32 i = threadIdx.x; i < args.piece_count; i += 256) atomic_add_shared(chosen + args.pieces[i].expert, 1);
    sync_threads();
    for (u32 pair = threadIdx.x; pair < pairs; pair += 256) {
        const u32 id = args.ids[pair];
        for (u32 i = id < args.experts ? chosen[id] : 0; i < args.copies; i++) args.slots[pair * args.copies + i] = -1;
        for (u32 k = pair / args.top_k * args.top_k; k < pair; k++)
            if (args.ids[k] == id) atomic_or(args.poison + pair / args.top_k, 1);
    }
}

KERNEL(256, 1) experts_sum(ExpertsArgs args) {
    const u32 column = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
    if (column >= args.term_columns || args.first_column + column >= args.width) return;
    i64 total = 0;
    for (u32 i = 0; i < args.top_k * args.copies; i++) {
        const int slot = args.slots[row * args.top_k * args.copies + i];
        if (slot >= 0) total += args.terms[(u64)slot * args.term_columns + column];
    }
    args.sums[(u64)row * args.width + args.first_column + column] += total;
}
