// One chunk of keys and values for some heads: the body of every variant. It calls no library code: see vectors.h.
//
// A row sums the same numbers in the same order whatever other rows there are, so its bits do not depend on them.
#pragma once

#include "lane_sums.h"
#include "paged_attention_rows.h"

namespace {

constexpr int kKeys = 4;      // positions at once: sums enough to keep the multipliers busy
constexpr int kFewRows = 4;  // of a head, that take keys and values as they are
constexpr int kAhead = 8;     // keys and values are asked for at least so many positions before their use; measured
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
    static constexpr int kRows = kRegisters<LANES> / 8;  // that share what is loaded of a key or value

public:
    // `partials` are those of the item's rows; scratch has room for rows * (K + kScoreStride) + kMaxTile * K floats.
    Chunk(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item, float* scratch)
        : shape_(shape),
          layer_(layer),
          item_(item),
          rows_(item.piece.num_new * shape.group()),
          tile_(tile_size(rows_)),
          scores_(scratch),
          query_(scratch + static_cast<size_t>(item.num_heads) * rows_ * kScoreStride),
          converted_(query_ + static_cast<size_t>(item.num_heads) * rows_ * shape.head_dim) {
        load_query();
    }

    void attend(int chunk, float* partials) {
        chunk_ = chunk;
        partials_ = partials;
        count_ = visible_positions(item_.piece, item_.piece.num_new - 1, chunk);
        find_vectors(shape_, item_, chunk, count_, vectors_);
        for (int start = 0; start < count_; start += tile_) score(start);
        for (int head = 0; head < item_.num_heads; ++head) weigh(head);
        for (int start = 0; start < count_; start += tile_) add_values(start);
    }

private:
    int head_dim() const { return HEAD_DIM == 0 ? shape_.head_dim : HEAD_DIM; }
    int visible(int token) const { return visible_positions(item_.piece, token, chunk_); }
    float* partial(int row) const { return partials_ + row * partial_stride(head_dim()); }
    float* scores(int row) const { return scores_ + static_cast<size_t>(row) * kScoreStride; }
    float* query(int row) const { return query_ + static_cast<size_t>(row) * head_dim(); }
    const Element* at(const void* cache, int position, int head) const {
        return static_cast<const Element*>(cache) + (vectors_[position] + head) * head_dim();
    }
    float scale(const float* scales, int position, int head) const { return scales[vectors_[position] + head]; }

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

    // With many rows a tile is converted once, and then lies where it does not push itself out of the first-level cache.
    bool converts() const { return rows_ > kFewRows; }

    // The tile's keys or values as fp32 [positions, K], in the order of `load_pair`; kKeys at a time.
    void convert(const void* cache, int start, int stop, int head) {
        for (int position = start; position < stop; position += kKeys) {
            for (int i = 0; i < kKeys; ++i) {
                prefetch(cache, position + i, head);
                const Element* from = at(cache, position + i, head);
                float* to = converted_ + static_cast<size_t>(position + i - start) * head_dim();
                for (int k = 0; k < head_dim(); k += 2 * LANES) store_pair<LANES>(to + k, load_pair<LANES>(from + k));
            }
        }
    }

    // The scores of the tile's positions.
    void score(int start) {
        const int stop = smaller(start + tile_, count_);
        for (int head = 0; head < item_.num_heads; ++head) {
            if (converts()) {
                convert(layer_.key_cache, start, stop, head);
                score_converted(start, stop, head);
                continue;
            }
            for (int position = start; position < stop; position += kKeys) {
                for (int i = 0; i < kKeys; ++i) prefetch(layer_.key_cache, position + i, head);
                const auto key_at = [&](int i) { return at(layer_.key_cache, position + i, head); };
                int row = 0;
                for (; row + kRows <= rows_; row += kRows) score_rows<kRows>(key_at, position, head, row);
                for (; row + 2 <= rows_; row += 2) score_rows<2>(key_at, position, head, row);
                for (; row < rows_; ++row) score_rows<1>(key_at, position, head, row);
            }
        }
    }

