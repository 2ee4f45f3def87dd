// Shares the experts, and then the tokens, among threads.
#include "expert_training.h"

#include "scratch.h"
#include "training_threads.h"

namespace {

using codemill::ExpertKernels;
using codemill::ExpertPass;

// The best of at most `max_lanes` floats a vector that this processor has; 0 for AMX.
const ExpertKernels& choose(int max_lanes) {
    if (max_lanes == 0) return *codemill::expert_kernels_amx();
    const ExpertKernels* found = nullptr;
    if (max_lanes >= 16) found = codemill::expert_kernels_avx512();
    if (!found && max_lanes >= 8) found = codemill::expert_kernels_avx2();
    return found ? *found : *codemill::expert_kernels_plain();
}

int for_each_expert(const ExpertPass& pass, int num_threads, const ExpertKernels& kernels,
                    void (*work)(const ExpertPass& pass, int expert, float* scratch)) {
    const auto item = [&](size_t index) {
        const int expert = static_cast<int>(index);
        if (pass.starts[expert] == pass.starts[expert + 1]) return;
        thread_local codemill::Scratch memory;
        work(pass, expert, memory.floats(kernels.scratch_floats(pass, expert)));
    };
    return codemill::training_for(num_threads, pass.num_experts, item) ? 0 : 1;
}

}  // namespace

extern "C" {

// Whether this processor has the kernels with AMX.
__attribute__((visibility("default"))) int codemill_has_expert_training() {
    return codemill::expert_kernels_amx() != nullptr;
}

// All return 0, or 1 if memory ran out. max_lanes: see `choose`.
__attribute__((visibility("default"))) int codemill_experts_forward(const codemill::ExpertPass* pass, int num_threads,
                                                                    int max_lanes) {
    const ExpertKernels& kernels = choose(max_lanes);
    return for_each_expert(*pass, num_threads, kernels, kernels.forward);
}

__attribute__((visibility("default"))) int codemill_experts_backward(const codemill::ExpertPass* pass, int num_threads,
                                                                     int max_lanes) {
    const ExpertKernels& kernels = choose(max_lanes);
    return for_each_expert(*pass, num_threads, kernels, kernels.backward);
}

// out fp32 [N, D] from rows [P, D], places [N, k] and scales fp32 [N, k] or null.
__attribute__((visibility("default"))) int codemill_combine_experts(const void* rows, const int64_t* places,
                                                                    const float* scales, float* out, int num_tokens,
                                                                    int top_k, int size, int num_threads,
                                                                    int max_lanes) {
    constexpr int kTokens = 64;  // of an item
    const auto combine = choose(max_lanes).combine;
    const auto item = [&](size_t index) {
        const int stop = index * kTokens + kTokens < size_t(num_tokens) ? (index + 1) * kTokens : num_tokens;
        for (size_t token = index * kTokens; token < size_t(stop); ++token) {
            const size_t first = token * top_k;
            combine(rows, places + first, scales ? scales + first : nullptr, top_k, size, out + token * size);
        }
    };
    return codemill::training_for(num_threads, (num_tokens + kTokens - 1) / kTokens, item) ? 0 : 1;
}

}  // extern "C"
