// For x86-64 with AMX, over a bf16 or int8 cache: pieces of many rows, for which tiles are filled well.
//
// Scores come out as [key, row] = keys [key, K] times queries [K, row], and are transposed; outputs as [row, K] =
// weights [row, key] times values [key, K]. Queries are fp32 and taken as sums of two bf16 numbers, so that scores are
// exact to 16 bits: their errors are exponentiated. Weights are rounded to bf16, and their sum is that of the rounded
// ones, before the scales of an int8 cache. Its integers are bf16 numbers.
#include "paged_attention_kernels.h"

#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <utility>

#include "processor.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#include "attention_tiles.h"
#include "paged_attention_rows.h"

namespace {

// Where the parts of an item's scratch memory lie; sizes in floats.
struct Layout {
    Layout(const AttentionShape& shape, const AttentionItem& item)
        : rows(item.piece.num_new * shape.group()), blocks((rows + kSide - 1) / kSide), depth(shape.head_dim / kStep) {
        queries = 4 * kTile;
        scores = queries + static_cast<size_t>(blocks) * depth * 2 * kTile;
        weights = scores + static_cast<size_t>(blocks) * kSide * kScoreStride;
        keys = weights + static_cast<size_t>(blocks + blocks % 2) * kChunk / kStep * kTile;
        values = keys + static_cast<size_t>(depth) * 2 * kTile;
        size = values + static_cast<size_t>(kChunk) / kStep * depth * 2 * kTile;
    }

    int rows, blocks, depth;  // of a head; blocks of 16 rows; steps of K
    size_t queries, scores, weights, keys, values, size;
};

size_t scratch_floats(const AttentionShape& shape, const AttentionItem& item) {
    const Layout layout(shape, item);
    return layout.size + 2 * static_cast<size_t>(layout.rows) * partial_stride(shape.head_dim);
}

// One head of a piece.
template <class Element>
class TileChunk {
    static constexpr bool kScaled = sizeof(Element) == 1;

public:
    TileChunk(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item, float* scratch)
        : shape_(shape), layer_(layer), item_(item), layout_(shape, item), scratch_(scratch) {
        load_queries();
    }

    void attend(int chunk, float* partials) {
        chunk_ = chunk;
        partials_ = partials;
        count_ = visible(item_.piece.num_new - 1);
        find_vectors(shape_, item_, chunk, count_, vectors_);
        if (is_spoilt()) return attend_by_token(partials);
        for (int key = 0; key < count_; key += kStep) score(key);
        alignas(64) float factors[kChunk];
        load_scales(layer_.value_scale, 0, kChunk, factors);
        for (int row = 0; row < layout_.rows; ++row) weigh(row, factors);
        load_values();
        for (int block = 0; block < layout_.blocks; block += 2) add_values(block);
    }

private:
    int visible(int token) const { return visible_positions(item_.piece, token, chunk_); }
    float* partial(int row) const { return partials_ + row * partial_stride(shape_.head_dim); }
    const Element* at(const void* cache, int position) const {
        return static_cast<const Element*>(cache) + vectors_[position] * shape_.head_dim;
    }
    int last(int position) const { return smaller(position, count_ - 1); }
    // Of an int8 cache: the scales of positions; behind the last visible one, its own.
    void load_scales(const float* scales, int first, int stop, float* to) const {
        for (int i = first; i < stop && kScaled; ++i) *to++ = scales[vectors_[last(i)]];
    }
    Word* words(size_t offset) const { return reinterpret_cast<Word*>(scratch_ + offset); }
    Word* queries(int block) const { return words(layout_.queries) + 2 * kTile * layout_.depth * size_t(block); }
    Word* weights(int block) const { return words(layout_.weights) + kTile * (kChunk / kStep) * size_t(block); }
    float* scores(int row) const { return scratch_ + layout_.scores + static_cast<size_t>(row) * kScoreStride; }
    // [step of keys][K / 16] tiles.
    Word* values(int key) const {
        return words(layout_.values) + 2 * kTile * layout_.depth * size_t(key / kStep) + key % kStep / 2 * kSide;
    }

    // Whether a value that not all tokens see is not finite: weight 0 would not keep it out of their sums.
    bool is_spoilt() const {
        for (int position = visible(0); position < count_; ++position) {
            const float factor = kScaled ? layer_.value_scale[vectors_[position]] : 1.0f;
            Floats<16> sum = Floats<16>{} + (factor - factor);
            for (int k = 0; k < shape_.head_dim; k += kStep) {
                const Pair<16> x = load_pair<16>(at(layer_.value_cache, position) + k);
                sum += (x.first - x.first) + (x.second - x.second);
            }
            if (_mm512_cmp_ps_mask((__m512)sum, (__m512)sum, _CMP_UNORD_Q)) return true;
        }
        return false;
    }

