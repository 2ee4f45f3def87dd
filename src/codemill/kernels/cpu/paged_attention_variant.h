// What a variant without tiles is made of, and the choice by head_dim and dtype.
#pragma once

#include "paged_attention_chunk.h"
#include "paged_attention_rows.h"

namespace {

// Query, scores and two partial results of each row, and a tile.
inline size_t scratch_floats(const AttentionShape& shape, const AttentionItem& item) {
    const size_t rows = static_cast<size_t>(item.num_heads) * item.piece.num_new * shape.group();
    const size_t head_dim = shape.head_dim;
    return rows * (head_dim + kScoreStride + 2 * partial_stride(shape.head_dim)) + kMaxTile * head_dim;
}

template <int LANES, class Element, int HEAD_DIM>
void attend(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item, float* scratch) {
    attend_item<LANES, Element, Chunk<LANES, Element, HEAD_DIM>>(shape, layer, item, scratch);
}

template <int LANES, class Element, int HEAD_DIM>
constexpr AttentionKernels kKernels = {scratch_floats, attend<LANES, Element, HEAD_DIM>, merge<LANES, Element>};

template <int LANES, class Element>
const AttentionKernels* kernels_of(int head_dim) {
    if (head_dim == 64) return &kKernels<LANES, Element, 64>;
    if (head_dim == 128) return &kKernels<LANES, Element, 128>;
    if (head_dim == 256) return &kKernels<LANES, Element, 256>;
    return &kKernels<LANES, Element, 0>;
}

// Null where head_dim is no multiple of what is loaded at once.
template <int LANES>
const AttentionKernels* kernels(int head_dim, Dtype cache) {
    if (head_dim % (2 * LANES) != 0) return nullptr;
    if (cache == Dtype::kInt8) return kernels_of<LANES, int8_t>(head_dim);
    return cache == Dtype::kBfloat16 ? kernels_of<LANES, bfloat16>(head_dim) : kernels_of<LANES, float>(head_dim);
}

}  // namespace
