// Shares the experts, or the pairs, among threads.
#include "expert_adapter.h"

#include <atomic>
#include <new>

#include "scratch.h"
#include "thread_pool.h"

namespace {

using codemill::Activation;
using codemill::AdaptedProduct;
using codemill::AdapterGradient;
using codemill::Combination;

template <class Pass>
int for_each_expert(const Pass& pass, int num_threads, size_t (*size)(const Pass& pass, int expert),
                    void (*work)(const Pass& pass, int expert, float* scratch)) {
    std::atomic<bool> failed{false};
    auto item = [&](size_t expert) {
        try {
            thread_local codemill::Scratch memory;
            work(pass, static_cast<int>(expert), memory.floats(size(pass, static_cast<int>(expert))));
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
    codemill::parallel_for(num_threads, pass.num_experts, item);
    return failed ? 1 : 0;
}

// Pieces of so many, whatever they are.
template <class Pass>
int for_each_piece(const Pass& pass, size_t count, int num_threads,
                   void (*work)(const Pass& pass, size_t first, size_t last)) {
    constexpr size_t kPiece = 64;
    auto item = [&](size_t index) {
        const size_t last = (index + 1) * kPiece;
        work(pass, index * kPiece, last < count ? last : count);
    };
    codemill::parallel_for(num_threads, (count + kPiece - 1) / kPiece, item);
    return 0;
}

}  // namespace

extern "C" {

// Whether this processor has the kernels; nothing else here may be called where it has not.
__attribute__((visibility("default"))) int codemill_has_expert_adapter() {
    return codemill::expert_adapter_kernels_amx() != nullptr;
}

// These return 0, or 1 if memory ran out.
__attribute__((visibility("default"))) int codemill_adapted_product(const AdaptedProduct* pass, int num_threads) {
    const auto& kernels = *codemill::expert_adapter_kernels_amx();
    return for_each_expert(*pass, num_threads, kernels.product_scratch, kernels.product);
}

__attribute__((visibility("default"))) int codemill_adapter_gradient(const AdapterGradient* pass, int num_threads) {
    const auto& kernels = *codemill::expert_adapter_kernels_amx();
    return for_each_expert(*pass, num_threads, kernels.gradient_scratch, kernels.gradient);
}

__attribute__((visibility("default"))) int codemill_expert_activation(const Activation* pass, int num_threads) {
    return for_each_piece(*pass, pass->num_pairs, num_threads, codemill::expert_adapter_kernels_amx()->activate);
}

__attribute__((visibility("default"))) int codemill_expert_combination(const Combination* pass, int num_threads) {
    return for_each_piece(*pass, pass->num_tokens, num_threads, codemill::expert_adapter_kernels_amx()->combine);
}

}  // extern "C"
