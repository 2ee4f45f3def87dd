// Shares the experts, and then the tokens, among threads.
#include "expert_training.h"

#include <atomic>
#include <new>

#include "scratch.h"
#include "thread_pool.h"

namespace {

using codemill::ExpertKernels;
using codemill::ExpertPass;

int for_each_expert(const ExpertPass& pass, int num_threads,
                    void (*work)(const ExpertPass& pass, int expert, float* scratch)) {
    const ExpertKernels& kernels = *codemill::expert_kernels_amx();
    std::atomic<bool> failed{false};
    auto item = [&](size_t expert) {
        if (pass.starts[expert] == pass.starts[expert + 1]) return;
        try {
            thread_local codemill::Scratch memory;
            work(pass, static_cast<int>(expert), memory.floats(kernels.scratch_floats(pass, static_cast<int>(expert))));
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
    codemill::parallel_for(num_threads, pass.num_experts, item);
    return failed ? 1 : 0;
}

}  // namespace

extern "C" {

// Whether this processor has the kernels; nothing else here may be called where it has not.
__attribute__((visibility("default"))) int codemill_has_expert_training() {
    return codemill::expert_kernels_amx() != nullptr;
}

// Both return 0, or 1 if memory ran out.
__attribute__((visibility("default"))) int codemill_experts_forward(const codemill::ExpertPass* pass, int num_threads) {
    return for_each_expert(*pass, num_threads, codemill::expert_kernels_amx()->forward);
}

__attribute__((visibility("default"))) int codemill_experts_backward(const codemill::ExpertPass* pass,
                                                                     int num_threads) {
    return for_each_expert(*pass, num_threads, codemill::expert_kernels_amx()->backward);
}

// out fp32 [N, D] from rows [P, D], places [N, k] and scales fp32 [N, k] or null.
__attribute__((visibility("default"))) int codemill_combine_experts(const uint16_t* rows, const int64_t* places,
                                                                    const float* scales, float* out, int num_tokens,
                                                                    int top_k, int size, int num_threads) {
    constexpr int kTokens = 64;  // of an item
    const auto combine = codemill::expert_kernels_amx()->combine;
    auto item = [&](size_t index) {
        const int stop = index * kTokens + kTokens < size_t(num_tokens) ? (index + 1) * kTokens : num_tokens;
        for (size_t token = index * kTokens; token < size_t(stop); ++token) {
            const size_t first = token * top_k;
            combine(rows, places + first, scales ? scales + first : nullptr, top_k, size, out + token * size);
        }
    };
    codemill::parallel_for(num_threads, (num_tokens + kTokens - 1) / kTokens, item);
    return 0;
}

}  // extern "C"
