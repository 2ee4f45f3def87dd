// What training does with rows between its products, forward and backward; see kernels/training_rows.py. Arithmetic is
// fp32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codemill {

// Numbers in memory: fp32, or bf16 where the last bit is set.
enum class Kind : int32_t { kFloat32 = 0, kBfloat16 = 1 };

// RMSNorm of rows of `size` numbers: out = rotated(weight * x / root(mean(x^2) + eps)), with x the sum of two if there is
// `added`. The rotation, by position, is that of rotary embeddings; without it `cos` is null.
struct NormPass {
    const void* x;              // [rows, size]; in backward the sum
    const void* added;          // [rows, size] or null
    const float* weight;        // [size]
    void* sum;                  // [rows, size], as x, or null
    void* out;                  // [rows, size]
    float* scales;              // [rows]: 1 / root(...); forward writes them, backward reads them
    const float *cos, *sin;     // [num_tables, rotated], the first half of the sines negated; or null
    // The rest is for backward.
    const void* out_gradient;   // [rows, size], as out
    const void* sum_gradient;   // [rows, size], as x: what reaches the sum on another way; or null
    void* x_gradient;           // [rows, size], as x
    void* added_gradient;       // the same numbers as `added` is, or null
    float* weight_gradients;    // [parts, size], one for each `rows_of_part` rows
    int64_t rows, rows_of_part;
    int32_t size, heads, num_tables, rotated;  // `heads` rows in succession are at one position
    Kind x_kind, added_kind, out_kind;
    float eps, offset;          // the weight counts as weight + offset
};

// out = silu(gate) * up of `count` numbers.
struct SwigluPass {
    const void *gate, *up;
    void* out;
    // For backward.
    const void* out_gradient;
    void *gate_gradient, *up_gradient;
    int64_t count;
    Kind kind;
};

constexpr int64_t kSwigluNumbers = 1 << 15;  // of a part

// The operations of one instruction set, on rows or numbers from `first` up to `stop`.
struct TrainingRows {
    // Scratch of `norm_scratch(size)` floats.
    void (*norm_forward)(const NormPass& pass, int64_t first, int64_t stop, float* scratch);
    void (*norm_backward)(const NormPass& pass, int64_t first, int64_t stop, float* weight_gradient, float* scratch);
    void (*swiglu_forward)(const SwigluPass& pass, int64_t first, int64_t stop);
    void (*swiglu_backward)(const SwigluPass& pass, int64_t first, int64_t stop);
};

inline size_t padded_size(int size) { return (static_cast<size_t>(size) + 15) / 16 * 16; }
inline size_t norm_scratch(int size) { return 4 * padded_size(size); }

// Each is null where the processor lacks the instructions.
const TrainingRows* training_rows_avx512();
const TrainingRows* training_rows_avx2();
const TrainingRows* training_rows_plain();

}  // namespace codemill
