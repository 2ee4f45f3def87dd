// For x86-64 with AVX2 and FMA: vectors of eight floats.
#include "training_rows.h"

#if defined(__x86_64__)

#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma")
#include "training_rows_variant.h"
END_TARGET

const codemill::TrainingRows* codemill::training_rows_avx2() {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return supported ? &kTrainingRows<8> : nullptr;
}

#else

const codemill::TrainingRows* codemill::training_rows_avx2() { return nullptr; }

#endif