    void attend_by_token(float* partials) {
        for (int token = 0; token < item_.piece.num_new; ++token) {
            if (visible(token) == 0) continue;
            AttentionItem own = item_;
            own.piece.start += token;
            own.piece.num_past += token;
            own.piece.num_new = 1;
            const size_t row = static_cast<size_t>(token) * shape_.group();
            TileChunk(shape_, layer_, own, scratch_).attend(chunk_, partials + row * partial_stride(shape_.head_dim));
        }
        load_queries();  // for the next chunk
    }

    // The queries, scaled and split, as [block of rows][step of K][high, low] tiles of pairs of K by rows.
    void load_queries() {
        for (int block = 0; block < layout_.blocks; ++block) {
            for (int step = 0; step < layout_.depth; ++step) {
                __m512i high[kSide] = {}, low[kSide] = {};
                for (int i = 0; i < kSide && block * kSide + i < layout_.rows; ++i) {
                    const Split parts = load_query_step(block * kSide + i, step);
                    high[i] = parts.high;
                    low[i] = parts.low;
                }
                transpose(high);
                transpose(low);
                store_tiles(queries(block) + step * 2 * kTile, high, low);
            }
        }
    }

    Split load_query_step(int row, int step) const {
        const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(shape_.head_dim));
        const int group = shape_.group();
        const size_t token = item_.piece.start + row / group;
        const size_t query_head = static_cast<size_t>(item_.first_head) * group + row % group;
        const size_t from = (token * shape_.num_heads + query_head) * shape_.head_dim + step * kStep;
        const Pair<16> x = load_query<16, bfloat16>(layer_.query, shape_.query_dtype, from);
        return split((__m512)(x.first * factor), (__m512)(x.second * factor));
    }

    // The scores of one step of keys.
    void score(int start) {
        load_keys(start);
        const Word* const keys = words(layout_.keys);
        alignas(64) float factors[kStep];
        load_scales(layer_.key_scale, start, start + kStep, factors);
        for (int block = 0; block < layout_.blocks; ++block) {
            const Word* query = queries(block);
            multiply_tiles(keys, keys + kTile, 2 * kTile, query, query + kTile, 2 * kTile, layout_.depth, scratch_);
            store_scores(block, start, 0, factors);
            store_scores(block, start, 1, factors);
        }
    }

    // The two products of 16 keys with the block's queries -> scores.
    void store_scores(int block, int start, int half, const float* factors) {
        __m512i x[kSide];
        for (int i = 0; i < kSide; ++i) {
            const float* from = scratch_ + 2 * half * kTile + i * kSide;
            x[i] = (__m512i)(_mm512_load_ps(from) + _mm512_load_ps(from + kTile));
        }
        transpose(x);
        for (int i = 0; i < kSide && block * kSide + i < layout_.rows; ++i) {
            __m512 row = (__m512)x[i];
            if (kScaled) row *= _mm512_load_ps(factors + half * kSide);
            _mm512_store_ps(scores(block * kSide + i) + start + half * kSide, row);
        }
    }

    void prefetch(const void* cache, int position) const {
        const char* from = reinterpret_cast<const char*>(at(cache, last(position)));
        for (size_t i = 0; i < shape_.head_dim * sizeof(Element); i += 64) __builtin_prefetch(from + i, 0, 2);
    }

    // The keys of one step as [step of K][two tiles of keys by K].
    void load_keys(int start) {
        for (int i = 0; i < kStep; ++i) {
            prefetch(layer_.key_cache, start + i + kStep);
            Word* to = words(layout_.keys) + i * kSide;
            const Element* from = at(layer_.key_cache, last(start + i));
            for (int step = 0; step < layout_.depth; ++step) {
                _mm512_store_si512(to + step * 2 * kTile, load_step(from + step * kStep));
            }
        }
    }

