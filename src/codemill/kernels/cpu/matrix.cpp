#include "matrix.h"

#include <algorithm>
#include <cstring>

#include "vectors.h"

namespace codemill {
namespace {

float from_bfloat16(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

void load_packed_row(const Matrix& weight, int64_t index, float* out) {
    const int block = static_cast<int>(index / kBlockRows), row = static_cast<int>(index % kBlockRows);
    const float zero = static_cast<float>(weight.zero());
    for (int group = 0; group < weight.num_groups(); ++group) {
        const uint8_t* const bytes = weight.block(block) + group * weight.group_bytes();
        const size_t at = weight.scales_before(block) + group * kBlockRows + row;
        const float scale = from_float16<1>(Lanes<1>::Unsigned{weight.scale[at]})[0];
        const float minimum = weight.minimum ? from_float16<1>(Lanes<1>::Unsigned{weight.minimum[at]})[0] : 0.0f;
        const int start = group * weight.group_size;
        for (int k = 0; k < std::min(weight.group_size, weight.num_columns - start); ++k) {
            const bool is_4 = weight.kind == kInt4;
            const int step = is_4 ? k / 8 : k / 4;  // of 64 bytes
            const uint8_t byte = bytes[step * 64 + row * 4 + k % 4];
            const int number = !is_4 ? byte : k % 8 < 4 ? byte & 15 : byte >> 4;
            out[start + k] = scale * (static_cast<float>(number) - zero) + minimum;
        }
    }
}

}  // namespace

void load_row(const Matrix& weight, int64_t index, float* out) {
    if (weight.packed()) return load_packed_row(weight, index, out);
    const size_t start = static_cast<size_t>(index) * weight.num_columns;
    for (int k = 0; k < weight.num_columns; ++k) {
        out[k] = weight.kind == kFp32 ? static_cast<const float*>(weight.weight)[start + k]
                                      : from_bfloat16(static_cast<const uint16_t*>(weight.weight)[start + k]);
    }
}

}  // namespace codemill
