// For x86-64 with AMX. Products go by tiles of 16 x 16 sums over 32 numbers, 2 x 2 of them at a time.
//
// The left side of a product lies in memory as [block of 16 rows][step of 32 columns] tiles; of the right side, two
// blocks of 16 columns at a time are made into tiles as they are needed, so that they stay in the first-level cache. A
// row's sums run over the same steps in the same order wherever it lies: its bits do not depend on the other rows.
#include "expert_training.h"

#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <utility>

#include "processor.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#include "training_tiles.h"

namespace {

using codemill::ExpertPass;

// The panel of weight^T: outputs `first` and `second` on, 16 each, of a weight [outputs, columns].
template <class Element>
void load_outputs(const Element* weight, size_t columns, size_t first, size_t second, const Panel& panel) {
    for (int side = 0; side < 2; ++side) {
        const Element* from = weight + (side ? second : first) * columns;
        for (int step = 0; step < panel.steps; ++step) {
            __m512i tile[kSide];
            for (int i = 0; i < kSide; ++i) tile[i] = load_numbers(from + i * columns + step * kStep);
            transpose(tile);
            store_tile(panel.tile(side, step), tile);
        }
    }
}

// One expert.
template <class Element>
class Expert {
public:
    Expert(const ExpertPass& pass, int expert, float* scratch)
        : pass_(pass), model_(pass.hidden_size), ffn_(pass.ffn), start_(pass.starts[expert]),
          count_(pass.starts[expert + 1] - start_), padded_(round_up(count_)),
          gate_up_(static_cast<const Element*>(pass.gate_up) + 2 * expert * ffn_ * model_),
          down_(static_cast<const Element*>(pass.down) + expert * ffn_ * model_), expert_(expert),
          free_(reinterpret_cast<Word*>(scratch)) {}

    static size_t scratch_floats(size_t count, size_t model, size_t ffn) {
        const size_t padded = round_up(count), wider = model > 2 * ffn ? model : 2 * ffn;
        const size_t panel = (padded > wider ? padded : wider) * kRowStep / 2;
        // As `backward` takes them: its other arrays are larger than those of `forward`.
        return Left::words(padded, model) * 2 + Left::words(padded, 2 * ffn) * 2 + Left::words(padded, ffn) + panel + padded;
    }

    void forward() {
        const Left inputs = gather(x()), act = left(padded_, ffn_);
        Word* const panel_words = free_;
        const Panel wide = {panel_words, inputs.steps};
        for (size_t column = 0; column < ffn_; column += kSide) {
            load_outputs(gate_up_, model_, column, ffn_ + column, wide);
            multiply(inputs, count_, wide, [&](size_t row, __m512 gate, __m512 up) { activate(row, column, gate, up, act); });
        }
        const Panel narrow = {panel_words, act.steps};
        for (size_t column = 0; column < model_; column += kRowStep) {
            load_outputs(down_, ffn_, column, column + kSide, narrow);
            multiply(act, count_, narrow, [&](size_t row, __m512 low, __m512 high) { put_row(row, column, low, high); });
        }
    }

    void backward() {
        const Left outer = gather(gradient()), back = left(padded_, 2 * ffn_);
        // The scaled activations as right side, [32 columns of F][side][step of rows].
        Word* const act = take(Left::words(padded_, ffn_));
        float* const of_scales = reinterpret_cast<float*>(take(padded_));
        for (size_t row = 0; row < padded_; ++row) of_scales[row] = 0.0f;
        {
            const Panel panel = {free_, outer.steps};
            for (size_t column = 0; column < ffn_; column += kRowStep) {
                load_columns([&](size_t row) { return load_numbers(down_ + row * ffn_ + column); }, panel);
                __m512i rows[kRowStep];
                multiply(outer, count_, panel, [&](size_t row, __m512 low, __m512 high) {
                    rows[row % kRowStep] = pull_back(row, column, low, high, back, of_scales);
                    if (row % kRowStep == kRowStep - 1) put_pairs(rows, act_panel(act, column), int(row / kRowStep));
                });
            }
        }
        for (size_t row = 0; row < count_; ++row) pass_.scale_gradient[start_ + row] = of_scales[row];
        if (pass_.down_gradient) down_gradient(act);
        if (pass_.gate_up_gradient) gate_up_gradient(back);
        if (pass_.rows) x_gradient(back);
    }

private:
    const uint16_t* x() const { return static_cast<const uint16_t*>(pass_.x); }
    const uint16_t* gradient() const { return static_cast<const uint16_t*>(pass_.gradient); }

