// The choice of the variant, and the entry from Python.
#include "gated_delta.h"

#include <new>

#include "gated_delta_scratch.h"
#include "scratch.h"
#include "thread_pool.h"

namespace codemill {
namespace {

DeltaKernel choose_kernel(int max_lanes) {
    DeltaKernel kernel = nullptr;
    if (max_lanes >= 16) kernel = delta_kernel_avx512();
    if (!kernel && max_lanes >= 8) kernel = delta_kernel_avx2();
    return kernel ? kernel : delta_kernel_plain();
}

}  // namespace

GatedDeltaCall::GatedDeltaCall(const GatedDelta& call, int max_lanes)
    : call_(call), kernel_(choose_kernel(max_lanes)) {}

void GatedDeltaCall::compute(size_t index) noexcept {
    thread_local Scratch memory;
    try {
        float* scratch = memory.floats(DeltaScratch(call_).size);
        kernel_(call_, call_.segments[index / call_.num_key_heads], index % call_.num_key_heads, scratch);
    } catch (const std::bad_alloc&) {
        failed_ = true;
    }
}

}  // namespace codemill

// Returns 0, or 1 if memory ran out. See GatedDelta for the shapes, GatedDeltaCall for `max_lanes`.
extern "C" __attribute__((visibility("default"))) int codemill_gated_delta(
    const float* qkvz, const float* ba, const void* conv_weight, const float* A_log, const float* dt_bias,
    const float* norm_weight, float* recurrent, void* windows, float* out, const void* segments, const void* copies,
    int num_segments, int num_key_heads, int num_value_heads, int key_dim, int value_dim, int conv_width,
    int weight_is_bf16, int windows_are_bf16, float eps, int num_threads, int max_lanes) {
    using namespace codemill;
    const GatedDelta call = {qkvz,
                             ba,
                             conv_weight,
                             A_log,
                             dt_bias,
                             norm_weight,
                             recurrent,
                             windows,
                             out,
                             static_cast<const DeltaSegment*>(segments),
                             static_cast<const DeltaCopy*>(copies),
                             num_segments,
                             num_key_heads,
                             num_value_heads,
                             key_dim,
                             value_dim,
                             conv_width,
                             weight_is_bf16 != 0,
                             windows_are_bf16 != 0,
                             eps};
    GatedDeltaCall items(call, max_lanes);
    auto work = [&items](size_t index) { items.compute(index); };
    parallel_for(num_threads, items.count(), work);
    return items.failed() ? 1 : 0;
}