    // Rows one after the other: theirs are more numbers than the tile's.
    void score_converted(int start, int stop, int head) {
        for (int row = 0; row < rows_; row += kRows) {
            for (int position = start; position < stop; position += kKeys) {
                const float* key = converted_ + static_cast<size_t>(position - start) * head_dim();
                const auto key_at = [&](int i) { return key + i * head_dim(); };
                if (row + kRows <= rows_) {
                    score_rows<kRows>(key_at, position, head, row);
                } else {
                    for (int i = row; i < rows_; ++i) score_rows<1>(key_at, position, head, i);
                }
            }
        }
    }

    template <int ROWS, class KeyAt>
    void score_rows(const KeyAt& key_at, int position, int head, int first_row) {
        const int own_row = head * rows_ + first_row;
        const float* y = query(own_row);
        decltype(key_at(0)) keys[kKeys];
        for (int i = 0; i < kKeys; ++i) keys[i] = key_at(i);
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
        float* const to = scores(own_row) + position;
        store_sums_of<LANES, ROWS>(to, kScoreStride, sums);
        if constexpr (kScaled) {
            for (int i = 0; i < kKeys; ++i) {
                const float factor = scale(layer_.key_scale, position + i, head);
                for (int row = 0; row < ROWS; ++row) to[row * kScoreStride + i] *= factor;
            }
        }
    }

    void weigh(int head) {
        float factors[kChunk];
        const int stop = (count_ + LANES - 1) / LANES * LANES;
        for (int i = 0; i < stop && kScaled; ++i) factors[i] = scale(layer_.value_scale, i, head);
        for (int row = 0; row < rows_; ++row) weigh(head * rows_ + row, visible(row / shape_.group()), factors);
    }

