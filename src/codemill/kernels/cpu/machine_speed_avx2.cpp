// For x86-64 with AVX2 and FMA; int8 by AVX-VNNI where the processor has it, else by vpmaddubsw and two helpers.
#include "machine_speed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "processor.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma")
#include "machine_speed_variant.h"

namespace {

float multiply_add_bytes(size_t rounds) {
    volatile int seed = 1;
    const __m256i a = _mm256_set1_epi8(static_cast<char>(seed)), b = a, ones = _mm256_set1_epi16(seed);
    __m256i chains[kChains] = {};
    for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int step = 0; step < kStepsPerRound; ++step) {
#pragma GCC unroll 12
            for (int chain = 0; chain < kChains; ++chain) {
                __m256i left = a;
                asm("" : "+x"(left));  // each product is computed anew
                const __m256i pairs = _mm256_maddubs_epi16(left, b);
                chains[chain] = _mm256_add_epi32(chains[chain], _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    __m256i total = chains[0];
    for (int chain = 1; chain < kChains; ++chain) total = _mm256_add_epi32(total, chains[chain]);
    return static_cast<float>(_mm256_extract_epi32(total, 0));
}

}  // namespace
END_TARGET

BEGIN_TARGET("avx2,fma,avxvnni")
namespace {

float dot_bytes(size_t rounds) {
    volatile int seed = 1;
    const __m256i a = _mm256_set1_epi8(static_cast<char>(seed)), b = a;
    __m256i chains[kChains] = {};
    for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int step = 0; step < kStepsPerRound; ++step) {
#pragma GCC unroll 12
            for (int chain = 0; chain < kChains; ++chain)
                chains[chain] = _mm256_dpbusd_avx_epi32(chains[chain], a, b);
        }
    }
    __m256i total = chains[0];
    for (int chain = 1; chain < kChains; ++chain) total = _mm256_add_epi32(total, chains[chain]);
    return static_cast<float>(_mm256_extract_epi32(total, 0));
}

}  // namespace
END_TARGET

const codemill::MachineSpeedKernels* codemill::machine_speed_avx2() {
    static constexpr MachineSpeedKernels kernels = {
        read_sum<32>,
        [](Operation operation) {
            constexpr size_t kBytes = size_t{2} * 32 * kChains * kStepsPerRound;
            if (operation == Operation::kFloat32) return float_loop<32>();
            if (operation == Operation::kBfloat16) return ComputeLoop{};
            return ComputeLoop{kBytes, has_avx_vnni() ? dot_bytes : multiply_add_bytes};
        },
    };
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : nullptr;
}

#else

const codemill::MachineSpeedKernels* codemill::machine_speed_avx2() { return nullptr; }

#endif
