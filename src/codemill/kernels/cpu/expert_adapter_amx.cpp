// For x86-64 with AMX. Packed weights become bf16 as they are made into tiles, and lie nowhere else.
#include "expert_adapter.h"

#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)

#include <immintrin.h>

#include <cstddef>
#include <utility>

#include "expert_training.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#include "tile_product.h"

namespace {

using codemill::Activation;
using codemill::AdaptedProduct;
using codemill::AdapterGradient;
using codemill::Combination;
using codemill::Matrix;

constexpr size_t kSpare = 1024;  // words of scratch for what is rounded up to cache lines

class Memory {
public:
    explicit Memory(float* scratch) : free_(reinterpret_cast<Word*>(scratch)) {}
    Word* take(size_t words) {
        Word* const taken = free_;
        free_ += (words + kSide - 1) / kSide * kSide;
        return taken;
    }
    Left left(size_t rows, size_t columns) { return {take(Left::words(rows, columns)), int(columns / kStep)}; }
    Panel panel(size_t columns) { return {take(Left::words(kRowStep, columns)), int(columns / kStep)}; }

private:
    Word* free_;
};

// Weights of 16 rows and 32 columns as a tile: words of two columns, a row in each.
struct Packed {
    const Matrix& weight;

    void tile(int block, int step, __m512i* to) const {
        const int column = step * kStep, group = column / weight.group_size;
        const size_t scales = weight.scales_before(block) + size_t(group) * kSide;
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(weight.scale + scales)));
        const __m512 offset = weight.minimum
                                  ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(weight.minimum + scales)))
                                  : scale * -float(weight.zero());
        const uint8_t* from = weight.block(block) + group * weight.group_bytes() +
                              size_t(column % weight.group_size) * kSide * weight.kind / 8;
        const auto number = [&](__m512i lanes, int shift, int mask) {
            const __m512i quantised = _mm512_and_si512(_mm512_srli_epi32(lanes, shift), _mm512_set1_epi32(mask));
            return _mm512_fmadd_ps(_mm512_cvtepi32_ps(quantised), scale, offset);
        };
        if (weight.kind == codemill::kInt8) {
            for (int quad = 0; quad < 8; ++quad) {
                const __m512i lanes = _mm512_loadu_si512(from + quad * 64);
                to[2 * quad] = pair(number(lanes, 0, 255), number(lanes, 8, 255));
                to[2 * quad + 1] = pair(number(lanes, 16, 255), number(lanes, 24, 255));
            }
        } else {
            for (int both = 0; both < 4; ++both) {
                const __m512i lanes = _mm512_loadu_si512(from + both * 64);
                for (int half = 0; half < 2; ++half) {
                    __m512i* const two = to + 4 * both + 2 * half;
                    two[0] = pair(number(lanes, 4 * half, 15), number(lanes, 4 * half + 8, 15));
                    two[1] = pair(number(lanes, 4 * half + 16, 15), number(lanes, 4 * half + 24, 15));
                }
            }
        }
    }

private:
    static __m512i pair(__m512 first, __m512 second) {
        const __m512i low = _mm512_cvtepu16_epi32(to_bfloat16(first));
        return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bfloat16(second)), 16));
    }
};

// The panel of outputs `column` on, 32, of the weight or of its transpose.
void load_packed(const Matrix& weight, bool transposed, size_t column, const Panel& panel, int steps) {
    const Packed packed{weight};
    __m512i tile[kSide], rows[kRowStep];
    for (int step = 0; step < steps; ++step) {
        if (!transposed) {
            for (int side = 0; side < 2; ++side) {
                packed.tile(int(column / kSide) + side, step, tile);
                store_tile(panel.tile(side, step), tile);
            }
            continue;
        }
        for (int side = 0; side < 2; ++side) {
            packed.tile(2 * step + side, int(column / kStep), rows + side * kSide);
            transpose(rows + side * kSide);
        }
        __m512i right[kSide];
        pair_rows([&](int i) { return rows[i]; }, tile, right);
        store_tile(panel.tile(0, step), tile);
        store_tile(panel.tile(1, step), right);
    }
}

