// For x86-64 with AVX-512: vectors of sixteen floats.
#include "paged_attention_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "paged_attention_variant.h"
END_TARGET

const codemill::AttentionKernels* codemill::attention_kernels_avx512(int head_dim, Dtype cache) {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return supported ? kernels<16>(head_dim, cache) : nullptr;
}

#else

const codemill::AttentionKernels* codemill::attention_kernels_avx512(int, Dtype) { return nullptr; }

#endif
