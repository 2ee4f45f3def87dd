// The body of every variant of the row kernels. It calls no library code: see vectors.h.
#pragma once

#include "kv_write.h"
#include "row_kernels.h"
#include "vectors.h"

namespace {

// function(offset, vector) for every vector of x[size]; what it returns is stored to out.
template <int LANES, class Function>
inline void map(const float* x, int size, float* out, Function function) {
    int i = 0;
    for (; i + LANES <= size; i += LANES) store<LANES>(out + i, function(i, load<LANES>(x + i), LANES));
    if (i < size) store_some<LANES>(out + i, function(i, load_some<LANES>(x + i, size - i), size - i), size - i);
}

template <int LANES>
inline Floats<LANES> load_up_to(const float* from, int count) {
    return count == LANES ? load<LANES>(from) : load_some<LANES>(from, count);
}

template <int LANES>
inline void store_up_to(float* to, Floats<LANES> x, int count) {
    count == LANES ? store<LANES>(to, x) : store_some<LANES>(to, x, count);
}

template <int LANES>
void rms_norm(const float* x, const float* weight, float eps, int size, float* out) {
    const float mean = sum_of_squares<LANES>(x, size) / static_cast<float>(size);
    const float scale = 1.0f / __builtin_sqrtf(mean + eps);
    map<LANES>(x, size, out, [&](int i, Floats<LANES> values, int count) {
        return values * scale * load_up_to<LANES>(weight + i, count);
    });
}

template <int LANES>
void rotate_half(float* x, const float* cos, const float* sin, int rotated) {
    const int half = rotated / 2;
    for (int i = 0; i < half; i += LANES) {
        const int count = half - i < LANES ? half - i : LANES;
        const Floats<LANES> first = load_up_to<LANES>(x + i, count), second = load_up_to<LANES>(x + half + i, count);
        const auto turned = [&](Floats<LANES> own, Floats<LANES> other, int at) {
            return own * load_up_to<LANES>(cos + at, count) + other * load_up_to<LANES>(sin + at, count);
        };
        const Floats<LANES> new_first = turned(first, second, i), new_second = turned(second, first, half + i);
        store_up_to<LANES>(x + i, new_first, count);
        store_up_to<LANES>(x + half + i, new_second, count);
    }
}

template <int LANES>
void silu_times(float* gate, const float* up, int size) {
    map<LANES>(gate, size, gate, [&](int i, Floats<LANES> x, int count) {
        return x * sigmoid<LANES>(x) * load_up_to<LANES>(up + i, count);
    });
}

template <int LANES>
void sigmoid_times(float* x, const float* gate, int size) {
    map<LANES>(x, size, x, [&](int i, Floats<LANES> values, int count) {
        return values * sigmoid<LANES>(load_up_to<LANES>(gate + i, count));
    });
}

template <int LANES>
void add_scaled(float* x, float scale, const float* y, int size) {
    map<LANES>(x, size, x, [&](int i, Floats<LANES> values, int count) {
        return values + scale * load_up_to<LANES>(y + i, count);
    });
}

template <int LANES>
float exponentials(float* x, int size) {
    float top = x[0];
    for (int i = 1; i < size; ++i) top = x[i] > top ? x[i] : top;
    map<LANES>(x, size, x, [&](int, Floats<LANES> values, int) { return exponential<LANES>(values - top); });
    float sum = 0;
    for (int i = 0; i < size; ++i) sum += x[i];
    return sum;
}

template <int LANES>
constexpr codemill::RowKernels kRowKernels = {rms_norm<LANES>,      rotate_half<LANES>, silu_times<LANES>,
                                              sigmoid_times<LANES>, add_scaled<LANES>,  exponentials<LANES>,
                                              write_kv<LANES>};

}  // namespace
