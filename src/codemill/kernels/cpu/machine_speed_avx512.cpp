// For x86-64 with AVX-512; int8 by VNNI and bf16 by AVX512_BF16 where the processor has them.
#include "machine_speed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "machine_speed_variant.h"
END_TARGET

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace {

float dot_bytes(size_t rounds) {
    volatile int seed = 1;
    const __m512i a = _mm512_set1_epi8(static_cast<char>(seed)), b = a;
    __m512i chains[kChains] = {};
    for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int step = 0; step < kStepsPerRound; ++step) {
#pragma GCC unroll 12
            for (int chain = 0; chain < kChains; ++chain) chains[chain] = _mm512_dpbusd_epi32(chains[chain], a, b);
        }
    }
    __m512i total = chains[0];
    for (int chain = 1; chain < kChains; ++chain) total = _mm512_add_epi32(total, chains[chain]);
    return static_cast<float>(_mm512_cvtsi512_si32(total));
}

}  // namespace
END_TARGET

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace {

float dot_bfloat16(size_t rounds) {
    volatile int seed = 0x3f803f80;  // 1.0 twice
    const __m512bh a = (__m512bh)_mm512_set1_epi32(seed), b = a;
    __m512 chains[kChains] = {};
    for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int step = 0; step < kStepsPerRound; ++step) {
#pragma GCC unroll 12
            for (int chain = 0; chain < kChains; ++chain) chains[chain] = _mm512_dpbf16_ps(chains[chain], a, b);
        }
    }
    __m512 total = chains[0];
    for (int chain = 1; chain < kChains; ++chain) total = _mm512_add_ps(total, chains[chain]);
    return _mm512_cvtss_f32(total);
}

}  // namespace
END_TARGET

const codemill::MachineSpeedKernels* codemill::machine_speed_avx512() {
    static constexpr MachineSpeedKernels kernels = {
        read_sum<64>,
        [](Operation operation) {
            constexpr size_t kBytes = size_t{2} * 64 * kChains * kStepsPerRound;
            if (operation == Operation::kFloat32) return float_loop<64>();
            if (operation == Operation::kInt8 && __builtin_cpu_supports("avx512vnni")) {
                return ComputeLoop{kBytes, dot_bytes};
            }
            if (operation == Operation::kBfloat16 && __builtin_cpu_supports("avx512bf16")) {
                return ComputeLoop{kBytes / 2, dot_bfloat16};
            }
            return ComputeLoop{};
        },
    };
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return supported ? &kernels : nullptr;
}

#else

const codemill::MachineSpeedKernels* codemill::machine_speed_avx512() { return nullptr; }

#endif
