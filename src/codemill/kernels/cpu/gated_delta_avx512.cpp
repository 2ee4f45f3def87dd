// For x86-64 with AVX-512: vectors of sixteen floats.
#include "gated_delta.h"

#if defined(__x86_64__)

#include <utility>

#include "gated_delta_scratch.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "gated_delta_head.h"
END_TARGET

codemill::DeltaKernel codemill::delta_kernel_avx512() {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return supported ? run_head<16> : nullptr;
}

#else

codemill::DeltaKernel codemill::delta_kernel_avx512() { return nullptr; }

#endif