    // Scores of the visible positions -> weights e^(score - maximum); and the partial result before any value. Weights
    // of an int8 cache are then multiplied by the scales of the values, `factors`.
    void weigh(int row, int visible, const float* factors) {
        float* x = scores(row);
        for (int i = visible; i % LANES != 0; ++i) x[i] = -__builtin_inff();
        Floats<LANES> highest = Floats<LANES>{} + kLowest;
        for (int i = 0; i < visible; i += LANES) highest = maximum<LANES>(highest, load<LANES>(x + i));
        float top = highest[0];
        for (int lane = 1; lane < LANES; ++lane) top = highest[lane] > top ? highest[lane] : top;
        Floats<LANES> sums = {};
        for (int i = 0; i < visible; i += LANES) {
            const Floats<LANES> weights = exponential<LANES>(load<LANES>(x + i) - top);
            store<LANES>(x + i, kScaled ? weights * load<LANES>(factors + i) : weights);
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
        const int stop = smaller(start + tile_, count_);
        for (int head = 0; head < item_.num_heads; ++head) {
            if (converts()) {
                convert(layer_.value_cache, start, stop, head);
                const auto value_at = [&](int i) { return converted_ + static_cast<size_t>(i - start) * head_dim(); };
                add_tile(value_at, start, stop, head);
            } else {
                add_tile([&](int i) { return at(layer_.value_cache, i, head); }, start, stop, head);
            }
        }
    }

    // value_at(position): the value of a position below `stop`.
    template <class ValueAt>
    void add_tile(const ValueAt& value_at, int start, int stop, int head) {
        const int group = shape_.group();
        if (visible(0) >= stop) {
            if (!converts()) return add_positions(value_at, start, stop, head, 0, rows_);
            int row = 0;
            for (; row + kRows <= rows_; row += kRows) add_converted<kRows>(stop - start, start, head, row);
            for (; row < rows_; ++row) add_converted<1>(stop - start, start, head, row);
            return;
        }
        // A token's own positions only: weight 0 would not keep a later token's infinity out.
        for (int token = 0; token < item_.piece.num_new; ++token) {
            add_positions(value_at, start, smaller(stop, visible(token)), head, token * group, (token + 1) * group);
        }
    }

    template <class ValueAt>
    void add_positions(const ValueAt& value_at, int position, int stop, int head, int first_row, int last_row) {
        for (; position + kKeys <= stop; position += kKeys) {
            add_values_of<kKeys>(value_at, position, head, first_row, last_row);
        }
        for (; position < stop; ++position) add_values_of<1>(value_at, position, head, first_row, last_row);
    }

    // All positions of a converted tile to some rows, whose sums stay in registers meanwhile.
    template <int ROWS>
    void add_converted(int num_positions, int start, int head, int first_row) {
        const int own_row = head * rows_ + first_row;
        const size_t stride = partial_stride(head_dim());
        const float* weights = scores(own_row) + start;
        int k = 0;
        for (; k + 4 * LANES <= head_dim(); k += 4 * LANES) {
            add_converted<ROWS, 4>(num_positions, weights, converted_ + k, partial(own_row) + k, stride);
        }
        for (; k < head_dim(); k += 2 * LANES) {
            add_converted<ROWS, 2>(num_positions, weights, converted_ + k, partial(own_row) + k, stride);
        }
    }

    template <int ROWS, int VECTORS>
    void add_converted(int num_positions, const float* weights, const float* value, float* out, size_t stride) const {
        Floats<LANES> sums[ROWS][VECTORS];  // unrolled, or GCC keeps them in memory
        _Pragma("GCC unroll 4")
        for (int row = 0; row < ROWS; ++row) {
            _Pragma("GCC unroll 4")
            for (int i = 0; i < VECTORS; ++i) sums[row][i] = load<LANES>(out + row * stride + i * LANES);
        }
        for (int position = 0; position < num_positions; ++position, value += head_dim()) {
            Floats<LANES> x[VECTORS];
            _Pragma("GCC unroll 4")
            for (int i = 0; i < VECTORS; ++i) x[i] = load<LANES>(value + i * LANES);
            _Pragma("GCC unroll 4")
            for (int row = 0; row < ROWS; ++row) {
                const float weight = weights[row * kScoreStride + position];
                _Pragma("GCC unroll 4")
                for (int i = 0; i < VECTORS; ++i) sums[row][i] += x[i] * weight;
            }
        }
        _Pragma("GCC unroll 4")
        for (int row = 0; row < ROWS; ++row) {
            _Pragma("GCC unroll 4")
            for (int i = 0; i < VECTORS; ++i) store<LANES>(out + row * stride + i * LANES, sums[row][i]);
        }
    }

    template <int POSITIONS, class ValueAt>
    void add_values_of(const ValueAt& value_at, int position, int head, int row, int last_row) {
        for (; row + kRows <= last_row; row += kRows) add_values_to<kRows, POSITIONS>(value_at, position, head, row);
        for (; row + 2 <= last_row; row += 2) add_values_to<2, POSITIONS>(value_at, position, head, row);
        for (; row < last_row; ++row) add_values_to<1, POSITIONS>(value_at, position, head, row);
    }

    template <int ROWS, int POSITIONS, class ValueAt>
    void add_values_to(const ValueAt& value_at, int position, int head, int first_row) {
        const int own_row = head * rows_ + first_row;
        const size_t stride = partial_stride(head_dim());
        decltype(value_at(0)) values[POSITIONS];
        float weights[ROWS][POSITIONS];
        for (int i = 0; i < POSITIONS; ++i) {
            values[i] = value_at(position + i);
            if (first_row == 0 && !converts()) prefetch(layer_.value_cache, position + i, head);
            for (int row = 0; row < ROWS; ++row) weights[row][i] = scores(own_row + row)[position + i];
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
    float* const scores_;  // [heads * rows, kScoreStride], then weights
    float* const query_;   // [heads * rows, K]
    float* const converted_;  // [kMaxTile, K]
    size_t vectors_[kChunk + kMaxTile];
};

}  // namespace