template <class Element>
void load_plain(const Matrix& weight, bool transposed, size_t column, const Panel& panel, int steps) {
    const Element* const from = static_cast<const Element*>(weight.weight);
    const size_t columns = weight.num_columns;
    for (int step = 0; step < steps; ++step) {
        __m512i left[kSide], right[kSide];
        if (transposed) {
            const auto row = [&](int i) { return load_numbers(from + (size_t(step) * kStep + i) * columns + column); };
            pair_rows(row, left, right);
        } else {
            for (int i = 0; i < kSide; ++i) {
                left[i] = load_numbers(from + (column + i) * columns + step * kStep);
                right[i] = load_numbers(from + (column + kSide + i) * columns + step * kStep);
            }
            transpose(left);
            transpose(right);
        }
        store_tile(panel.tile(0, step), left);
        store_tile(panel.tile(1, step), right);
    }
}

void load_weight(const Matrix& weight, bool transposed, size_t column, const Panel& panel, int steps) {
    if (weight.packed()) load_packed(weight, transposed, column, panel, steps);
    else if (weight.kind == codemill::kBf16) load_plain<uint16_t>(weight, transposed, column, panel, steps);
    else load_plain<float>(weight, transposed, column, panel, steps);
}

struct Pairs {
    size_t start, count, padded;

    Pairs(const int64_t* starts, int expert)
        : start(starts[expert]), count(starts[expert + 1] - start), padded(round_up(count)) {}
};

size_t product_scratch(const AdaptedProduct& pass, int expert) {
    const size_t padded = Pairs(pass.starts, expert).padded, columns = pass.num_inputs + pass.rank;
    return Left::words(padded, columns) + Left::words(kRowStep, columns) + kSpare;
}

void product(const AdaptedProduct& pass, int expert, float* scratch) {
    const Pairs pairs(pass.starts, expert);
    if (!pairs.count) return;
    configure_tiles();
    Memory memory(scratch);
    const size_t inputs = pass.num_inputs, outputs = pass.num_outputs, rank = pass.first ? pass.rank : 0;
    // What the low-rank update adds is the product of more columns, in the same sums.
    const Left left = memory.left(pairs.padded, inputs + rank);
    const Panel panel = memory.panel(inputs + rank);
    const int steps = int(inputs / kStep);
    for (size_t row = 0; row < pairs.padded; ++row) {
        const size_t pair = pairs.start + row;
        const uint16_t* const from =
            row < pairs.count ? pass.x + size_t(pass.tokens ? pass.tokens[pair] : pair) * inputs : nullptr;
        for (int step = 0; step < steps; ++step) {
            const __m512i numbers = from ? load_numbers(from + step * kStep) : _mm512_setzero_si512();
            _mm512_store_si512(left.numbers(row, step), numbers);
        }
    }
    if (rank) {
        const uint16_t* const first = pass.first + size_t(expert) * rank * inputs;
        const __m512 scale = _mm512_set1_ps(pass.scale);
        for (size_t column = 0; column < rank; column += kRowStep) {
            const Panel narrow = {panel.tiles, steps};
            load_outputs(first, inputs, column, column + kSide, narrow);
            multiply(left, pairs.padded, narrow, steps, [&](size_t row, __m512 low, __m512 high) {
                const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(high * scale, low * scale);
                _mm512_store_si512(left.numbers(row, steps + int(column / kStep)), rounded);
                if (row < pairs.count) _mm512_storeu_si512(pass.low + (pairs.start + row) * rank + column, rounded);
            });
        }
    }
    const Matrix weight = pass.weight.nth(expert);
    const uint16_t* const second = pass.second + size_t(expert) * outputs * rank;
    for (size_t column = 0; column < outputs; column += kRowStep) {
        load_weight(weight, pass.transposed, column, panel, steps);
        for (int step = 0; step < int(rank / kStep); ++step) {
            for (int side = 0; side < 2; ++side) {
                const Panel one = {panel.tile(side, steps + step), 1};
                const uint16_t* const from = second + (column + side * kSide) * rank + step * kStep;
                __m512i tile[kSide];
                for (int i = 0; i < kSide; ++i) tile[i] = load_numbers(from + i * rank);
                transpose(tile);
                store_tile(one.tiles, tile);
            }
        }
        multiply(left, pairs.count, panel, [&](size_t row, __m512 low, __m512 high) {
            if (row >= pairs.count) return;
            uint16_t* const to = pass.out + (pairs.start + row) * outputs + column;
            _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        });
    }
    _tile_release();
}