    // Scores -> weights e^(score - maximum) as [step of keys] tiles of rows by keys, 0 where the row does not see a
    // position; and the numbers behind the row's sums.
    void weigh(int row, const float* factors) {
        const int limit = visible(row / shape_.group()), stop = (count_ + kStep - 1) / kStep * kStep;
        float* const x = scores(row);
        for (int i = limit; i % kSide != 0; ++i) x[i] = -__builtin_inff();
        __m512 highest = _mm512_set1_ps(kLowest), sum = _mm512_setzero_ps();
        for (int i = 0; i < limit; i += kSide) highest = (__m512)maximum<16>((Floats<16>)highest, load<16>(x + i));
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
        for (int i = 0; i < stop; i += kSide) {
            __m512 weight = _mm512_setzero_ps();
            if (i < limit) weight = (__m512)exponential<16>((Floats<16>)(_mm512_load_ps(x + i) - top));
            weight = (__m512)rounded_to_bfloat16<16>((Floats<16>)weight);
            sum += weight;
            // A weight of 0 stays 0, also where the factor is NaN.
            const __mmask16 counts = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_UQ);
            if (kScaled) weight = _mm512_maskz_mul_ps(counts, weight, _mm512_load_ps(factors + i));
            _mm512_store_ps(x + i, weight);
        }
        Word* to = weights(row / kSide) + row % kSide * kSide;
        for (int i = 0; i < stop; i += kStep, to += kTile) {
            _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(x + i + kSide), _mm512_load_ps(x + i)));
        }
        partial(row)[shape_.head_dim] = top[0];
        partial(row)[shape_.head_dim + 1] = _mm512_reduce_add_ps(sum);
    }

    // Pairs of keys, [step of keys][K / 16] tiles of pairs by K. Of 32 numbers every other four go to one tile, the
    // rest to the next. Behind the last key there is 0, since what lies there may not be finite.
    void load_values() {
        const int stop = (count_ + kStep - 1) / kStep * kStep;
        for (int key = 0; key < stop; key += 2) {
            prefetch(layer_.value_cache, key + kStep);
            prefetch(layer_.value_cache, key + 1 + kStep);
            const Element* even = key < count_ ? at(layer_.value_cache, key) : nullptr;
            const Element* odd = key + 1 < count_ ? at(layer_.value_cache, key + 1) : nullptr;
            for (int step = 0; step < layout_.depth; ++step) {
                const __m512i x = even ? load_step(even + step * kStep) : _mm512_setzero_si512();
                const __m512i y = odd ? load_step(odd + step * kStep) : _mm512_setzero_si512();
                _mm512_store_si512(values(key) + 2 * step * kTile, _mm512_unpacklo_epi16(x, y));
                _mm512_store_si512(values(key) + (2 * step + 1) * kTile, _mm512_unpackhi_epi16(x, y));
            }
        }
    }

    // Of the rows of two blocks.
    void add_values(int block) {
        for (int step = 0; step < layout_.depth; ++step) {
            const Word* value = values(0) + 2 * step * kTile;
            multiply_tiles(weights(block), weights(block + 1), kTile, value, value + kTile, 2 * layout_.depth * kTile,
                           (count_ + kStep - 1) / kStep, scratch_);
            for (int i = 0; i < 2 * kSide && block * kSide + i < layout_.rows; ++i) {
                const float* from = scratch_ + i / kSide * 2 * kTile + i % kSide * kSide;
                store_sums(partial(block * kSide + i) + step * kStep, from);
            }
        }
    }

    // A row of two products -> 32 sums in their order.
    static void store_sums(float* to, const float* from) {
        const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        const __m512 x = _mm512_load_ps(from), y = _mm512_load_ps(from + kTile);
        _mm512_storeu_ps(to, _mm512_permutex2var_ps(x, first, y));
        _mm512_storeu_ps(to + kSide, _mm512_permutex2var_ps(x, second, y));
    }

    const AttentionShape& shape_;
    const AttentionLayer& layer_;
    const AttentionItem& item_;
    const Layout layout_;
    float* const scratch_;  // four tiles of products first
    int chunk_ = 0, count_ = 0;
    float* partials_ = nullptr;
    size_t vectors_[kChunk + kMaxTile];
};

template <class Element>
void attend(const AttentionShape& shape, const AttentionLayer& layer, const AttentionItem& item, float* scratch) {
    configure_tiles();
    attend_item<16, float, TileChunk<Element>>(shape, layer, item, scratch);
    _tile_release();
}

template <class Element>
constexpr AttentionKernels kKernels = {scratch_floats, attend<Element>, merge<16, float>};

}  // namespace
END_TARGET

namespace {

// Linux gives a process the tiles' registers when it asks.
bool has_tiles() {
    constexpr int kRequest = 0x1023, kTileData = 18;
    if (!codemill::has_amx_tiles() || !codemill::has_amx_bf16()) return false;
    const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512bf16");
    return supported && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

const codemill::AttentionKernels* codemill::attention_kernels_amx(int head_dim, Dtype cache) {
    static const bool supported = has_tiles();
    if (!supported || head_dim % 32 != 0 || cache == Dtype::kFloat32) return nullptr;
    return cache == Dtype::kInt8 ? &kKernels<int8_t> : &kKernels<bfloat16>;
}

#else

const codemill::AttentionKernels* codemill::attention_kernels_amx(int, Dtype) { return nullptr; }

#endif
