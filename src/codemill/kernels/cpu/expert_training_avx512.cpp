// For x86-64 with AVX-512: vectors of sixteen floats.
#include "expert_training.h"

#if defined(__x86_64__)

#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "expert_training_variant.h"
END_TARGET

const codemill::ExpertKernels* codemill::expert_kernels_avx512() {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return supported ? &kExpertKernels<16> : nullptr;
}

#else

const codemill::ExpertKernels* codemill::expert_kernels_avx512() { return nullptr; }

#endif
