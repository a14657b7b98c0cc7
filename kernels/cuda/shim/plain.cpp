// The kernels that do not depend on a form of packed weights.

#include "launch.h"

#include "../arithmetic.h"

namespace {
#include "../attention.cu"
#include "../experts_plan.cu"
#include "../linear.cu"
#include "../peak.cu"
#include "../quantize.cu"
#include "../rms_norm.cu"
#include "../rope.cu"
#include "../rows.cu"
#include "../select.cu"
#include "../sums.cu"
}  // namespace

void shim_announce_plain() {
    SHIM_ANNOUNCE(attention);
    SHIM_ANNOUNCE(experts_plan);
    SHIM_ANNOUNCE(experts_sum);
    SHIM_ANNOUNCE(kv_write);
    SHIM_ANNOUNCE(linear);
    SHIM_ANNOUNCE(peak_multiply);
    SHIM_ANNOUNCE(peak_read);
    SHIM_ANNOUNCE(quantize);
    SHIM_ANNOUNCE(rms_norm);
    SHIM_ANNOUNCE(rope);
    SHIM_ANNOUNCE(rows_activation);
    SHIM_ANNOUNCE(rows_add);
    SHIM_ANNOUNCE(rows_add_gated);
    SHIM_ANNOUNCE(rows_clamp);
    SHIM_ANNOUNCE(rows_copy);
    SHIM_ANNOUNCE(rows_embed);
    SHIM_ANNOUNCE(rows_gather);
    SHIM_ANNOUNCE(rows_scale);
    SHIM_ANNOUNCE(select_experts);
    SHIM_ANNOUNCE(sums_add);
    SHIM_ANNOUNCE(sums_finish);
}
