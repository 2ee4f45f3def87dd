// For every processor: vectors of four floats, which SSE2 and NEON have.
#include "gated_delta_head.h"

codemill::DeltaKernel codemill::delta_kernel_plain() { return run_head<4>; }
