// One chunk of keys and values for some heads: the body of every variant. It calls no library code: see vectors.h.
//
// A row sums the same numbers in the same order whatever other rows there are, so its bits do not depend on them.
#pragma once

#include "kv_elements.h"
#include "paged_attention_kernels.h"
#include "vectors.h"

namespace {

using codemill::AttentionItem;
using codemill::AttentionLayer;
using codemill::AttentionPiece;
using codemill::AttentionShape;
using codemill::kChunk;
using codemill::partial_stride;

constexpr int kKeys = 4;      // positions at once: sums enough to keep the multipliers busy
constexpr int kMaxTile = 32;  // positions
constexpr int kAhead = 8;     // keys and values are asked for at least so many positions before their use; measured
constexpr float kLowest = -3.40282347e38f;

inline int smaller(int a, int b) { return a < b ? a : b; }

inline int visible_positions(const AttentionPiece& piece, int token, int chunk) {
    const int visible = piece.num_past + token + 1 - chunk * kChunk;
    return visible < 0 ? 0 : smaller(visible, kChunk);
}

// How many positions are taken head by head. Few, and memory is read in the order of its addresses, as it likes best;
// but then the query and the sums of all heads are gone through more often, and they grow with the rows.
inline int tile_size(int rows) {
    int size = kKeys;
    while (size < rows && size < kMaxTile) size *= 2;
    return size;
}

// HEAD_DIM is K where it is known beforehand, which is a third faster, and 0 for any other.
template <int LANES, class Element, int HEAD_DIM>
class Chunk {
    static constexpr bool kScaled = sizeof(Element) == 1;
    static constexpr int kRows = LANES == 16 ? 4 : 2;  // that share what is loaded of a key or value

public:
    // `partials` are those of the item's rows; scratch has rows * (K + kChunk) floats.
    Chunk(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item, float* scratch)
        : shape_(shape),
          layer_(layer),
          item_(item),
          rows_(item.piece.num_new * shape.group()),
          tile_(tile_size(rows_)),
          scores_(scratch),
          query_(scratch + static_cast<size_t>(item.num_heads) * rows_ * kChunk) {
        load_query();
    }

    void attend(int chunk, float* partials) {
        chunk_ = chunk;
        partials_ = partials;
        count_ = visible_positions(item_.piece, item_.piece.num_new - 1, chunk);
        find_positions();
        for (int start = 0; start < count_; start += tile_) score(start);
        for (int row = 0; row < item_.num_heads * rows_; ++row) weigh(row, visible(row % rows_ / shape_.group()));
        for (int start = 0; start < count_; start += tile_) add_values(start);
    }

private:
    int head_dim() const { return HEAD_DIM == 0 ? shape_.head_dim : HEAD_DIM; }
    int visible(int token) const { return visible_positions(item_.piece, token, chunk_); }
    float* partial(int row) const { return partials_ + row * partial_stride(head_dim()); }
    float* scores(int row) const { return scores_ + static_cast<size_t>(row) * kChunk; }
    float* query(int row) const { return query_ + static_cast<size_t>(row) * head_dim(); }
    const Element* at(const void* cache, int position, int head) const {
        return static_cast<const Element*>(cache) + (vectors_[position] + head) * head_dim();
    }
    float scale(const float* scales, int position, int head) const { return scales[vectors_[position] + head]; }

    // Where the item's heads lie at each position. Behind the last one it is repeated, so that one may read on.
    void find_positions() {
        const int32_t* table = item_.piece.blocks;
        int block = chunk_ * kChunk / shape_.block_size, inside = chunk_ * kChunk % shape_.block_size;
        for (int position = 0; position < count_; ++position) {
            const size_t slot = static_cast<size_t>(table[block]) * shape_.block_size + inside;
            vectors_[position] = slot * shape_.num_kv_heads + item_.first_head;
            if (++inside == shape_.block_size) {
                inside = 0;
                ++block;
            }
        }
        for (int position = count_; position < kChunk + kMaxTile; ++position) vectors_[position] = vectors_[count_ - 1];
    }

