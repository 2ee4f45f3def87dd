// The loops of one variant, in vectors of BYTES bytes. Included after the instructions are chosen, as vectors.h is.
#pragma once

#include "machine_speed.h"

namespace {

template <int BYTES>
struct Vectors {
    typedef uint32_t Unsigned __attribute__((vector_size(BYTES)));
    typedef float Floats __attribute__((vector_size(BYTES)));
};

// Chains of dependent operations that run side by side: enough to hide the latency of any of them.
constexpr int kChains = 12;
constexpr int kStepsPerRound = 16;

template <int BYTES>
uint32_t read_sum(const void* from, size_t num_bytes) {
    using Unsigned = typename Vectors<BYTES>::Unsigned;
    constexpr int kLoads = codemill::kReadBlock / BYTES;
    const char* at = static_cast<const char*>(from);
    const char* const end = at + num_bytes;
    Unsigned sums[8] = {};
    for (; at < end; at += codemill::kReadBlock) {
        for (int line = 0; line < 8; ++line) __builtin_prefetch(at + 4096 + 64 * line);
#pragma GCC unroll 32
        for (int i = 0; i < kLoads; ++i) {
            Unsigned x;
            __builtin_memcpy(&x, at + i * BYTES, BYTES);
            sums[i % 8] += x;
        }
    }
    for (int i = 1; i < 8; ++i) sums[0] += sums[i];
    uint32_t total = 0;
    for (unsigned lane = 0; lane < BYTES / 4; ++lane) total += sums[0][lane];
    return total;
}

template <int BYTES>
float multiply_add_floats(size_t rounds) {
    using Floats = typename Vectors<BYTES>::Floats;
    Floats chains[kChains] = {};
    // Read through volatile: the compiler must not know them, or it would compute the result itself.
    volatile float factor = 0.5f, term = 1.0f;
    const Floats a = Floats{} + factor, b = Floats{} + term;
    for (size_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int step = 0; step < kStepsPerRound; ++step) {
#pragma GCC unroll 12
            for (int chain = 0; chain < kChains; ++chain) chains[chain] = chains[chain] * a + b;
        }
    }
    Floats total = {};
    for (int chain = 0; chain < kChains; ++chain) total += chains[chain];
    return total[0];
}

template <int BYTES>
constexpr codemill::ComputeLoop float_loop() {
    return {size_t{2} * (BYTES / 4) * kChains * kStepsPerRound, multiply_add_floats<BYTES>};
}

}  // namespace
