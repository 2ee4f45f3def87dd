// For x86-64 with AMX. A head's scores are computed once more, in blocks of 32 queries by 32 keys. What is made of them is
// kept for a chunk of the keys and all queries behind it, so that every gradient is a product whose sums stay in tiles.
#include "attention_training.h"

#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)

#include <immintrin.h>

#include <cstddef>
#include <utility>

#include "expert_training.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#include "training_tiles.h"

namespace {

using codemill::AttentionPass;

constexpr int kChunkBlocks = 16;      // blocks of 32 keys
constexpr float kNoQuery = 1e30f;     // in place of a log: exp(score - it) is 0
constexpr int kSums = 4 * kTile;      // of 32 x 32: four tiles

// The sums of 32 rows at `block` of a left side and a panel over some of the steps of each.
inline void multiply_steps(const Left& left, size_t block, int left_step, const Panel& panel, int panel_step, int count,
                           float* sums) {
    multiply_tiles(left.tile(block, left_step), left.tile(block + 1, left_step), kTile, panel.tile(0, panel_step),
                   panel.tile(1, panel_step), kTile, count, sums);
}

inline const float* row_of(const float* sums, int row) {
    return sums + row / kSide * 2 * kTile + row % kSide * kSide;  // 16 numbers, and as many a tile further on
}

// A matrix of bf16 numbers whose rows are those of one head: zeros behind the last.
struct HeadRows {
    const uint16_t* first;
    size_t stride, count;

    __m512i load(size_t row, size_t column) const {
        return row < count ? load_numbers(first + row * stride + column) : _mm512_setzero_si512();
    }
};

class Head {
public:
    Head(const AttentionPass& pass, int document, int kv_head, float* scratch)
        : pass_(pass), start_(pass.starts[document]), count_(pass.starts[document + 1] - start_),
          padded_(round_up(count_)), size_(pass.head_dim), blocks_(int(padded_ / kRowStep)), kv_head_(kv_head),
          free_(reinterpret_cast<Word*>(scratch)) {}

    static size_t scratch_floats(size_t count, size_t size) {
        const size_t padded = round_up(count), side = padded * size / 2;
        const size_t chunk = padded < kChunkBlocks * kRowStep ? padded : kChunkBlocks * kRowStep;
        return 7 * side + chunk * padded + chunk * kRowStep / 2 + 3 * padded * size + 2 * padded + 16 * 20;
    }

    void backward() {
        const HeadRows keys = kv_rows(pass_.key), values = kv_rows(pass_.value);
        keys_ = outputs(keys);
        values_ = outputs(values);
        key_columns_ = take(padded_ * size_ / 2);
        for (size_t column = 0; column < size_; column += kRowStep) {
            load_columns([&](size_t row) { return keys.load(row, column); }, key_panel(column));
        }
        // [K][padded], of all query heads.
        of_keys_ = take_floats(size_ * padded_);
        of_values_ = take_floats(size_ * padded_);
        for (size_t i = 0; i < size_ * padded_; ++i) of_keys_[i] = of_values_[i] = 0.0f;
        Word* const kept = free_;
        const int group = pass_.num_heads / pass_.num_kv_heads;
        for (int head = kv_head_ * group; head < (kv_head_ + 1) * group; ++head) {
            query_head(head);
            free_ = kept;
        }
        put_turned(of_keys_, pass_.key_gradient);
        put_turned(of_values_, pass_.value_gradient);
    }

private:
    Word* take(size_t words) {
        Word* const taken = free_;
        free_ += (words + kSide - 1) / kSide * kSide;
        return taken;
    }
    float* take_floats(size_t count) { return reinterpret_cast<float*>(take(count)); }

    HeadRows kv_rows(const uint16_t* matrix) const {
        const size_t stride = pass_.num_kv_heads * size_;
        return {matrix + start_ * stride + kv_head_ * size_, stride, count_};
    }
    HeadRows query_rows(const uint16_t* matrix, int head) const {
        const size_t stride = pass_.num_heads * size_;
        return {matrix + start_ * stride + head * size_, stride, count_};
    }

    // Panels of the transposed: [block of 32 rows][side][step of K].
    Word* outputs(const HeadRows& rows) {
        Word* const to = take(padded_ * size_ / 2);
        for (int block = 0; block < blocks_; ++block) {
            const Panel panel = output_panel(to, block);
            for (int side = 0; side < 2; ++side) {
                for (int step = 0; step < panel.steps; ++step) {
                    __m512i tile[kSide];
                    const size_t first = block * kRowStep + side * kSide;
                    for (int i = 0; i < kSide; ++i) tile[i] = rows.load(first + i, size_t(step) * kStep);
                    transpose(tile);
                    store_tile(panel.tile(side, step), tile);
                }
            }
        }
        return to;
    }
    Panel output_panel(Word* panels, int block) const {
        return {panels + size_t(block) * kRowStep * size_ / 2, int(size_ / kStep)};
    }
    Panel key_panel(size_t column) const { return {key_columns_ + column * padded_ / 2, blocks_}; }