    // The query heads in the order of the partial results, in fp32 and scaled.
    void load_query() {
        const int group = shape_.group();
        const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim()));
        for (int row = 0; row < item_.num_heads * rows_; ++row) {
            const size_t token = item_.piece.start + row % rows_ / group;
            const size_t query_head = (item_.first_head + row / rows_) * group + row % group;
            const size_t from = (token * shape_.num_heads + query_head) * head_dim();
            for (int k = 0; k < head_dim(); k += 2 * LANES) {
                const Pair<LANES> x = ::load_query<LANES, Element>(layer_.query, shape_.query_dtype, from + k);
                store_pair<LANES>(query(row) + k, {x.first * scale, x.second * scale});
            }
        }
    }

    // Asks for what the head will want some positions later.
    void prefetch(const void* cache, int position, int head) const {
        const Element* from = at(cache, position + (tile_ > kAhead ? tile_ : kAhead), head);
        for (int k = 0; k < head_dim(); k += 64 / sizeof(Element)) __builtin_prefetch(from + k);
    }

    // The scores of the tile's positions.
    void score(int start) {
        const int stop = smaller(start + tile_, count_);
        for (int head = 0; head < item_.num_heads; ++head) {
            for (int position = start; position < stop; position += kKeys) {
                for (int i = 0; i < kKeys; ++i) prefetch(layer_.key_cache, position + i, head);
                int row = 0;
                for (; row + kRows <= rows_; row += kRows) score_rows<kRows>(position, head, row);
                for (; row + 2 <= rows_; row += 2) score_rows<2>(position, head, row);
                for (; row < rows_; ++row) score_rows<1>(position, head, row);
            }
        }
    }

    template <int ROWS>
    void score_rows(int position, int head, int first_row) {
        const int own_row = head * rows_ + first_row;
        const float* y = query(own_row);
        const Element* keys[kKeys];
        for (int i = 0; i < kKeys; ++i) keys[i] = at(layer_.key_cache, position + i, head);
        Floats<LANES> sums[ROWS][kKeys] = {};
        for (int k = 0; k < head_dim(); k += 2 * LANES) {
            Pair<LANES> x[kKeys];
            for (int i = 0; i < kKeys; ++i) x[i] = load_pair<LANES>(keys[i] + k);
            for (int row = 0; row < ROWS; ++row) {
                const Pair<LANES> z = load_pair<LANES>(y + row * head_dim() + k);
                for (int i = 0; i < kKeys; ++i) sums[row][i] += x[i].first * z.first;
                for (int i = 0; i < kKeys; ++i) sums[row][i] += x[i].second * z.second;
            }
        }
        for (int row = 0; row < ROWS; ++row) {
            float* const to = scores(own_row + row) + position;
            store_sums<LANES>(to, sums[row]);
            if constexpr (kScaled) {
                for (int i = 0; i < kKeys; ++i) to[i] *= scale(layer_.key_scale, position + i, head);
            }
        }
    }

    // Scores of the visible positions -> weights e^(score - maximum); and the partial result before any value.
    void weigh(int row, int visible) {
        float* x = scores(row);
        for (int i = visible; i % LANES != 0; ++i) x[i] = -__builtin_inff();
        Floats<LANES> highest = Floats<LANES>{} + kLowest;
        for (int i = 0; i < visible; i += LANES) highest = maximum<LANES>(highest, load<LANES>(x + i));
        float top = highest[0];
        for (int lane = 1; lane < LANES; ++lane) top = highest[lane] > top ? highest[lane] : top;
        Floats<LANES> sums = {};
        for (int i = 0; i < visible; i += LANES) {
            const Floats<LANES> weights = exponential<LANES>(load<LANES>(x + i) - top);
            store<LANES>(x + i, weights);
            sums += weights;
        }
        float sum = 0;
        for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
        float* out = partial(row);
        for (int k = 0; k < head_dim(); ++k) out[k] = 0;
        out[head_dim()] = top;
        out[head_dim() + 1] = sum;
    }

    // The weighted values of the tile's positions.
    void add_values(int start) {
        const int group = shape_.group(), stop = smaller(start + tile_, count_);
        const bool all_see = visible(0) >= stop;
        for (int head = 0; head < item_.num_heads; ++head) {
            if (all_see) {
                add_values(start, stop, head, 0, rows_);
                continue;
            }
            // A token's own positions only: weight 0 would not keep a later token's infinity out.
            for (int token = 0; token < item_.piece.num_new; ++token) {
                add_values(start, smaller(stop, visible(token)), head, token * group, (token + 1) * group);
            }
        }
    }

    void add_values(int position, int stop, int head, int first_row, int last_row) {
        for (; position + kKeys <= stop; position += kKeys) add_values_of<kKeys>(position, head, first_row, last_row);
        for (; position < stop; ++position) add_values_of<1>(position, head, first_row, last_row);
    }

    template <int POSITIONS>
    void add_values_of(int position, int head, int row, int last_row) {
        for (; row + kRows <= last_row; row += kRows) add_values_to<kRows, POSITIONS>(position, head, row);
        for (; row + 2 <= last_row; row += 2) add_values_to<2, POSITIONS>(position, head, row);
        for (; row < last_row; ++row) add_values_to<1, POSITIONS>(position, head, row);
    }

    template <int ROWS, int POSITIONS>
    void add_values_to(int position, int head, int first_row) {
        const int own_row = head * rows_ + first_row;
        const size_t stride = partial_stride(head_dim());
        const Element* values[POSITIONS];
        float weights[ROWS][POSITIONS];
        for (int i = 0; i < POSITIONS; ++i) {
            values[i] = at(layer_.value_cache, position + i, head);
            if (first_row == 0) prefetch(layer_.value_cache, position + i, head);
            for (int row = 0; row < ROWS; ++row) weights[row][i] = scores(own_row + row)[position + i];
            if constexpr (kScaled) {
                const float factor = scale(layer_.value_scale, position + i, head);
                for (int row = 0; row < ROWS; ++row) weights[row][i] *= factor;
            }
        }
        float* out = partial(own_row);
        for (int k = 0; k < head_dim(); k += 2 * LANES) {
            Pair<LANES> x[POSITIONS];
            for (int i = 0; i < POSITIONS; ++i) x[i] = load_pair<LANES>(values[i] + k);
            for (int row = 0; row < ROWS; ++row) {
                Pair<LANES> sum = load_pair<LANES>(out + row * stride + k);
                for (int i = 0; i < POSITIONS; ++i) {
                    sum.first += x[i].first * weights[row][i];
                    sum.second += x[i].second * weights[row][i];
                }
                store_pair<LANES>(out + row * stride + k, sum);
            }
        }
    }

    const AttentionShape& shape_;
    const AttentionLayer& layer_;
    const AttentionItem& item_;
    const int rows_, tile_;
    int chunk_ = 0, count_ = 0;
    float* partials_ = nullptr;
    float* const scores_;  // [heads * rows, kChunk], then weights
    float* const query_;   // [heads * rows, K]
    size_t vectors_[kChunk + kMaxTile];  // of the item's first head, counted in head vectors from the cache's first
};

}  // namespace
