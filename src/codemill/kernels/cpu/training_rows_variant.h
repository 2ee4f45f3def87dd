// The body of every variant of the training rows. A row is brought to fp32 in scratch, filled up with zeros to whole
// vectors, so that loops have no remainders. It calls no library code: see vectors.h.
#pragma once

#include "training_rows.h"
#include "vectors.h"

namespace {

using codemill::Kind;
using codemill::NormPass;
using codemill::SwigluPass;

template <int LANES>
struct Halves {
    typedef uint16_t Type __attribute__((vector_size(LANES * 2)));
};

template <int LANES>
inline Floats<LANES> load_halves(const bfloat16* from) {
    typename Halves<LANES>::Type halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    return (Floats<LANES>)(__builtin_convertvector(halves, typename Lanes<LANES>::Unsigned) << 16);
}

template <int LANES>
inline void store_halves(bfloat16* to, Floats<LANES> x) {
    const auto halves = __builtin_convertvector(rounded_to_bfloat16<LANES>(x) >> 16, typename Halves<LANES>::Type);
    __builtin_memcpy(to, &halves, sizeof halves);
}

template <int LANES>
inline Floats<LANES> load_kind(const float* from) { return load<LANES>(from); }
template <int LANES>
inline Floats<LANES> load_kind(const bfloat16* from) { return load_halves<LANES>(from); }
template <int LANES>
inline void store_kind(float* to, Floats<LANES> x) { store<LANES>(to, x); }
template <int LANES>
inline void store_kind(bfloat16* to, Floats<LANES> x) { store_halves<LANES>(to, x); }

// `size` numbers -> `to`, and zeros up to whole vectors; added to what is there if ADD.
template <int LANES, bool ADD, class Element>
inline void read_elements(const Element* from, int size, float* to) {
    int i = 0;
    for (; i + LANES <= size; i += LANES) {
        const Floats<LANES> x = load_kind<LANES>(from + i);
        store<LANES>(to + i, ADD ? load<LANES>(to + i) + x : x);
    }
    if (i < size) {
        Element rest[LANES] = {};
        __builtin_memcpy(rest, from + i, (size - i) * sizeof(Element));
        const Floats<LANES> x = load_kind<LANES>(rest);
        store<LANES>(to + i, ADD ? load<LANES>(to + i) + x : x);
    }
}

template <int LANES, bool ADD>
inline void read_row(const void* from, Kind kind, int64_t row, int size, float* to) {
    if (kind == Kind::kBfloat16) read_elements<LANES, ADD>(static_cast<const bfloat16*>(from) + row * size, size, to);
    else read_elements<LANES, ADD>(static_cast<const float*>(from) + row * size, size, to);
}

template <int LANES, class Element>
inline void write_elements(const float* from, int size, Element* to) {
    int i = 0;
    for (; i + LANES <= size; i += LANES) store_kind<LANES>(to + i, load<LANES>(from + i));
    if (i < size) {
        Element rest[LANES];
        store_kind<LANES>(rest, load<LANES>(from + i));
        __builtin_memcpy(to + i, rest, (size - i) * sizeof(Element));
    }
}

template <int LANES>
inline void write_row(const float* from, Kind kind, int64_t row, int size, void* to) {
    if (kind == Kind::kBfloat16) write_elements<LANES>(from, size, static_cast<bfloat16*>(to) + row * size);
    else write_elements<LANES>(from, size, static_cast<float*>(to) + row * size);
}

// x * cos + swapped(x) * sin over the first `rotated` numbers, the halves swapped; backward, the transposed of it.
template <int LANES, bool BACKWARD>
inline void rotate_row(float* x, const NormPass& pass, int64_t row) {
    const int64_t table = row / pass.heads % pass.num_tables;
    const float *cos = pass.cos + table * pass.rotated, *sin = pass.sin + table * pass.rotated;
    const int half = pass.rotated / 2;
    int i = 0;
    const auto turn = [&](auto first, auto second, auto cos1, auto cos2, auto sin1, auto sin2, auto put1, auto put2) {
        put1(first * cos1 + second * (BACKWARD ? sin2 : sin1));
        put2(second * cos2 + first * (BACKWARD ? sin1 : sin2));
    };
    for (; i + LANES <= half; i += LANES) {
        turn(load<LANES>(x + i), load<LANES>(x + half + i), load<LANES>(cos + i), load<LANES>(cos + half + i),
             load<LANES>(sin + i), load<LANES>(sin + half + i), [&](Floats<LANES> y) { store<LANES>(x + i, y); },
             [&](Floats<LANES> y) { store<LANES>(x + half + i, y); });
    }
    for (; i < half; ++i) {
        turn(x[i], x[half + i], cos[i], cos[half + i], sin[i], sin[half + i], [&](float y) { x[i] = y; },
             [&](float y) { x[half + i] = y; });
    }
}

template <int LANES>
inline void read_weight(const NormPass& pass, float* to) {
    read_elements<LANES, false>(pass.weight, pass.size, to);
    if (pass.offset != 0.0f) {
        for (int i = 0; i < pass.size; ++i) to[i] += pass.offset;
    }
}

template <int LANES>
void norm_forward(const NormPass& pass, int64_t first, int64_t stop, float* scratch) {
    const int size = pass.size, padded = static_cast<int>(codemill::padded_size(size));
    float *const weight = scratch, *const x = scratch + padded;
    read_weight<LANES>(pass, weight);
    for (int i = size; i < padded; ++i) weight[i] = x[i] = 0.0f;
    for (int64_t row = first; row < stop; ++row) {
        read_row<LANES, false>(pass.x, pass.x_kind, row, size, x);
        if (pass.added) read_row<LANES, true>(pass.added, pass.added_kind, row, size, x);
        if (pass.sum) {
            write_row<LANES>(x, pass.x_kind, row, size, pass.sum);
            // The norm is that of the sum as it was kept: backward computes with it.
            if (pass.x_kind == Kind::kBfloat16) read_row<LANES, false>(pass.sum, pass.x_kind, row, size, x);
        }
        Floats<LANES> squares[4] = {};
        int i = 0;
        for (; i + 4 * LANES <= padded; i += 4 * LANES) {
            for (int j = 0; j < 4; ++j) {
                const Floats<LANES> y = load<LANES>(x + i + j * LANES);
                squares[j] += y * y;
            }
        }
        for (; i < padded; i += LANES) squares[0] += load<LANES>(x + i) * load<LANES>(x + i);
        const float sum = total<LANES>((squares[0] + squares[1]) + (squares[2] + squares[3]));
        const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + pass.eps);
        pass.scales[row] = scale;
        for (i = 0; i < padded; i += LANES) store<LANES>(x + i, load<LANES>(x + i) * scale * load<LANES>(weight + i));
        if (pass.cos) rotate_row<LANES, false>(x, pass, row);
        write_row<LANES>(x, pass.out_kind, row, size, pass.out);
        for (i = size; i < padded; ++i) x[i] = 0.0f;
    }
}

