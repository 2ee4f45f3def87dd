// What a variant is made of: the chunks, their merging, and the choice by head_dim and dtype.
#pragma once

#include "paged_attention_chunk.h"

namespace {

// The partial results of one row over its chunks, in the order of the positions -> its output.
template <int LANES, class Element>
void merge_row(float* partials, int num_chunks, size_t chunk_stride, int head_dim, Element* out) {
    float top = kLowest;
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
        const float other = partials[chunk * chunk_stride + head_dim];
        top = other > top ? other : top;
    }
    float sum = 0;
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
        float* const numbers = partials + chunk * chunk_stride + head_dim;
        numbers[0] = exponential<LANES>(Floats<LANES>{} + (numbers[0] - top))[0];  // now the weight of the chunk
        sum += numbers[0] * numbers[1];
    }
    for (int k = 0; k < head_dim; k += 2 * LANES) {
        Pair<LANES> total = {};
        for (int chunk = 0; chunk < num_chunks; ++chunk) {
            const float* const partial = partials + chunk * chunk_stride;
            const Pair<LANES> x = load_pair<LANES>(partial + k);
            total.first += x.first * partial[head_dim];
            total.second += x.second * partial[head_dim];
        }
        store_pair<LANES>(out + k, {total.first / sum, total.second / sum});
    }
}

template <int LANES, class Element>
void merge_chunks(const PagedAttention& call, const Item& first, size_t chunk_stride) {
    const Segment& segment = call.segments[first.segment];
    const int group = call.group(), rows = segment.num_new * group;
    for (int row = 0; row < first.num_heads * rows; ++row) {
        const int token = row % rows / group;
        const size_t query_head = (first.first_head + row / rows) * group + row % group;
        const size_t out_row = static_cast<size_t>(segment.start + token) * call.num_heads + query_head;
        const int num_chunks = (segment.num_past + token) / kChunk + 1;
        float* partials = first.partials + row * partial_stride(call.head_dim);
        Element* out = static_cast<Element*>(call.out) + out_row * call.head_dim;
        merge_row<LANES>(partials, num_chunks, chunk_stride, call.head_dim, out);
    }
}

template <int LANES, class Element, int HEAD_DIM>
constexpr codemill::Kernels kKernels = {attend_chunk<LANES, Element, HEAD_DIM>, merge_chunks<LANES, Element>};

template <int LANES, class Element>
const codemill::Kernels* kernels_of(int head_dim) {
    if (head_dim == 64) return &kKernels<LANES, Element, 64>;
    if (head_dim == 128) return &kKernels<LANES, Element, 128>;
    if (head_dim == 256) return &kKernels<LANES, Element, 256>;
    return &kKernels<LANES, Element, 0>;
}

// Null where head_dim is no multiple of what is loaded at once.
template <int LANES>
const codemill::Kernels* kernels(int head_dim, bool is_bf16) {
    if (head_dim % (2 * LANES) != 0) return nullptr;
    return is_bf16 ? kernels_of<LANES, bfloat16>(head_dim) : kernels_of<LANES, float>(head_dim);
}

}  // namespace
