// Products with plain weights in fp32 or bf16, row by row; activations and sums are fp32.
#pragma once

#include "matrix.h"
#include "vectors.h"

namespace {

using codemill::kBlockRows;
using codemill::Matrix;
using codemill::Output;
using codemill::Rows;

constexpr int kOutputs = 4;  // weight rows at once, each a stream from memory
constexpr size_t kLongRow = 4096;

template <int LANES>
inline Floats<LANES> load_floats(const float* from) {
    return load<LANES>(from);
}

template <int LANES>
inline Floats<LANES> load_floats(const bfloat16* from) {
    typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    return (Floats<LANES>)(__builtin_convertvector(halves, typename Lanes<LANES>::Unsigned) << 16);
}

// The first `count` numbers, then zeros.
template <int LANES, class Element>
inline Floats<LANES> load_tail(const Element* from, int count) {
    Element padded[LANES] = {};
    for (int i = 0; i < count; ++i) padded[i] = from[i];
    return load_floats<LANES>(padded);
}

// kOutputs outputs for ROWS rows.
template <class Isa, class Element, int ROWS>
inline void dense_tile(const Matrix& weight, int first, const Rows& rows, const Output& out) {
    constexpr int LANES = Isa::kLanes;
    const int num_columns = weight.num_columns;
    const Element* from[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
        const int row = first + o < weight.num_rows ? first + o : weight.num_rows - 1;  // read again, but not stored
        from[o] = static_cast<const Element*>(weight.weight) + static_cast<size_t>(row) * num_columns;
    }
    // The rows of the next tile are asked for while these are used; of long rows, what comes soon.
    const size_t row_bytes = static_cast<size_t>(num_columns) * sizeof(Element);
    const size_t ahead = row_bytes <= kLongRow ? kOutputs * row_bytes : kLongRow / 4;
    Floats<LANES> sums[ROWS][kOutputs] = {};
    int k = 0;
    for (; k + LANES <= num_columns; k += LANES) {
        Floats<LANES> w[kOutputs];
        for (int o = 0; o < kOutputs; ++o) {
            w[o] = load_floats<LANES>(from[o] + k);
            __builtin_prefetch(reinterpret_cast<const char*>(from[o] + k) + ahead, 0, 2);
        }
        for (int row = 0; row < ROWS; ++row) {
            const Floats<LANES> x = load<LANES>(rows.values + row * rows.stride + k);
            for (int o = 0; o < kOutputs; ++o) sums[row][o] = Isa::fma(w[o], x, sums[row][o]);
        }
    }
    if (k < num_columns) {
        for (int row = 0; row < ROWS; ++row) {
            const Floats<LANES> x = load_tail<LANES>(rows.values + row * rows.stride + k, num_columns - k);
            for (int o = 0; o < kOutputs; ++o) {
                sums[row][o] = Isa::fma(load_tail<LANES>(from[o] + k, num_columns - k), x, sums[row][o]);
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) {
        float totals[kOutputs];
        store_sums<LANES>(totals, sums[row]);
        float* const to = out.values + row * out.stride;
        for (int o = 0; o < kOutputs && first + o < weight.num_rows; ++o) {
            to[first + o] = (out.add ? to[first + o] : 0.0f) + totals[o];
        }
    }
}

template <class Isa, class Element>
void dense_rows(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out) {
    const auto move = [&](int row) { return Output{out.values + row * out.stride, out.stride, out.add}; };
    const int stop = (first_block + num_blocks) * kBlockRows;
    for (int first = first_block * kBlockRows; first < stop && first < weight.num_rows; first += kOutputs) {
        int row = 0;
        for (; num_rows - row >= 4; row += 4) dense_tile<Isa, Element, 4>(weight, first, rows.from(row), move(row));
        for (; num_rows - row >= 2; row += 2) dense_tile<Isa, Element, 2>(weight, first, rows.from(row), move(row));
        for (; num_rows - row >= 1; row += 1) dense_tile<Isa, Element, 1>(weight, first, rows.from(row), move(row));
    }
}

}  // namespace
