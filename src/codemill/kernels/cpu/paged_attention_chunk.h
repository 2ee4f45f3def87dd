// One chunk of keys and values for some heads: the body of every variant. It calls no library code: see vectors.h.
//
// A row sums the same numbers in the same order whatever other rows there are, so its bits do not depend on them.
#pragma once

#include "paged_attention.h"
#include "vectors.h"

namespace {

using codemill::Item;
using codemill::kChunk;
using codemill::PagedAttention;
using codemill::partial_stride;
using codemill::Segment;

constexpr int kKeys = 4;      // positions at once: sums enough to keep the multipliers busy
constexpr int kMaxTile = 32;  // positions
constexpr int kAhead = 8;     // keys and values are asked for at least so many positions before their use; measured
constexpr float kLowest = -3.40282347e38f;

inline int smaller(int a, int b) { return a < b ? a : b; }

inline int visible_positions(const Segment& segment, int token, int chunk) {
    const int visible = segment.num_past + token + 1 - chunk * kChunk;
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
    static constexpr int kRows = LANES == 16 ? 4 : 2;  // that share what is loaded of a key or value

public:
    Chunk(const PagedAttention& call, const Item& item, float* scratch)
        : call_(call),
          item_(item),
          segment_(call.segments[item.segment]),
          rows_(segment_.num_new * call.group()),
          count_(visible_positions(segment_, segment_.num_new - 1, item.chunk)),
          tile_(tile_size(rows_)),
          scores_(scratch),
          query_(scratch + static_cast<size_t>(item.num_heads) * rows_ * kChunk) {}

    void attend() {
        find_positions();
        load_query();
        for (int start = 0; start < count_; start += tile_) score(start);
        for (int row = 0; row < item_.num_heads * rows_; ++row) weigh(row, visible(row % rows_ / call_.group()));
        for (int start = 0; start < count_; start += tile_) add_values(start);
    }

private:
    int head_dim() const { return HEAD_DIM == 0 ? call_.head_dim : HEAD_DIM; }
    int visible(int token) const { return visible_positions(segment_, token, item_.chunk); }
    float* partial(int row) const { return item_.partials + row * partial_stride(head_dim()); }
    float* scores(int row) const { return scores_ + static_cast<size_t>(row) * kChunk; }
    float* query(int row) const { return query_ + static_cast<size_t>(row) * head_dim(); }
    const Element* at(const void* cache, int position, int head) const {
        return static_cast<const Element*>(cache) + offsets_[position] + static_cast<size_t>(head) * head_dim();
    }

    // Where the item's heads lie at each position. Behind the last one it is repeated, so that one may read on.
    void find_positions() {
        const int32_t* table = call_.block_tables + static_cast<size_t>(item_.segment) * call_.max_blocks;
        const size_t slot_size = static_cast<size_t>(call_.num_kv_heads) * head_dim();
        int block = item_.chunk * kChunk / call_.block_size, inside = item_.chunk * kChunk % call_.block_size;
        for (int position = 0; position < count_; ++position) {
            const size_t slot = static_cast<size_t>(table[block]) * call_.block_size + inside;
            offsets_[position] = slot * slot_size + static_cast<size_t>(item_.first_head) * head_dim();
            if (++inside == call_.block_size) {
                inside = 0;
                ++block;
            }
        }
        for (int position = count_; position < kChunk + kMaxTile; ++position) offsets_[position] = offsets_[count_ - 1];
    }

    // The query heads in the order of the partial results, in fp32 and scaled.
    void load_query() {
        const int group = call_.group();
        const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim()));
        for (int row = 0; row < item_.num_heads * rows_; ++row) {
            const size_t token = segment_.start + row % rows_ / group;
            const size_t query_head = (item_.first_head + row / rows_) * group + row % group;
            const Element* from =
                static_cast<const Element*>(call_.query) + (token * call_.num_heads + query_head) * head_dim();
            for (int k = 0; k < head_dim(); k += 2 * LANES) {
                const Pair<LANES> x = load_pair<LANES>(from + k);
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
                for (int i = 0; i < kKeys; ++i) prefetch(call_.key_cache, position + i, head);
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
        for (int i = 0; i < kKeys; ++i) keys[i] = at(call_.key_cache, position + i, head);
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
        for (int row = 0; row < ROWS; ++row) store_sums<LANES>(scores(own_row + row) + position, sums[row]);
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
        const int group = call_.group(), stop = smaller(start + tile_, count_);
        const bool all_see = visible(0) >= stop;
        for (int head = 0; head < item_.num_heads; ++head) {
            if (all_see) {
                add_values(start, stop, head, 0, rows_);
                continue;
            }
            // A token's own positions only: weight 0 would not keep a later token's infinity out.
            for (int token = 0; token < segment_.num_new; ++token) {
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
            values[i] = at(call_.value_cache, position + i, head);
            if (first_row == 0) prefetch(call_.value_cache, position + i, head);
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

    const PagedAttention& call_;
    const Item& item_;
    const Segment segment_;
    const int rows_, count_, tile_;
    float* const scores_;  // [heads * rows, kChunk], then weights
    float* const query_;   // [heads * rows, K]
    size_t offsets_[kChunk + kMaxTile];
};

template <int LANES, class Element, int HEAD_DIM>
void attend_chunk(const PagedAttention& call, const Item& item, float* scratch) {
    Chunk<LANES, Element, HEAD_DIM>(call, item, scratch).attend();
}

}  // namespace
