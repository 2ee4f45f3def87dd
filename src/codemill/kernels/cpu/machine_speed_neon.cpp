// For aarch64 with dot products of bytes; bf16 where the processor has those too.
#include "machine_speed.h"

#include "targets.h"

// Before version 16 Clang's header has bf16 only if everything is compiled for it.
#if HAS_ARM_EXTENSIONS && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC))

#include <arm_neon.h>

#include "processor.h"

BEGIN_TARGET("arch=armv8.2-a+dotprod+bf16")
#include "machine_speed_variant.h"

namespace {

constexpr int kNeonChains = 24;  // of 32 registers; some processors start four instructions in every cycle
constexpr size_t kBytes = size_t{2} * 16 * kNeonChains * kStepsPerRound;

// chain = step(chain) for every chain -> their first.
template <class Vector, class Step>
inline __attribute__((always_inline)) Vector run_chains(size_t rounds, Step step) {
    Vector chains[kNeonChains] = {};
    for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kStepsPerRound; ++i) {
#pragma GCC unroll 24
            for (int chain = 0; chain < kNeonChains; ++chain) {
                chains[chain] = step(chains[chain]);
                asm("" : "+w"(chains[chain]));  // GCC would exchange the loops, and compute chain after chain
            }
        }
    }
    for (int chain = 1; chain < kNeonChains; ++chain) chains[0] += chains[chain];
    return chains[0];
}

// As the instruction adds to what it overwrites, a factor cannot be the chain without a copy.
float multiply_add(size_t rounds) {
    volatile float seed = 0.5f;
    const float32x4_t a = vdupq_n_f32(seed), b = a;
    const auto step = [=](float32x4_t chain) { return vfmaq_f32(chain, a, b); };
    return vgetq_lane_f32(run_chains<float32x4_t>(rounds, step), 0);
}

float dot_bytes(size_t rounds) {
    volatile int seed = 1;
    const int8x16_t a = vdupq_n_s8(static_cast<int8_t>(seed)), b = a;
    const auto step = [=](int32x4_t chain) { return vdotq_s32(chain, a, b); };
    return static_cast<float>(vgetq_lane_s32(run_chains<int32x4_t>(rounds, step), 0));
}

float dot_bfloat16(size_t rounds) {
    volatile uint16_t seed = 0x3f80;  // 1.0
    const bfloat16x8_t a = vreinterpretq_bf16_u16(vdupq_n_u16(seed)), b = a;
    const auto step = [=](float32x4_t chain) { return vbfdotq_f32(chain, a, b); };
    return vgetq_lane_f32(run_chains<float32x4_t>(rounds, step), 0);
}

}  // namespace
END_TARGET

const codemill::MachineSpeedKernels* codemill::machine_speed_neon() {
    static constexpr MachineSpeedKernels kernels = {
        read_sum<16>,
        [](Operation operation) {
            if (operation == Operation::kFloat32) return ComputeLoop{kBytes / 4, multiply_add};
            if (operation == Operation::kInt8) return ComputeLoop{kBytes, dot_bytes};
            return has_bfloat16_dot_products() ? ComputeLoop{kBytes / 2, dot_bfloat16} : ComputeLoop{};
        },
    };
    return has_dot_products() ? &kernels : nullptr;
}

#else

const codemill::MachineSpeedKernels* codemill::machine_speed_neon() { return nullptr; }

#endif
