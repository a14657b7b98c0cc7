// select_experts: the K experts of every row and their weights, in order of selection. ARITHMETIC.md, 5.
//
//   logits      [T, E]  f32, rows `logits_row` elements apart
//   correction  [E]  f32, added to the scores for the choice only; or null
//   ids         [T, K]  u32
//   weights     [T, K]  f32
//
// Launch: grid T, block 32, shared 4 * (3 E + K + 2 * 64) bytes. A warp owns a row: its scores, what the choice goes by,
// and which are taken, all in shared memory. Lane j has the experts j, j + 32, …; each of the K rounds is a scan of one's
// own, five pairs of shuffles, and a mark that only its own lane reads again. Values are compared as integers in the same
// order, with NaN at the bottom and both zeros equal. One warp, because a row is some 2 microseconds of latency either
// way, and rows are what fills the GPU.
//
// Registers: select_experts 64

#include "arithmetic.h"

struct SelectArgs {
    const float* logits;
    const float* correction;
    u32* ids;
    float* weights;
    u64 logits_row;
    u32 experts;
    u32 top_k;
    u32 score;   // 0: softmax, 1: sigmoid, 2: softmax of the selected, 3: sigmoid of the selected
    u32 groups;  // 0: none
    u32 taken;   // of them
    u32 two_largest;
    u32 normalise;
    float epsilon;
    float scale;
    u32 padding;
};
static_assert(sizeof(SelectArgs) == 80, "arguments.rs");

constexpr int MOST_GROUPS = 64;
constexpr u32 NOBODY = 0xffffffffu;

// Numbers in their order, as integers; NaN is below them all.
DEVICE u32 rank_of(float x) {
    if (!(x == x)) return 0;
    const u32 bits = x == 0.0f ? 0 : bits_of(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Takes the largest that is not taken yet, the lowest of equals. For all lanes.
DEVICE u32 take_best(const float* scores, u32* taken, u32 count, u32 lane) {
    u32 rank = 0, best = NOBODY;
    for (u32 i = lane; i < count; i += 32) {
        if (taken[i]) continue;
        const u32 other = rank_of(scores[i]);
        if (best == NOBODY || other > rank) rank = other, best = i;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const u32 other_rank = (u32)shuffle_xor((int)rank, lanes), other = (u32)shuffle_xor((int)best, lanes);
        const bool better = best == NOBODY || other_rank > rank || (other_rank == rank && other < best);
        if (other != NOBODY && better) rank = other_rank, best = other;
    }
    if (best != NOBODY && best % 32 == lane) taken[best] = 1;
    return best;
}

// x <- exp(x - max) / sum
DEVICE void softmax(float* x, u32 count, u32 lane) {
    float max = from_bits(0xff800000u);
    for (u32 i = lane; i < count; i += 32) max = x[i] > max ? x[i] : max;
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = shuffle_xor(max, lanes);
        max = other > max ? other : max;
    }
    for (u32 i = lane; i < count; i += 32) x[i] = exp_of(add_rn(x[i], -max));
    sync_warp();
    // Both halves of the warp do the same.
    float sum = 0.0f;
    for (u32 i = lane % 16; i < count; i += 16) sum = add_rn(sum, x[i]);
    sum = sum_of_16(sum);
    sync_warp();
    for (u32 i = lane; i < count; i += 32) x[i] = div_rn(x[i], sum);
    sync_warp();
}

// What a group of experts counts for.
DEVICE float group_score(const float* choice, u32 size, u32 two_largest) {
    const float nan = from_bits(0x7fc00000u);
    float first = nan, second = nan;
    for (u32 i = 0; i < size; i++) {
        const float x = choice[i];
        if (rank_of(x) > rank_of(first))
            second = first, first = x;
        else if (rank_of(x) > rank_of(second))
            second = x;
    }
    return two_largest ? add_rn(first, second) : first;
}

KERNEL(32, 1) select_experts(SelectArgs args) {
    const u32 lane = threadIdx.x, experts = args.experts;
    float* scores = (float*)shared_memory();
    float* choice = scores + experts;
    u32* taken = (u32*)(choice + experts);
    float* weights = (float*)(taken + experts);
    float* group_scores = weights + args.top_k;
    u32* group_taken = (u32*)(group_scores + MOST_GROUPS);

    const float* logits = args.logits + blockIdx.x * args.logits_row;
    for (u32 i = lane; i < experts; i += 32) scores[i] = args.score == 1 ? sigmoid_of(logits[i]) : logits[i];
    sync_warp();
    if (args.score == 0) softmax(scores, experts, lane);
    for (u32 i = lane; i < experts; i += 32) {
        choice[i] = args.correction ? add_rn(scores[i], args.correction[i]) : scores[i];
        taken[i] = 0;
    }
    sync_warp();

    if (args.groups > 0) {
        const u32 size = experts / args.groups;
        for (u32 i = lane; i < args.groups; i += 32) {
            group_scores[i] = group_score(choice + i * size, size, args.two_largest);
            group_taken[i] = 0;
        }
        for (u32 i = 0; i < args.taken; i++) take_best(group_scores, group_taken, args.groups, lane);
        sync_warp();
        for (u32 i = lane; i < experts; i += 32) taken[i] = !group_taken[i / size];
    }
    for (u32 k = 0; k < args.top_k; k++) {
        const u32 best = take_best(choice, taken, experts, lane);
        if (lane == 0) {
            args.ids[blockIdx.x * args.top_k + k] = best;
            weights[k] = scores[best];
        }
    }
    sync_warp();

    if (args.score == 2) softmax(weights, args.top_k, lane);
    float total = 0.0f;
    if (args.score == 3)
        for (u32 k = lane; k < args.top_k; k += 32) weights[k] = sigmoid_of(weights[k]);
    sync_warp();
    if (args.normalise) {
        for (u32 k = 0; k < args.top_k; k++) total = add_rn(total, weights[k]);
        total = add_rn(total, args.epsilon);
    }
    for (u32 k = lane; k < args.top_k; k += 32) {
        float weight = weights[k];
        if (args.normalise) weight = div_rn(weight, total);
        if (args.scale != 1.0f) weight = mul_rn(weight, args.scale);
        args.weights[blockIdx.x * args.top_k + k] = weight;
    }
}