// With n = x * scale and g = weight * (gradient of out): the gradient of x is scale * (g - n * mean(g * n)), that of the
// weight the sum over rows of (gradient of out) * n.
template <int LANES>
void norm_backward(const NormPass& pass, int64_t first, int64_t stop, float* weight_gradient, float* scratch) {
    const int size = pass.size, padded = static_cast<int>(codemill::padded_size(size));
    float *const weight = scratch, *const x = weight + padded, *const g = x + padded, *const of_weight = g + padded;
    for (int i = 0; i < padded; ++i) weight[i] = x[i] = g[i] = of_weight[i] = 0.0f;
    read_weight<LANES>(pass, weight);
    for (int64_t row = first; row < stop; ++row) {
        const float scale = pass.scales[row];
        read_row<LANES, false>(pass.x, pass.x_kind, row, size, x);
        read_row<LANES, false>(pass.out_gradient, pass.out_kind, row, size, g);
        if (pass.cos) rotate_row<LANES, true>(g, pass, row);
        Floats<LANES> products[2] = {};
        for (int i = 0, j = 0; i < padded; i += LANES, j ^= 1) {
            const Floats<LANES> n = load<LANES>(x + i) * scale, gradient = load<LANES>(g + i);
            const Floats<LANES> weighted = gradient * load<LANES>(weight + i);
            store<LANES>(of_weight + i, load<LANES>(of_weight + i) + gradient * n);
            store<LANES>(x + i, n);
            store<LANES>(g + i, weighted);
            products[j] += weighted * n;
        }
        const float mean = total<LANES>(products[0] + products[1]) / static_cast<float>(size);
        for (int i = 0; i < padded; i += LANES) {
            store<LANES>(g + i, (load<LANES>(g + i) - load<LANES>(x + i) * mean) * scale);
        }
        if (pass.sum_gradient) read_row<LANES, true>(pass.sum_gradient, pass.x_kind, row, size, g);
        write_row<LANES>(g, pass.x_kind, row, size, pass.x_gradient);
        if (pass.added_gradient) write_row<LANES>(g, pass.added_kind, row, size, pass.added_gradient);
    }
    write_elements<LANES>(of_weight, size, weight_gradient);
}