    Word* take(size_t words) {
        Word* const taken = free_;
        free_ += (words + kSide - 1) / kSide * kSide;
        return taken;
    }
    Left left(size_t rows, size_t columns) { return {take(Left::words(rows, columns)), int(columns / kStep)}; }

    // The 32 numbers from `column` on of this expert's row of a matrix [N, D]; zeros behind the last.
    __m512i token_numbers(const uint16_t* matrix, size_t row, size_t column) const {
        if (row >= count_) return _mm512_setzero_si512();
        return load_numbers(matrix + pass_.tokens[start_ + row] * model_ + column);
    }

    Left gather(const uint16_t* matrix) {
        const Left to = left(padded_, model_);
        for (size_t row = 0; row < padded_; ++row) {
            for (int step = 0; step < to.steps; ++step) {
                _mm512_store_si512(to.numbers(row, step), token_numbers(matrix, row, size_t(step) * kStep));
            }
        }
        return to;
    }

    // 16 columns of gate and up -> the activations; gate and up are kept as rounded.
    void activate(size_t row, size_t column, __m512 gate, __m512 up, const Left& act) {
        const __m256i gates = to_bfloat16(gate), ups = to_bfloat16(up);
        if (row < count_) {
            uint16_t* const kept = static_cast<uint16_t*>(pass_.hidden) + (start_ + row) * 2 * ffn_ + column;
            _mm256_storeu_si256((__m256i*)kept, gates);
            _mm256_storeu_si256((__m256i*)(kept + ffn_), ups);
        }
        const Floats<16> x = (Floats<16>)to_floats(gates);
        const __m512 product = (__m512)(x * sigmoid<16>(x)) * to_floats(ups);
        uint16_t* const to = act.numbers(row, int(column / kStep)) + column % kStep;
        _mm256_store_si256((__m256i*)to, to_bfloat16(product));
    }

    void put_row(size_t row, size_t column, __m512 low, __m512 high) {
        if (row >= count_) return;
        uint16_t* const to = static_cast<uint16_t*>(pass_.rows) + (start_ + row) * model_ + column;
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }

    // What flows back to 32 columns of gate and up, into `back`, and what the row adds to the gradient of its scale.
    // Returns the scaled activations.
    __m512i pull_back(size_t row, size_t column, __m512 low, __m512 high, const Left& back, float* of_scales) {
        __m512 of_gate[2] = {}, of_up[2] = {}, scaled[2] = {};
        if (row < count_) {
            const float scale = pass_.scales[start_ + row];
            const uint16_t* const kept = static_cast<uint16_t*>(pass_.hidden) + (start_ + row) * 2 * ffn_ + column;
            __m512 sum = _mm512_setzero_ps();
            for (int half = 0; half < 2; ++half) {
                const __m512 gate = load_bfloat16(kept + half * kSide), up = load_bfloat16(kept + ffn_ + half * kSide);
                const __m512 gradient = half ? high : low, factor = (__m512)sigmoid<16>((Floats<16>)gate);
                const __m512 silu = gate * factor, act = silu * up;
                sum = _mm512_fmadd_ps(gradient, act, sum);
                scaled[half] = act * scale;
                of_up[half] = gradient * scale * silu;
                of_gate[half] = gradient * scale * up * (factor + silu * (1.0f - factor));
            }
            of_scales[row] += _mm512_reduce_add_ps(sum);
        }
        _mm512_store_si512(back.numbers(row, int(column / kStep)), (__m512i)_mm512_cvtne2ps_pbh(of_gate[1], of_gate[0]));
        _mm512_store_si512(back.numbers(row, int((ffn_ + column) / kStep)),
                           (__m512i)_mm512_cvtne2ps_pbh(of_up[1], of_up[0]));
        return (__m512i)_mm512_cvtne2ps_pbh(scaled[1], scaled[0]);
    }

    Panel act_panel(Word* act, size_t column) const { return {act + padded_ * column / 2, int(padded_ / kStep)}; }

