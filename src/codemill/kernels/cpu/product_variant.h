// What an instruction set's variant is made of, for its `Isa`.
#pragma once

#include "product.h"
#include "product_dense.h"
#include "product_packed.h"

namespace {

// Below this a group is taken as zeros: its scale would lose bits, or be zero and divide.
constexpr float kLeastMagnitude = 1e-30f;

// The greatest of all lanes.
template <int LANES>
inline float greatest(Floats<LANES> x) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    if constexpr (LANES == 16) x = maximum<LANES>(x, rotate<LANES, 8>(x, lanes));
    if constexpr (LANES >= 8) x = maximum<LANES>(x, rotate<LANES, 4>(x, lanes));
    x = maximum<LANES>(x, rotate<LANES, 2>(x, lanes));
    return maximum<LANES>(x, rotate<LANES, 1>(x, lanes))[0];
}

// Signed 8-bit numbers and a scale for each group: the largest becomes 127. NaN and infinity make the scale NaN. The
// definition is `quantize_activations` in kernels/packed_product.py.
template <class Isa>
void quantize_row(const Rows& rows, int row) {
    constexpr int LANES = Isa::kLanes;
    using Ints = typename Lanes<LANES>::Ints;
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest even integer
    const Rows own = rows.from(row);
    for (int group = 0; group < rows.num_groups(); ++group) {
        const int start = group * rows.group_size;
        const int count = rows.num_columns - start < rows.group_size ? rows.num_columns - start : rows.group_size;
        Floats<LANES> largest = {}, poison = {};
        const auto values = [&](int k) {
            const float* const from = own.values + start + k;
            return k + LANES <= count ? load<LANES>(from) : load_tail<LANES>(from, k < count ? count - k : 0);
        };
        for (int k = 0; k < count; k += LANES) {
            const Floats<LANES> x = values(k);
            largest = maximum<LANES>(largest, maximum<LANES>(x, -x));
            poison += x * 0.0f;
        }
        float most = greatest<LANES>(largest);
        if (most < kLeastMagnitude) most = 0;
        const float inverse = most > 0 ? 127.0f / most : 0.0f;
        Ints sum = {};
        for (int k = 0; k < rows.group_size; k += LANES) {
            // One rounding, to the integer nearest the exact product, with or without the compiler's help.
            const Floats<LANES> shifted = Isa::fma(values(k), Floats<LANES>{} + inverse, Floats<LANES>{} + kRounder);
            const Ints rounded = (Ints)shifted - (Ints)(Floats<LANES>{} + kRounder);
            typedef int8_t Bytes __attribute__((vector_size(LANES)));
            const Bytes bytes = __builtin_convertvector(rounded, Bytes);
            __builtin_memcpy(own.quantized + start + k, &bytes, sizeof bytes);
            sum += rounded;
        }
        own.scale[group] = most / 127.0f + total<LANES>(poison);
        own.sum[group] = static_cast<int32_t>(total<LANES>(__builtin_convertvector(sum, Floats<LANES>)));  // exact
    }
}

template <class Isa, int BITS>
void few_packed_rows(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out) {
    switch (weight.group_size) {
        case 32: return packed_few_rows<Isa, BITS, 32>(weight, first_block, num_blocks, rows, num_rows, out);
        case 64: return packed_few_rows<Isa, BITS, 64>(weight, first_block, num_blocks, rows, num_rows, out);
        default: return packed_few_rows<Isa, BITS, 0>(weight, first_block, num_blocks, rows, num_rows, out);
    }
}

template <class Isa>
void few_rows(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out) {
    switch (weight.kind) {
        case codemill::kInt4: return few_packed_rows<Isa, 4>(weight, first_block, num_blocks, rows, num_rows, out);
        case codemill::kInt8: return few_packed_rows<Isa, 8>(weight, first_block, num_blocks, rows, num_rows, out);
        case codemill::kBf16: return dense_rows<Isa, bfloat16>(weight, first_block, num_blocks, rows, num_rows, out);
        default: return dense_rows<Isa, float>(weight, first_block, num_blocks, rows, num_rows, out);
    }
}

template <class Isa>
void many_rows(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out,
               uint8_t* panel) {
    if (!weight.packed()) return few_rows<Isa>(weight, first_block, num_blocks, rows, num_rows, out);
    switch (weight.group_size) {
        case 32: return packed_many_rows<Isa, 32>(weight, first_block, num_blocks, rows, num_rows, out, panel);
        case 64: return packed_many_rows<Isa, 64>(weight, first_block, num_blocks, rows, num_rows, out, panel);
        default: return packed_many_rows<Isa, 0>(weight, first_block, num_blocks, rows, num_rows, out, panel);
    }
}

template <class Isa>
constexpr codemill::ProductKernels kProductKernels = {Isa::kLanes, quantize_row<Isa>, few_rows<Isa>, many_rows<Isa>,
                                                      panel_bytes,       Isa::kPanelBlocks};

}  // namespace
