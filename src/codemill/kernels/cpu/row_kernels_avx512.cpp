// For x86-64 with AVX-512: vectors of sixteen floats.
#include "row_kernels.h"

#if defined(__x86_64__)

#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "row_kernels_variant.h"
END_TARGET

const codemill::RowKernels* codemill::row_kernels_avx512() {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return supported ? &kRowKernels<16> : nullptr;
}

#else

const codemill::RowKernels* codemill::row_kernels_avx512() { return nullptr; }

#endif
