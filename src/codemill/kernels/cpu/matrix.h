// Weights and activations as the products take them.
//
// Letters: M rows of activations, N outputs, K inputs, g columns of a group, G groups.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codemill {

constexpr int kBlockRows = 16;  // rows of a weight that lie together, see kernels/packed_matrix.py
constexpr int kMinGroup = 32, kMaxGroup = 512;

enum MatrixKind : int32_t { kFp32 = 0, kBf16 = 1, kInt4 = 4, kInt8 = 8 };

// A weight [N, K]: plain and row by row in fp32 or bf16, or packed with 4 or 8 bits. The layout is known to Python.
struct Matrix {
    const void* weight;
    const uint16_t* scale;    // fp16 [N / 16, G, 16]; only of packed ones, as is
    const uint16_t* minimum;  // the same, or null where the weights are symmetric
    int32_t num_rows, num_columns;
    int32_t kind, group_size;

    bool exists() const { return weight != nullptr; }
    bool packed() const { return kind == kInt4 || kind == kInt8; }
    int num_blocks() const { return (num_rows + kBlockRows - 1) / kBlockRows; }
    int num_groups() const { return (num_columns + group_size - 1) / group_size; }
    size_t group_bytes() const { return static_cast<size_t>(kBlockRows) * group_size * kind / 8; }
    // Bytes of 16 rows, without scales.
    size_t block_bytes() const {
        if (packed()) return num_groups() * group_bytes();
        return static_cast<size_t>(kBlockRows) * num_columns * (kind == kFp32 ? 4 : 2);
    }
    const uint8_t* block(int index) const { return static_cast<const uint8_t*>(weight) + index * block_bytes(); }
    size_t scales_before(int block) const { return static_cast<size_t>(block) * num_groups() * kBlockRows; }
    // Matrix `index` of a stack that begins with this one.
    Matrix nth(int index) const {
        Matrix other = *this;
        const size_t row_bytes = static_cast<size_t>(num_columns) * (kind == kFp32 ? 4 : 2);
        const size_t bytes = packed() ? num_blocks() * block_bytes() : num_rows * row_bytes;
        other.weight = static_cast<const uint8_t*>(weight) + index * bytes;
        if (scale) other.scale += index * scales_before(num_blocks());
        if (minimum) other.minimum += index * scales_before(num_blocks());
        return other;
    }
    // What the unsigned weights of a symmetric matrix exceed the signed ones by.
    int zero() const { return minimum ? 0 : kind == kInt4 ? 8 : 128; }
};

// Activations [M, K] in the two forms that products take; either may be missing.
struct Rows {
    float* values;       // [M, stride]
    size_t stride;       // of `values`, in floats
    int8_t* quantized;   // [M, G * g], zeros at the end
    float* scale;        // [M, G]: quantized * scale is about values
    int32_t* sum;        // [M, G]: of the quantized ones of a group
    int num_columns, group_size;

    int num_groups() const { return group_size ? (num_columns + group_size - 1) / group_size : 0; }
    size_t padded() const { return static_cast<size_t>(num_groups()) * group_size; }
    // The same from row `first` on.
    Rows from(size_t first) const {
        Rows rest = *this;
        if (values) rest.values += first * stride;
        if (quantized) {
            rest.quantized += first * padded();
            rest.scale += first * num_groups();
            rest.sum += first * num_groups();
        }
        return rest;
    }
};

// Row `index` of a weight -> out[K]: what an embedding looks up.
void load_row(const Matrix& weight, int64_t index, float* out);

// Where a product goes: [M, stride], set or added to.
struct Output {
    float* values;
    size_t stride;
    bool add;
};

}  // namespace codemill
