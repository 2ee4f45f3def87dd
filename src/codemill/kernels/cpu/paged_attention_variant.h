// What a variant is made of: items, the merging of chunks, and the choice by head_dim and dtype.
#pragma once

#include "paged_attention_chunk.h"

namespace {

using codemill::AttentionKernels;
using codemill::Dtype;

// Adds a later chunk's partial result to that of the chunks before. Never inlined, so that the same bits come out
// whoever calls it.
template <int LANES>
__attribute__((noinline)) void fold(float* before, const float* chunk, int head_dim) {
    const float top = chunk[head_dim] > before[head_dim] ? chunk[head_dim] : before[head_dim];
    const Floats<LANES> differences = {before[head_dim] - top, chunk[head_dim] - top};
    const Floats<LANES> weights = exponential<LANES>(differences);
    const float old_weight = weights[0], new_weight = weights[1];
    for (int k = 0; k < head_dim; k += 2 * LANES) {
        const Pair<LANES> x = load_pair<LANES>(before + k), y = load_pair<LANES>(chunk + k);
        store_pair<LANES>(before + k, {x.first * old_weight + y.first * new_weight,
                                       x.second * old_weight + y.second * new_weight});
    }
    before[head_dim] = top;
    before[head_dim + 1] = before[head_dim + 1] * old_weight + chunk[head_dim + 1] * new_weight;
}

template <int LANES, class Element>
class Rows {
public:
    Rows(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item)
        : shape_(shape), layer_(layer), item_(item) {}

    int count() const { return item_.num_heads * item_.piece.num_new * shape_.group(); }

    // The chunk's partial results to those of the chunks before it.
    void fold_chunk(float* before, const float* partials, int chunk) const {
        const size_t stride = partial_stride(shape_.head_dim);
        for (int row = 0; row < count(); ++row) {
            if (visible_positions(item_.piece, token(row), chunk) == 0) continue;
            fold<LANES>(before + row * stride, partials + row * stride, shape_.head_dim);
        }
    }

    // The output of each row from the partial results over all its chunks.
    void finish(const float* partials) const {
        for (int row = 0; row < count(); ++row, partials += partial_stride(shape_.head_dim)) {
            const int rows = item_.piece.num_new * shape_.group();
            const size_t query_head = (item_.first_head + row / rows) * shape_.group() + row % shape_.group();
            const size_t to = (static_cast<size_t>(item_.piece.start + token(row)) * shape_.num_heads + query_head) *
                              shape_.head_dim;
            const float sum = partials[shape_.head_dim + 1];
            for (int k = 0; k < shape_.head_dim; k += 2 * LANES) {
                const Pair<LANES> x = load_pair<LANES>(partials + k);
                const Pair<LANES> mean = {x.first / sum, x.second / sum};
                store_output<LANES, Element>(layer_.out, shape_.query_dtype, to + k, mean);
            }
        }
    }

private:
    int token(int row) const { return row % (item_.piece.num_new * shape_.group()) / shape_.group(); }

    const AttentionShape& shape_;
    const AttentionLayer& layer_;
    const AttentionItem& item_;
};

template <int LANES, class Element, int HEAD_DIM>
void attend(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item, float* scratch) {
    const Rows<LANES, Element> rows(shape, layer, item);
    const size_t num_partials = rows.count() * partial_stride(shape.head_dim);
    Chunk<LANES, Element, HEAD_DIM> chunk(shape, layer, item, scratch + 2 * num_partials);
    if (item.chunk >= 0) return chunk.attend(item.chunk, item.partials);
    chunk.attend(0, scratch);
    for (int i = 1; i < item.piece.num_chunks(); ++i) {
        chunk.attend(i, scratch + num_partials);
        rows.fold_chunk(scratch, scratch + num_partials, i);
    }
    rows.finish(scratch);
}

template <int LANES, class Element>
void merge(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& first) {
    const Rows<LANES, Element> rows(shape, layer, first);
    for (int i = 1; i < first.piece.num_chunks(); ++i) {
        rows.fold_chunk(first.partials, first.partials + i * first.chunk_stride, i);
    }
    rows.finish(first.partials);
}

template <int LANES, class Element, int HEAD_DIM>
constexpr AttentionKernels kKernels = {attend<LANES, Element, HEAD_DIM>, merge<LANES, Element>};

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
