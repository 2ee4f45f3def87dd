// Gated DeltaNet between its projections: convolution, gates, the gated delta rule, and the gated norm.
//
// Letters: N rows of all segments, G key heads, H value heads, R = H / G, K key dim, V value dim, W conv width,
// C = 2 * G * K + H * V conv channels, in the order query, key, value. All arithmetic is fp32.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace codemill {

// The new tokens of one sequence. Its state moves over all but the last `num_uncertain` of them.
struct DeltaSegment {
    int32_t start;  // its first row
    int32_t num_new;
    int32_t num_uncertain;
    int32_t state_slot;
    int32_t first_copy;  // its checkpoints, in ascending order of num_tokens
    int32_t num_copies;
};

// The state after so many of a segment's new tokens, none of them uncertain, is copied to `slot`.
struct DeltaCopy {
    int32_t num_tokens;
    int32_t slot;
};

struct GatedDelta {
    const float* qkvz;        // [N, G * (2 * K + 2 * R * V)], per key head query, key, R values, R gates
    const float* ba;          // [N, G * 2 * R], per key head R write strengths, R decays, both before their activation
    const void* conv_weight;  // [C, W], fp32 or bf16
    const float* A_log;       // [H]
    const float* dt_bias;     // [H]
    const float* norm_weight;  // [V]
    float* recurrent;          // [slots, H, K, V]
    void* windows;             // [slots, W - 1, C], the last inputs of the convolution, fp32 or bf16
    float* out;                // [N, H * V]; null where only the states are wanted
    const DeltaSegment* segments;
    const DeltaCopy* copies;
    int num_segments, num_key_heads, num_value_heads, key_dim, value_dim, conv_width;
    bool weight_is_bf16, windows_are_bf16;
    float eps;

    int repeats() const { return num_value_heads / num_key_heads; }
    int head_channels() const { return 2 * key_dim + repeats() * value_dim; }
    size_t channels() const {
        return 2 * static_cast<size_t>(num_key_heads) * key_dim + static_cast<size_t>(num_value_heads) * value_dim;
    }
};

// All of one segment for one key head. `scratch` begins on a cache line.
using DeltaKernel = void (*)(const GatedDelta&, const DeltaSegment&, int key_head, float* scratch);

// The variants, each compiled for other instructions. Null where this build or this processor lacks those.
DeltaKernel delta_kernel_plain();
DeltaKernel delta_kernel_avx2();
DeltaKernel delta_kernel_avx512();

// The work as items that any threads may take in any order. No item reads what another writes, if no slot of the call
// is used by two segments. A token's result depends on its sequence alone, to the last bit: not on how the sequence was
// cut into segments, nor on what else is in the call.
class GatedDeltaCall {
public:
    // `call` must outlive this. `max_lanes` is 16, or less to try the variants for smaller processors.
    explicit GatedDeltaCall(const GatedDelta& call, int max_lanes = 16);

    size_t count() const { return static_cast<size_t>(call_.num_segments) * call_.num_key_heads; }
    void compute(size_t index) noexcept;
    // Whether memory ran out in any item.
    bool failed() const { return failed_; }

private:
    const GatedDelta& call_;
    const DeltaKernel kernel_;
    std::atomic<bool> failed_{false};
};

}  // namespace codemill
