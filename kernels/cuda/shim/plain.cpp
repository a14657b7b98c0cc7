// The kernels that do not depend on a form of packed weights.

#include "launch.h"

#include "../arithmetic.h"

namespace {
#include "../experts_plan.cu"
#include "../peak.cu"
#include "../quantize.cu"
#include "../rms_norm.cu"
#include "../rope.cu"
}  // namespace

void shim_announce_plain() {
    SHIM_ANNOUNCE(experts_plan);
    SHIM_ANNOUNCE(experts_sum);
    SHIM_ANNOUNCE(peak_multiply);
    SHIM_ANNOUNCE(peak_read);
    SHIM_ANNOUNCE(quantize);
    SHIM_ANNOUNCE(rms_norm);
    SHIM_ANNOUNCE(rope);
}
