// The experts in fp32, for every processor. A product goes by tiles of some rows by three vectors of columns, whose sums
// stay in registers. A row's sums run over the same numbers in the same order wherever it lies: its bits do not depend on
// the other rows. It calls no library code: see vectors.h.
#pragma once

#include "expert_training.h"
#include "vectors.h"

namespace {

using codemill::ExpertPass;

template <int LANES>
constexpr int kTileRows = kRegisters<LANES> == 32 ? 8 : 4;
constexpr int kTileVectors = 3;
template <int LANES>
constexpr int kTileColumns = kTileVectors * LANES;

inline size_t divide_up(size_t count, size_t size) { return (count + size - 1) / size; }

inline void read_number(const float* from, float* to) { *to = *from; }
inline void read_number(const bfloat16* from, float* to) { *to = to_float(*from); }
inline void write_number(float* to, float x) { *to = x; }
inline void write_number(bfloat16* to, float x) {
    const typename Lanes<4>::Unsigned bits = rounded_to_bfloat16<4>(Floats<4>{x});
    to->bits = static_cast<uint16_t>(bits[0] >> 16);
}

template <int LANES>
inline Floats<LANES> load_numbers(const float* from) { return load<LANES>(from); }
template <int LANES>
inline Floats<LANES> load_numbers(const bfloat16* from) {
    typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    return (Floats<LANES>)(__builtin_convertvector(halves, typename Lanes<LANES>::Unsigned) << 16);
}
template <int LANES>
inline void store_numbers(float* to, Floats<LANES> x) { store<LANES>(to, x); }
template <int LANES>
inline void store_numbers(bfloat16* to, Floats<LANES> x) {
    typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
    const Halves halves = __builtin_convertvector(rounded_to_bfloat16<LANES>(x) >> 16, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
}

// [LANES][LANES] floats, transposed: rows i and i + LANES / 2 are zipped again and again.
template <int LANES>
inline void transpose_floats(Floats<LANES>* x) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
#pragma GCC unroll 4
    for (int done = 1; done < LANES; done *= 2) {
        Floats<LANES> y[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            y[2 * i] = zip_from<LANES, 0>(x[i], x[i + LANES / 2], lanes);
            y[2 * i + 1] = zip_from<LANES, LANES / 2>(x[i], x[i + LANES / 2], lanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) x[i] = y[i];
    }
}

// The left side of a product: number (row, k) lies at row * row_stride + k * step.
struct LeftSide {
    const float* from;
    size_t row_stride, step;
};

// out[rows][kTileColumns] = rows of the left side times a panel [count][kTileColumns].
template <int LANES>
inline void multiply_tile(const LeftSide& left, size_t row, int num_rows, const float* panel, size_t count, float* out) {
    constexpr int ROWS = kTileRows<LANES>;
    const float* from[ROWS];  // behind the last row, that one again
    for (int i = 0; i < ROWS; ++i) from[i] = left.from + (row + (i < num_rows ? i : num_rows - 1)) * left.row_stride;
    Floats<LANES> sums[ROWS][kTileVectors] = {};
    const size_t step = left.step;
    for (size_t k = 0; k < count; ++k, panel += kTileColumns<LANES>) {
        Floats<LANES> right[kTileVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kTileVectors; ++v) right[v] = load<LANES>(panel + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            const float own = from[i][k * step];
#pragma GCC unroll 3
            for (int v = 0; v < kTileVectors; ++v) sums[i][v] += right[v] * own;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 3
        for (int v = 0; v < kTileVectors; ++v) store<LANES>(out + i * kTileColumns<LANES> + v * LANES, sums[i][v]);
    }
}

// to[num_rows, num_columns] = left [num_rows, count] @ right; make_panel(first, panel) writes columns `first` on of the
// right side as [count][kTileColumns], with zeros behind the last.
template <int LANES, class Element, class MakePanel>
void multiply(const LeftSide& left, size_t num_rows, size_t count, size_t num_columns, const MakePanel& make_panel,
              float* panel, Element* to, size_t stride) {
    constexpr int ROWS = kTileRows<LANES>, COLUMNS = kTileColumns<LANES>;
    alignas(64) float sums[ROWS * COLUMNS];
    for (size_t column = 0; column < num_columns; column += COLUMNS) {
        make_panel(column, panel);
        const size_t width = num_columns - column < COLUMNS ? num_columns - column : COLUMNS;
        for (size_t row = 0; row < num_rows; row += ROWS) {
            const int height = static_cast<int>(num_rows - row < ROWS ? num_rows - row : ROWS);
            multiply_tile<LANES>(left, row, height, panel, count, sums);
            for (int i = 0; i < height; ++i) {
                Element* const own = to + (row + i) * stride + column;
                const float* const from = sums + i * COLUMNS;
                size_t j = 0;
                for (; j + LANES <= width; j += LANES) store_numbers<LANES>(own + j, load<LANES>(from + j));
                for (; j < width; ++j) write_number(own + j, from[j]);
            }
        }
    }
}

// Of a matrix [count, num_columns], as it lies.
template <int LANES, class Element>
inline void columns_panel(const Element* matrix, size_t count, size_t num_columns, size_t first, float* panel) {
    constexpr size_t COLUMNS = kTileColumns<LANES>;
    const size_t width = num_columns - first < COLUMNS ? num_columns - first : COLUMNS;
    for (size_t k = 0; k < count; ++k, panel += COLUMNS) {
        const Element* const from = matrix + k * num_columns + first;
        size_t j = 0;
        for (; j + LANES <= width; j += LANES) store<LANES>(panel + j, load_numbers<LANES>(from + j));
        for (; j < width; ++j) read_number(from + j, panel + j);
        for (; j < COLUMNS; ++j) panel[j] = 0.0f;
    }
}

// Of the transposed of a matrix [num_rows, count].
template <int LANES, class Element>
inline void rows_panel(const Element* matrix, size_t count, size_t num_rows, size_t first, float* panel) {
    constexpr size_t COLUMNS = kTileColumns<LANES>;
    for (size_t group = 0; group < COLUMNS; group += LANES) {
        const auto row_of = [&](int i) { return matrix + (first + group + i) * count; };
        const size_t start = first + group;
        const int there = start >= num_rows ? 0 : num_rows - start < size_t(LANES) ? int(num_rows - start) : LANES;
        size_t k = 0;
        for (; k + LANES <= count; k += LANES) {
            Floats<LANES> x[LANES];
            for (int i = 0; i < LANES; ++i) x[i] = i < there ? load_numbers<LANES>(row_of(i) + k) : Floats<LANES>{};
            transpose_floats<LANES>(x);
            for (int i = 0; i < LANES; ++i) store<LANES>(panel + (k + i) * COLUMNS + group, x[i]);
        }
        for (; k < count; ++k) {
            for (int i = 0; i < LANES; ++i) {
                float* const to = panel + k * COLUMNS + group + i;
                if (i < there) read_number(row_of(i) + k, to);
                else *to = 0.0f;
            }
        }
    }
}

// A matrix [count, num_columns] as [tile of kTileRows columns][count][kTileRows]: its transposed as a left side, one tile
// after the other in memory. The last tile has zeros behind its columns.
template <int LANES>
inline void turn(const float* matrix, size_t count, size_t num_columns, float* to) {
    constexpr size_t ROWS = kTileRows<LANES>;
    for (size_t first = 0; first < num_columns; first += ROWS) {
        const size_t width = num_columns - first < ROWS ? num_columns - first : ROWS;
        for (size_t k = 0; k < count; ++k, to += ROWS) {
            const float* const from = matrix + k * num_columns + first;
            if (width == ROWS) {
                __builtin_memcpy(to, from, ROWS * sizeof(float));
                continue;
            }
            for (size_t i = 0; i < ROWS; ++i) to[i] = i < width ? from[i] : 0.0f;
        }
    }
}

// out [num_rows, num_columns] = turned^T @ right, with `turned` of `turn`.
template <int LANES, class Element>
void multiply_turned(const float* turned, size_t num_rows, size_t count, size_t num_columns, const float* right,
                     float* panel, Element* to) {
    constexpr size_t ROWS = kTileRows<LANES>, COLUMNS = kTileColumns<LANES>;
    alignas(64) float sums[ROWS * COLUMNS];
    for (size_t column = 0; column < num_columns; column += COLUMNS) {
        columns_panel<LANES>(right, count, num_columns, column, panel);
        const size_t width = num_columns - column < COLUMNS ? num_columns - column : COLUMNS;
        for (size_t row = 0; row < num_rows; row += ROWS) {
            const LeftSide left = {turned + row * count, 1, ROWS};
            const size_t height = num_rows - row < ROWS ? num_rows - row : ROWS;
            multiply_tile<LANES>(left, 0, ROWS, panel, count, sums);
            for (size_t i = 0; i < height; ++i) {
                Element* const own = to + (row + i) * num_columns + column;
                const float* const from = sums + i * COLUMNS;
                size_t j = 0;
                for (; j + LANES <= width; j += LANES) store_numbers<LANES>(own + j, load<LANES>(from + j));
                for (; j < width; ++j) write_number(own + j, from[j]);
            }
        }
    }
}

template <int LANES, class Element>
class PlainExpert {
public:
    PlainExpert(const ExpertPass& pass, int expert, float* scratch)
        : pass_(pass), model_(pass.hidden_size), ffn_(pass.ffn), start_(pass.starts[expert]),
          count_(pass.starts[expert + 1] - start_), expert_(expert),
          gate_up_(static_cast<const Element*>(pass.gate_up) + 2 * expert * ffn_ * model_),
          down_(static_cast<const Element*>(pass.down) + expert * ffn_ * model_), free_(scratch) {}

    static size_t scratch_floats(size_t count, size_t model, size_t ffn) {
        const size_t wider = model > 2 * ffn ? model : 2 * ffn, longest = wider > count ? wider : count;
        const size_t turned = (wider + 8) * count;  // `turn` fills up its last tile
        // As `backward` takes them: gradient, inputs, activations, what flows back to them and to gate and up, and more.
        return 2 * count * model + 4 * count * ffn + turned + longest * kTileColumns<LANES> + 64 * 8;
    }

    void forward() {
        float* const x = gather(pass_.x, pass_.x_is_bf16);
        float *const act = take(count_ * ffn_), *const panel = free_;
        float* const hidden = static_cast<float*>(pass_.hidden) + start_ * 2 * ffn_;
        multiply<LANES>({x, model_, 1}, count_, model_, 2 * ffn_, [&](size_t first, float* to) {
            rows_panel<LANES>(gate_up_, model_, 2 * ffn_, first, to);
        }, panel, hidden, 2 * ffn_);
        for (size_t row = 0; row < count_; ++row) activate(hidden + row * 2 * ffn_, act + row * ffn_);
        multiply<LANES>({act, ffn_, 1}, count_, ffn_, model_, [&](size_t first, float* to) {
            rows_panel<LANES>(down_, ffn_, model_, first, to);
        }, panel, static_cast<float*>(pass_.rows) + start_ * model_, model_);
    }

    void backward() {
        float* const outer = gather(pass_.gradient, pass_.gradient_is_bf16);
        float *const act = take(count_ * ffn_), *const of_act = take(count_ * ffn_), *const back = take(count_ * 2 * ffn_);
        float* const rest = free_;
        multiply<LANES>({outer, model_, 1}, count_, model_, ffn_, [&](size_t first, float* to) {
            columns_panel<LANES>(down_, model_, ffn_, first, to);
        }, rest, of_act, ffn_);
        for (size_t row = 0; row < count_; ++row) {
            const float* const hidden = static_cast<const float*>(pass_.hidden) + (start_ + row) * 2 * ffn_;
            pass_.scale_gradient[start_ + row] = pull_back(hidden, of_act + row * ffn_, pass_.scales[start_ + row],
                                                           act + row * ffn_, back + row * 2 * ffn_);
        }
        if (pass_.down_gradient) {
            float* const turned = take((model_ + 8) * count_);
            turn<LANES>(outer, count_, model_, turned);
            multiply_turned<LANES>(turned, model_, count_, ffn_, act, free_,
                                   static_cast<Element*>(pass_.down_gradient) + expert_ * ffn_ * model_);
            free_ = rest;
        }
        if (pass_.gate_up_gradient) {
            float* const x = gather(pass_.x, pass_.x_is_bf16);
            float* const turned = take((2 * ffn_ + 8) * count_);
            turn<LANES>(back, count_, 2 * ffn_, turned);
            multiply_turned<LANES>(turned, 2 * ffn_, count_, model_, x, free_,
                                   static_cast<Element*>(pass_.gate_up_gradient) + 2 * expert_ * ffn_ * model_);
            free_ = rest;
        }
        if (pass_.rows) {
            multiply<LANES>({back, 2 * ffn_, 1}, count_, 2 * ffn_, model_, [&](size_t first, float* to) {
                columns_panel<LANES>(gate_up_, 2 * ffn_, model_, first, to);
            }, rest, static_cast<float*>(pass_.rows) + start_ * model_, model_);
        }
    }

private:
    float* take(size_t floats) {
        float* const taken = free_;
        free_ += (floats + 15) / 16 * 16;
        return taken;
    }

    // This expert's rows of a matrix [N, D].
    float* gather(const void* matrix, bool is_bf16) {
        float* const to = take(count_ * model_);
        for (size_t row = 0; row < count_; ++row) {
            const size_t from = pass_.tokens[start_ + row] * model_;
            if (is_bf16) copy(static_cast<const bfloat16*>(matrix) + from, to + row * model_);
            else copy(static_cast<const float*>(matrix) + from, to + row * model_);
        }
        return to;
    }

    template <class Number>
    void copy(const Number* from, float* to) const {
        size_t i = 0;
        for (; i + LANES <= model_; i += LANES) store<LANES>(to + i, load_numbers<LANES>(from + i));
        for (; i < model_; ++i) read_number(from + i, to + i);
    }

    // function(i, count) for all vectors of F numbers; the last may have fewer.
    template <class Function>
    void for_each_vector(Function function) const {
        size_t i = 0;
        for (; i + LANES <= ffn_; i += LANES) function(i, LANES);
        if (i < ffn_) function(i, static_cast<int>(ffn_ - i));
    }
    static Floats<LANES> get(const float* from, int count) {
        return count == LANES ? load<LANES>(from) : load_some<LANES>(from, count);
    }
    static void put(float* to, Floats<LANES> x, int count) {
        count == LANES ? store<LANES>(to, x) : store_some<LANES>(to, x, count);
    }

    void activate(const float* hidden, float* act) const {
        for_each_vector([&](size_t i, int count) {
            const Floats<LANES> gate = get(hidden + i, count), up = get(hidden + ffn_ + i, count);
            put(act + i, gate * sigmoid<LANES>(gate) * up, count);
        });
    }

    // What flows back to gate and up, and the scaled activations; returns what the row adds to the gradient of its scale.
    float pull_back(const float* hidden, const float* of_act, float scale, float* scaled, float* back) const {
        Floats<LANES> sum = {};
        for_each_vector([&](size_t i, int count) {
            const Floats<LANES> gate = get(hidden + i, count), up = get(hidden + ffn_ + i, count);
            const Floats<LANES> gradient = get(of_act + i, count), factor = sigmoid<LANES>(gate);
            const Floats<LANES> silu = gate * factor, act = silu * up, own = gradient * scale;
            sum += gradient * act;
            put(scaled + i, act * scale, count);
            put(back + i, own * up * (factor + silu * (1.0f - factor)), count);
            put(back + ffn_ + i, own * silu, count);
        });
        return total<LANES>(sum);
    }

    const ExpertPass& pass_;
    const size_t model_, ffn_;
    const size_t start_, count_;
    const size_t expert_;
    const Element* const gate_up_;
    const Element* const down_;
    float* free_;
};

template <int LANES>
size_t scratch_floats(const ExpertPass& pass, int expert) {
    return PlainExpert<LANES, float>::scratch_floats(pass.starts[expert + 1] - pass.starts[expert], pass.hidden_size,
                                                     pass.ffn);
}

template <int LANES>
void forward(const ExpertPass& pass, int expert, float* scratch) {
    if (pass.weights_are_bf16) PlainExpert<LANES, bfloat16>(pass, expert, scratch).forward();
    else PlainExpert<LANES, float>(pass, expert, scratch).forward();
}

template <int LANES>
void backward(const ExpertPass& pass, int expert, float* scratch) {
    if (pass.weights_are_bf16) PlainExpert<LANES, bfloat16>(pass, expert, scratch).backward();
    else PlainExpert<LANES, float>(pass, expert, scratch).backward();
}

template <int LANES>
void combine(const void* rows, const int64_t* places, const float* scales, int count, int size, float* out) {
    const float* const numbers = static_cast<const float*>(rows);
    int column = 0;
    const auto scale = [&](int i) { return scales ? scales[i] : 1.0f; };
    for (; column + LANES <= size; column += LANES) {
        Floats<LANES> sum = {};
        for (int i = 0; i < count; ++i) sum += load<LANES>(numbers + places[i] * size + column) * scale(i);
        store<LANES>(out + column, sum);
    }
    for (; column < size; ++column) {
        float sum = 0;
        for (int i = 0; i < count; ++i) sum += numbers[places[i] * size + column] * scale(i);
        out[column] = sum;
    }
}

template <int LANES>
constexpr codemill::ExpertKernels kExpertKernels = {scratch_floats<LANES>, forward<LANES>, backward<LANES>,
                                                    combine<LANES>};

}  // namespace