template <int LANES, class Element, class Function>
inline void for_each_vector(int64_t first, int64_t stop, Function function) {
    int64_t i = first;
    for (; i + LANES <= stop; i += LANES) function(i, LANES);
    if (i < stop) function(i, static_cast<int>(stop - i));
}

template <int LANES, class Element>
inline Floats<LANES> load_up_to(const void* from, int64_t at, int count) {
    const Element* const start = static_cast<const Element*>(from) + at;
    if (count == LANES) return load_kind<LANES>(start);
    Element rest[LANES] = {};
    __builtin_memcpy(rest, start, count * sizeof(Element));
    return load_kind<LANES>(rest);
}

template <int LANES, class Element>
inline void store_up_to(void* to, int64_t at, int count, Floats<LANES> x) {
    Element* const start = static_cast<Element*>(to) + at;
    if (count == LANES) return store_kind<LANES>(start, x);
    Element rest[LANES];
    store_kind<LANES>(rest, x);
    __builtin_memcpy(start, rest, count * sizeof(Element));
}

template <int LANES, class Element>
void swiglu_forward_of(const SwigluPass& pass, int64_t first, int64_t stop) {
    for_each_vector<LANES, Element>(first, stop, [&](int64_t i, int count) {
        const Floats<LANES> gate = load_up_to<LANES, Element>(pass.gate, i, count);
        const Floats<LANES> up = load_up_to<LANES, Element>(pass.up, i, count);
        store_up_to<LANES, Element>(pass.out, i, count, gate * sigmoid<LANES>(gate) * up);
    });
}

template <int LANES, class Element>
void swiglu_backward_of(const SwigluPass& pass, int64_t first, int64_t stop) {
    for_each_vector<LANES, Element>(first, stop, [&](int64_t i, int count) {
        const Floats<LANES> gate = load_up_to<LANES, Element>(pass.gate, i, count);
        const Floats<LANES> up = load_up_to<LANES, Element>(pass.up, i, count);
        const Floats<LANES> gradient = load_up_to<LANES, Element>(pass.out_gradient, i, count);
        const Floats<LANES> factor = sigmoid<LANES>(gate), silu = gate * factor;
        store_up_to<LANES, Element>(pass.up_gradient, i, count, gradient * silu);
        store_up_to<LANES, Element>(pass.gate_gradient, i, count, gradient * up * (factor + silu * (1.0f - factor)));
    });
}

template <int LANES>
void swiglu_forward(const SwigluPass& pass, int64_t first, int64_t stop) {
    if (pass.kind == Kind::kBfloat16) swiglu_forward_of<LANES, bfloat16>(pass, first, stop);
    else swiglu_forward_of<LANES, float>(pass, first, stop);
}

template <int LANES>
void swiglu_backward(const SwigluPass& pass, int64_t first, int64_t stop) {
    if (pass.kind == Kind::kBfloat16) swiglu_backward_of<LANES, bfloat16>(pass, first, stop);
    else swiglu_backward_of<LANES, float>(pass, first, stop);
}

template <int LANES>
constexpr codemill::TrainingRows kTrainingRows = {norm_forward<LANES>, norm_backward<LANES>, swiglu_forward<LANES>,
                                                  swiglu_backward<LANES>};

}  // namespace
