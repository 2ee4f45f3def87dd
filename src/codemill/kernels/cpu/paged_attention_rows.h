// What all variants do with the partial results of rows: merge chunks, and write outputs. It calls no library code: see
// vectors.h.
#pragma once

#include "kv_elements.h"
#include "paged_attention_kernels.h"
#include "vectors.h"

namespace {

using codemill::AttentionItem;
using codemill::AttentionKernels;
using codemill::AttentionLayer;
using codemill::AttentionPiece;
using codemill::AttentionShape;
using codemill::Dtype;
using codemill::kChunk;
using codemill::kMaxTile;
using codemill::kScoreStride;
using codemill::partial_stride;

constexpr float kLowest = -3.40282347e38f;

inline int smaller(int a, int b) { return a < b ? a : b; }

// Of the chunk, the token of the piece sees so many.
inline int visible_positions(const AttentionPiece& piece, int token, int chunk) {
    const int visible = piece.num_past + token + 1 - chunk * kChunk;
    return visible < 0 ? 0 : smaller(visible, kChunk);
}

// Where the item's first head lies at each position of a chunk, counted in head vectors from the cache's first. Behind
// the last one it is repeated, so that one may read on.
inline void find_vectors(const AttentionShape& shape, const AttentionItem& item, int chunk, int count, size_t* vectors) {
    int block = chunk * kChunk / shape.block_size, inside = chunk * kChunk % shape.block_size;
    for (int position = 0; position < count; ++position) {
        const size_t slot = static_cast<size_t>(item.piece.blocks[block]) * shape.block_size + inside;
        vectors[position] = slot * shape.num_kv_heads + item.first_head;
        if (++inside == shape.block_size) {
            inside = 0;
            ++block;
        }
    }
    for (int position = count; position < kChunk + kMaxTile; ++position) vectors[position] = vectors[count - 1];
}

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

// The rows of an item. Element: in whose order the partial results are.
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

// Chunk: attends one chunk at a time. The first part of the scratch memory is for partial results.
template <int LANES, class Element, class Chunk>
inline void attend_item(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item,
                        float* scratch) {
    const Rows<LANES, Element> rows(shape, layer, item);
    const size_t num_partials = rows.count() * partial_stride(shape.head_dim);
    Chunk chunk(shape, layer, item, scratch + 2 * num_partials);
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

}  // namespace
