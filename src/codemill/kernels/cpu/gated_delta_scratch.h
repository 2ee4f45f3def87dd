// Where in the scratch memory of an item everything lies.
#pragma once

#include "gated_delta.h"

namespace codemill {

// Tokens that are convolved together, and that a part of the state stays in the first-level cache for.
constexpr int kDeltaTokens = 32;
// Columns of the state that are taken together: so much of it stays in the first-level cache.
constexpr int kDeltaColumns = 64;

namespace {

// Offsets in floats. Rows of `history`, `taps` and `mixed` are `stride` floats apart, the end of each is zeros.
struct DeltaScratch {
    explicit DeltaScratch(const GatedDelta& call) {
        const size_t width = call.conv_width, state = static_cast<size_t>(call.key_dim) * call.value_dim;
        stride = whole_lines(call.head_channels());
        out_stride = whole_lines(call.value_dim);
        taps = 0;
        history = taps + width * stride;
        mixed = history + (width - 1 + kDeltaTokens) * stride;
        decay = mixed + kDeltaTokens * stride + 16;  // one may read a vector beyond the end of a row
        beta = decay + static_cast<size_t>(call.repeats()) * kDeltaTokens;
        columns = beta + static_cast<size_t>(call.repeats()) * kDeltaTokens;
        outputs = columns + static_cast<size_t>(call.key_dim) * kDeltaColumns;
        drafted = outputs + kDeltaTokens * out_stride;
        size = drafted + call.repeats() * state;
    }

    static size_t whole_lines(size_t floats) { return (floats + 15) / 16 * 16; }

    size_t stride, out_stride;
    size_t taps;     // [W, stride]: the convolution's weight
    size_t history;  // [W - 1 + tokens, stride]: its inputs
    size_t mixed;    // [tokens, stride]: query, key and values
    size_t decay;    // [R, tokens]
    size_t beta;     // [R, tokens]
    size_t columns;  // [K, columns]: a part of the state
    size_t outputs;  // [tokens, out_stride]: of one value head
    size_t drafted;  // [R, K, V]: the state that uncertain tokens lead to
    size_t size;
};

}  // namespace
}  // namespace codemill
