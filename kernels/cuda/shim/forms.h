// The kernels of one form of packed weights; the build includes this once per form, with CODES and GROUP defined. The
// unnamed namespace keeps the forms' types apart: they have one name and different constants.

#include "launch.h"

#include "../arithmetic.h"

namespace {
#include "../experts_down.cu"
#include "../experts_gate_up.cu"
#include "../packed_linear.cu"
}  // namespace

void NAMED(shim_announce)() {
    SHIM_ANNOUNCE(NAMED(packed_linear_rows_1));
    SHIM_ANNOUNCE(NAMED(packed_linear_rows_8));
    SHIM_ANNOUNCE(NAMED(packed_linear_rows_32));
    SHIM_ANNOUNCE(NAMED(packed_linear_tiles));
    SHIM_ANNOUNCE(NAMED(experts_gate_up_rows_1));
    SHIM_ANNOUNCE(NAMED(experts_gate_up_rows_8));
    SHIM_ANNOUNCE(NAMED(experts_gate_up_rows_32));
    SHIM_ANNOUNCE(NAMED(experts_gate_up_tiles));
    SHIM_ANNOUNCE(NAMED(experts_down_rows_1));
    SHIM_ANNOUNCE(NAMED(experts_down_rows_8));
    SHIM_ANNOUNCE(NAMED(experts_down_rows_32));
    SHIM_ANNOUNCE(NAMED(experts_down_tiles));
}