    Left rows_left(const HeadRows& rows) {
        const Left to = {take(padded_ * size_ / 2), int(size_ / kStep)};
        for (size_t row = 0; row < padded_; ++row) {
            for (int step = 0; step < to.steps; ++step) {
                _mm512_store_si512(to.numbers(row, step), rows.load(row, size_t(step) * kStep));
            }
        }
        return to;
    }
    Left turned_left(const HeadRows& rows) {
        const Left to = {take(padded_ * size_ / 2), blocks_};
        for (size_t column = 0; column < size_; column += kRowStep) {
            load_transposed([&](size_t row) { return rows.load(row, column); }, column, to);
        }
        return to;
    }

    void query_head(int head) {
        const HeadRows queries = query_rows(pass_.query, head), outer = query_rows(pass_.out_gradient, head);
        queries_ = rows_left(queries);
        outer_ = rows_left(outer);
        const Left turned_queries = turned_left(queries), turned_outer = turned_left(outer);
        log_sums_ = take_floats(padded_);
        products_ = take_floats(padded_);
        read_sums(head, query_rows(pass_.out, head), outer);
        float* const of_queries = take_floats(padded_ * size_);
        for (int first = 0; first < blocks_; first += kChunkBlocks) {
            Word* const kept = free_;
            const int stop = first + kChunkBlocks < blocks_ ? first + kChunkBlocks : blocks_;
            const size_t panel_words = padded_ * kRowStep / 2;
            probabilities_ = take((stop - first) * panel_words);
            of_scores_ = take((stop - first) * panel_words);
            const Left stripe = {take(size_t(stop - first) * kRowStep * kRowStep / 2), stop - first};
            for (int block = first; block < blocks_; ++block) {
                const int seen = block < stop ? block + 1 : stop;
                for (int keys = first; keys < seen; ++keys) score(block, keys, keys - first, stripe);
                add_to_queries(stripe, block, first, seen - first, of_queries);
            }
            for (int keys = first; keys < stop; ++keys) {
                add_to_keys(turned_outer, panel(probabilities_, keys - first), keys, of_values_);
                add_to_keys(turned_queries, panel(of_scores_, keys - first), keys, of_keys_);
            }
            free_ = kept;
        }
        put_queries(head, of_queries);
    }

    Panel panel(Word* panels, int index) const { return {panels + size_t(index) * padded_ * kRowStep / 2, blocks_}; }

    // Of each query: the log of its sum, and the product of its output with that one's gradient.
    void read_sums(int head, const HeadRows& out, const HeadRows& outer) {
        for (size_t row = 0; row < padded_; ++row) {
            __m512 sum = _mm512_setzero_ps();
            for (size_t column = 0; column < size_ && row < count_; column += kSide) {
                sum = _mm512_fmadd_ps(load_bfloat16(out.first + row * out.stride + column),
                                      load_bfloat16(outer.first + row * outer.stride + column), sum);
            }
            products_[row] = _mm512_reduce_add_ps(sum);
            log_sums_[row] = row < count_ ? pass_.log_sums[(start_ + row) * pass_.num_heads + head] : kNoQuery;
        }
    }

    // The probabilities of 32 queries by 32 keys, and what flows back to their scores.
    void score(int block, int keys, int index, const Left& stripe) {
        alignas(64) float scores[kSums], gradients[kSums];
        const int steps = int(size_ / kStep);
        multiply_steps(queries_, 2 * block, 0, output_panel(keys_, keys), 0, steps, scores);
        multiply_steps(outer_, 2 * block, 0, output_panel(values_, keys), 0, steps, gradients);
        __m512i probabilities[kRowStep], of_scores[kRowStep];
        const __m512 scale = _mm512_set1_ps(pass_.scale);
        for (int i = 0; i < kRowStep; ++i) {
            const size_t row = size_t(block) * kRowStep + i;
            const uint32_t visible = keys < block ? ~0u : ~0u >> (31 - i);
            const __m512 log_sum = _mm512_set1_ps(log_sums_[row]), product = _mm512_set1_ps(products_[row]);
            const float *const own = row_of(scores, i), *const back = row_of(gradients, i);
            __m512 p[2], s[2];
            for (int half = 0; half < 2; ++half) {
                const __m512 score = _mm512_fmsub_ps(_mm512_load_ps(own + half * kTile), scale, log_sum);
                const __mmask16 mask = __mmask16(visible >> (half * kSide));
                p[half] = _mm512_maskz_mov_ps(mask, (__m512)exponential<16>((Floats<16>)score));
                s[half] = p[half] * (_mm512_load_ps(back + half * kTile) - product) * scale;
            }
            probabilities[i] = (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]);
            of_scores[i] = (__m512i)_mm512_cvtne2ps_pbh(s[1], s[0]);
            _mm512_store_si512(stripe.numbers(i, index), of_scores[i]);
        }
        put_pairs(probabilities, panel(probabilities_, index), block);
        put_pairs(of_scores, panel(of_scores_, index), block);
    }