    // [D, F] = gradient^T [D, n] @ act [n, F].
    void down_gradient(Word* act) {
        Word* const kept = free_;
        const Left outer = left(model_, padded_);
        for (size_t column = 0; column < model_; column += kRowStep) {
            load_transposed([&](size_t row) { return token_numbers(gradient(), row, column); }, column, outer);
        }
        Element* const to = static_cast<Element*>(pass_.down_gradient) + expert_ * ffn_ * model_;
        for (size_t column = 0; column < ffn_; column += kRowStep) {
            multiply(outer, model_, act_panel(act, column), [&](size_t row, __m512 low, __m512 high) {
                put_gradient(to + row * ffn_ + column, low, high);
            });
        }
        free_ = kept;
    }

    // [2F, D] = back^T [2F, n] @ x [n, D].
    void gate_up_gradient(const Left& back) {
        Word* const kept = free_;
        const Left turned = left(2 * ffn_, padded_);
        for (size_t column = 0; column < 2 * ffn_; column += kRowStep) {
            load_transposed([&](size_t row) { return load_numbers(back.numbers(row, int(column / kStep))); }, column,
                            turned);
        }
        const Panel panel = {free_, turned.steps};
        Element* const to = static_cast<Element*>(pass_.gate_up_gradient) + 2 * expert_ * ffn_ * model_;
        for (size_t column = 0; column < model_; column += kRowStep) {
            load_columns([&](size_t row) { return token_numbers(x(), row, column); }, panel);
            multiply(turned, 2 * ffn_, panel, [&](size_t row, __m512 low, __m512 high) {
                put_gradient(to + row * model_ + column, low, high);
            });
        }
        free_ = kept;
    }

    // [n, D] = back [n, 2F] @ gate_up [2F, D].
    void x_gradient(const Left& back) {
        const Panel panel = {free_, back.steps};
        for (size_t column = 0; column < model_; column += kRowStep) {
            load_columns([&](size_t row) { return load_numbers(gate_up_ + row * model_ + column); }, panel);
            multiply(back, count_, panel, [&](size_t row, __m512 low, __m512 high) { put_row(row, column, low, high); });
        }
    }

    // Past the caches, where nobody will look for it soon.
    static void put_gradient(float* to, __m512 low, __m512 high) {
        if (reinterpret_cast<uintptr_t>(to) % 64 == 0) {
            _mm512_stream_ps(to, low);
            _mm512_stream_ps(to + kSide, high);
        } else {
            _mm512_storeu_ps(to, low);
            _mm512_storeu_ps(to + kSide, high);
        }
    }
    static void put_gradient(uint16_t* to, __m512 low, __m512 high) {
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }

    const ExpertPass& pass_;
    const size_t model_, ffn_;
    const size_t start_, count_, padded_;
    const Element* const gate_up_;
    const Element* const down_;
    const size_t expert_;
    Word* free_;
};

size_t scratch_floats(const ExpertPass& pass, int expert) {
    return Expert<float>::scratch_floats(pass.starts[expert + 1] - pass.starts[expert], pass.hidden_size, pass.ffn) + 1024;
}

void forward(const ExpertPass& pass, int expert, float* scratch) {
    configure_tiles();
    if (pass.weights_are_bf16) Expert<uint16_t>(pass, expert, scratch).forward();
    else Expert<float>(pass, expert, scratch).forward();
    _tile_release();
}

void backward(const ExpertPass& pass, int expert, float* scratch) {
    configure_tiles();
    if (pass.weights_are_bf16) Expert<uint16_t>(pass, expert, scratch).backward();
    else Expert<float>(pass, expert, scratch).backward();
    _tile_release();
    _mm_sfence();
}

void combine(const void* rows, const int64_t* places, const float* scales, int count, int size, float* out) {
    for (int column = 0; column < size; column += kSide) {
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < count; ++i) {
            const __m512 row = load_bfloat16(static_cast<const uint16_t*>(rows) + places[i] * size + column);
            sum = _mm512_fmadd_ps(_mm512_set1_ps(scales ? scales[i] : 1.0f), row, sum);
        }
        _mm512_storeu_ps(out + column, sum);
    }
}

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

const codemill::ExpertKernels* codemill::expert_kernels_amx() {
    static const bool supported = has_tiles();
    static const ExpertKernels kernels = {scratch_floats, forward, backward, combine};
    return supported ? &kernels : nullptr;
}

#else

const codemill::ExpertKernels* codemill::expert_kernels_amx() { return nullptr; }

#endif
