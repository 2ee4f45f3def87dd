// What the decoder does with rows between its products; all arithmetic is fp32.
#pragma once

#include <cstddef>

#include "dtype.h"

namespace codemill {

// The operations of one instruction set.
struct RowKernels {
    // out = weight * x / sqrt(mean(x^2) + eps), of `size` numbers; in place if out is x.
    void (*rms_norm)(const float* x, const float* weight, float eps, int size, float* out);
    // Rotates the first `rotated` numbers of x, half by half: x * cos + swapped(x) * sin, the first half of sin negated.
    void (*rotate)(float* x, const float* cos, const float* sin, int rotated);
    // gate = silu(gate) * up.
    void (*silu_times)(float* gate, const float* up, int size);
    // x = x * sigmoid(gate).
    void (*sigmoid_times)(float* x, const float* gate, int size);
    // x = x + scale * y.
    void (*add_scaled)(float* x, float scale, const float* y, int size);
    // x = exp(x - max(x)); returns the sum.
    float (*exponentials)(float* x, int size);
    // See kv_write.h.
    void (*write_kv)(void* cache, float* scales, Dtype dtype, size_t vector, const float* from, int head_dim);
};

// The best for this processor, of at most `max_lanes` floats a vector.
const RowKernels& row_kernels(int max_lanes);
// Each is null where the processor lacks the instructions.
const RowKernels* row_kernels_avx512();
const RowKernels* row_kernels_avx2();
const RowKernels* row_kernels_plain();

}  // namespace codemill