    // 32 rows of [padded, K] += stripe [32, keys] @ keys [keys, K]; the first chunk of keys begins them.
    void add_to_queries(const Left& stripe, int block, int first_key, int count, float* of_queries) {
        alignas(64) float sums[kSums];
        for (size_t column = 0; column < size_; column += kRowStep) {
            multiply_steps(stripe, 0, 0, key_panel(column), first_key, count, sums);
            for (int i = 0; i < kRowStep; ++i) {
                float* const to = of_queries + (size_t(block) * kRowStep + i) * size_ + column;
                for (int half = 0; half < 2; ++half) {
                    __m512 sum = _mm512_load_ps(row_of(sums, i) + half * kTile);
                    if (first_key > 0) sum += _mm512_loadu_ps(to + half * kSide);
                    _mm512_storeu_ps(to + half * kSide, sum);
                }
            }
        }
    }

    // [K][32 keys] += turned [K, queries] @ panel [queries, 32 keys], over the queries that see them.
    void add_to_keys(const Left& turned, const Panel& panel, int keys, float* to) {
        alignas(64) float sums[kSums];
        for (size_t row = 0; row < size_; row += kRowStep) {
            multiply_steps(turned, row / kSide, keys, panel, keys, blocks_ - keys, sums);
            for (int i = 0; i < kRowStep; ++i) {
                float* const own = to + (row + i) * padded_ + size_t(keys) * kRowStep;
                for (int half = 0; half < 2; ++half) {
                    const __m512 sum = _mm512_load_ps(row_of(sums, i) + half * kTile);
                    _mm512_storeu_ps(own + half * kSide, _mm512_loadu_ps(own + half * kSide) + sum);
                }
            }
        }
    }

    void put_queries(int head, const float* from) {
        for (size_t row = 0; row < count_; ++row) {
            uint16_t* const to = pass_.query_gradient + ((start_ + row) * pass_.num_heads + head) * size_;
            for (size_t column = 0; column < size_; column += kSide) {
                const __m512 numbers = _mm512_loadu_ps(from + row * size_ + column);
                _mm256_storeu_si256((__m256i*)(to + column), to_bfloat16(numbers));
            }
        }
    }

    // fp32 [K][padded] -> [N, G, K].
    void put_turned(const float* from, uint16_t* gradient) {
        for (size_t first = 0; first < count_; first += kSide) {
            for (size_t column = 0; column < size_; column += kSide) {
                __m512i tile[kSide];
                for (int i = 0; i < kSide; ++i) tile[i] = _mm512_loadu_si512(from + (column + i) * padded_ + first);
                transpose(tile);
                for (size_t i = 0; i < kSide && first + i < count_; ++i) {
                    uint16_t* const to =
                        gradient + ((start_ + first + i) * pass_.num_kv_heads + kv_head_) * size_ + column;
                    _mm256_storeu_si256((__m256i*)to, to_bfloat16((__m512)tile[i]));
                }
            }
        }
    }

    const AttentionPass& pass_;
    const size_t start_, count_, padded_, size_;
    const int blocks_, kv_head_;
    Word *free_, *keys_ = nullptr, *values_ = nullptr, *key_columns_ = nullptr;
    Word *probabilities_ = nullptr, *of_scores_ = nullptr;
    float *of_keys_ = nullptr, *of_values_ = nullptr, *log_sums_ = nullptr, *products_ = nullptr;
    Left queries_ = {}, outer_ = {};
};

size_t scratch_floats(const AttentionPass& pass, int document) {
    return Head::scratch_floats(pass.starts[document + 1] - pass.starts[document], pass.head_dim);
}

void backward(const AttentionPass& pass, int document, int kv_head, float* scratch) {
    configure_tiles();
    Head(pass, document, kv_head, scratch).backward();
    _tile_release();
}

}  // namespace
END_TARGET

const codemill::AttentionBackward* codemill::attention_backward_amx() {
    static const AttentionBackward kernels = {scratch_floats, backward};
    return expert_kernels_amx() ? &kernels : nullptr;
}

#else

const codemill::AttentionBackward* codemill::attention_backward_amx() { return nullptr; }

#endif
