// For x86-64 with AVX2 and FMA: vectors of eight floats.
#include "paged_attention_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma")
#include "paged_attention_variant.h"
END_TARGET

const codemill::AttentionKernels* codemill::attention_kernels_avx2(int head_dim, Dtype cache) {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return supported ? kernels<8>(head_dim, cache) : nullptr;
}

#else

const codemill::AttentionKernels* codemill::attention_kernels_avx2(int, Dtype) { return nullptr; }

#endif
