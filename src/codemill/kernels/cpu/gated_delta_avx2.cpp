// For x86-64 with AVX2 and FMA: vectors of eight floats.
#include "gated_delta.h"

#if defined(__x86_64__)

#include <utility>

#include "gated_delta_scratch.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma")
#include "gated_delta_head.h"
END_TARGET

codemill::DeltaKernel codemill::delta_kernel_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? run_head<8> : nullptr;
}

#else

codemill::DeltaKernel codemill::delta_kernel_avx2() { return nullptr; }

#endif
