// For x86-64 with AVX2 and FMA: vectors of eight floats.
#include "expert_training.h"

#if defined(__x86_64__)

#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma")
#include "expert_training_variant.h"
END_TARGET

const codemill::ExpertKernels* codemill::expert_kernels_avx2() {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return supported ? &kExpertKernels<8> : nullptr;
}

#else

const codemill::ExpertKernels* codemill::expert_kernels_avx2() { return nullptr; }

#endif
