// For x86-64 with AVX2 and FMA: vectors of eight floats.
#include "paged_attention.h"

#if defined(__x86_64__)

#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma")
#include "paged_attention_variant.h"
END_TARGET

const codemill::Kernels* codemill::kernels_avx2(int head_dim, bool is_bf16) {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return supported ? kernels<8>(head_dim, is_bf16) : nullptr;
}

#else

const codemill::Kernels* codemill::kernels_avx2(int, bool) { return nullptr; }

#endif