size_t gradient_scratch(const AdapterGradient& pass, int expert) {
    const size_t padded = Pairs(pass.starts, expert).padded;
    return Left::words(pass.rank, padded) + Left::words(kRowStep, padded) + kSpare;
}

void gradient(const AdapterGradient& pass, int expert, float* scratch) {
    const Pairs pairs(pass.starts, expert);
    const size_t rank = pass.rank, columns = pass.num_columns;
    float* const out = pass.out + size_t(expert) * rank * columns;
    if (!pairs.count) {
        for (size_t i = 0; i < rank * columns; ++i) out[i] = 0.0f;
        return;
    }
    configure_tiles();
    Memory memory(scratch);
    const Left left = memory.left(rank, pairs.padded);
    const Panel panel = memory.panel(pairs.padded);
    for (size_t column = 0; column < rank; column += kRowStep) {
        load_transposed(
            [&](size_t row) {
                if (row >= pairs.count) return _mm512_setzero_si512();
                return load_numbers(pass.low + (pairs.start + row) * rank + column);
            },
            column, left);
    }
    for (size_t column = 0; column < columns; column += kRowStep) {
        load_columns(
            [&](size_t row) {
                if (row >= pairs.count) return _mm512_setzero_si512();
                const size_t pair = pairs.start + row;
                return load_numbers(pass.x + size_t(pass.tokens ? pass.tokens[pair] : pair) * columns + column);
            },
            panel);
        multiply(left, rank, panel, [&](size_t row, __m512 low, __m512 high) {
            _mm512_storeu_ps(out + row * columns + column, low);
            _mm512_storeu_ps(out + row * columns + column + kSide, high);
        });
    }
    _tile_release();
}

void activate(const Activation& pass, size_t first, size_t last) {
    const size_t ffn = pass.ffn;
    for (size_t pair = first; pair < last; ++pair) {
        const uint16_t* const gates = pass.hidden + pair * 2 * ffn;
        __m512 sum = _mm512_setzero_ps();
        for (size_t column = 0; column < ffn; column += kSide) {
            const __m512 gate = load_bfloat16(gates + column), up = load_bfloat16(gates + ffn + column);
            const __m512 factor = (__m512)sigmoid<16>((Floats<16>)gate), silu = gate * factor, act = silu * up;
            _mm256_storeu_si256((__m256i*)(pass.act + pair * ffn + column), to_bfloat16(act));
            if (!pass.gradient) continue;
            const __m512 incoming = load_bfloat16(pass.gradient + pair * ffn + column);
            const __m512 scaled = incoming * pass.scales[pair];
            uint16_t* const to = pass.hidden_gradient + pair * 2 * ffn + column;
            sum = _mm512_fmadd_ps(incoming, act, sum);
            _mm256_storeu_si256((__m256i*)to, to_bfloat16(scaled * up * (factor + silu * (1.0f - factor))));
            _mm256_storeu_si256((__m256i*)(to + ffn), to_bfloat16(scaled * silu));
        }
        if (pass.gradient) pass.scale_gradient[pair] = _mm512_reduce_add_ps(sum);
    }
}

void combine(const Combination& pass, size_t first, size_t last) {
    for (size_t token = first; token < last; ++token) {
        const int64_t* const places = pass.places + token * pass.top_k;
        for (int column = 0; column < pass.hidden_size; column += kSide) {
            __m512 sum = _mm512_setzero_ps();
            for (int i = 0; i < pass.top_k; ++i) {
                const __m512 row = load_bfloat16(pass.rows + size_t(places[i]) * pass.hidden_size + column);
                const float scale = pass.scales ? pass.scales[token * pass.top_k + i] : 1.0f;
                sum = _mm512_fmadd_ps(_mm512_set1_ps(scale), row, sum);
            }
            _mm512_storeu_ps(pass.out + token * pass.hidden_size + column, sum);
        }
    }
}

}  // namespace
END_TARGET

const codemill::ExpertAdapterKernels* codemill::expert_adapter_kernels_amx() {
    static const ExpertAdapterKernels kernels = {product_scratch,  product,  gradient_scratch,
                                                gradient, activate, combine};
    return expert_kernels_amx() ? &kernels : nullptr;  // which also asks Linux for the tiles
}

#else

const codemill::ExpertAdapterKernels* codemill::expert_adapter_kernels_amx() { return nullptr; }

#endif
