// For x86-64 with AVX-512: vectors of sixteen floats.
#include "training_rows.h"

#if defined(__x86_64__)

#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "training_rows_variant.h"
END_TARGET

const codemill::TrainingRows* codemill::training_rows_avx512() {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return supported ? &kTrainingRows<16> : nullptr;
}

#else

const codemill::TrainingRows* codemill::training_rows_avx512() { return nullptr; }

#endif
