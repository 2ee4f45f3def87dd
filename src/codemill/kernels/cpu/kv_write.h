// Writes a key or value into a KV cache: rounded to bf16, or quantised to int8 with a scale of its own. See vectors.h
// for how to include it.
#pragma once

#include <cstddef>

#include "dtype.h"
#include "vectors.h"

namespace {

// Below this a head vector is stored as zeros: its scale would lose bits, or be zero and divide.
constexpr float kLeastMaximum = 1e-30f;

template <int LANES>
inline void store_bfloat16(bfloat16* to, Floats<LANES> x) {
    typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
    const Halves bits = __builtin_convertvector(rounded_to_bfloat16<LANES>(x) >> 16, Halves);
    __builtin_memcpy(to, &bits, sizeof bits);
}

// The nearest integers, even ones where two are as near.
template <int LANES>
inline void store_int8(int8_t* to, Floats<LANES> x) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
    const Floats<LANES> whole = (x + kRounder) - kRounder;
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(whole, typename Lanes<LANES>::Ints), Bytes);
    __builtin_memcpy(to, &bytes, sizeof bytes);
}

// The largest absolute value of from[size]; NaN where there is one, or an infinity.
template <int LANES>
inline float largest(const float* from, int size) {
    Floats<LANES> most = {}, poison = {};
    for (int k = 0; k < size; k += LANES) {
        const Floats<LANES> x = load<LANES>(from + k);
        most = maximum<LANES>(x < 0 ? -x : x, most);
        poison += x - x;
    }
    float top = 0, spoilt = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        top = most[lane] > top ? most[lane] : top;
        spoilt += poison[lane];
    }
    return top + spoilt;
}

template <int LANES>
inline void write_bfloat16(bfloat16* to, const float* from, int head_dim) {
    const int whole = head_dim / LANES * LANES;
    for (int k = 0; k < whole; k += LANES) store_bfloat16<LANES>(to + k, load<LANES>(from + k));
    for (int k = whole; k < head_dim; ++k) store_bfloat16<1>(to + k, load<1>(from + k));
}

// Returns the scale.
template <int LANES>
inline float write_int8(int8_t* to, const float* from, int head_dim) {
    const int whole = head_dim / LANES * LANES;
    const float body = largest<LANES>(from, whole), rest = largest<1>(from + whole, head_dim - whole);
    const float top = (body > rest ? body : rest) + (body - body) + (rest - rest);
    if (!(top >= kLeastMaximum)) {
        for (int k = 0; k < head_dim; ++k) to[k] = 0;
        return top == top ? 0.0f : top;
    }
    const float scale = top / 127.0f;
    for (int k = 0; k < whole; k += LANES) store_int8<LANES>(to + k, load<LANES>(from + k) / scale);
    for (int k = whole; k < head_dim; ++k) store_int8<1>(to + k, load<1>(from + k) / scale);
    return scale;
}

// from[head_dim] -> the head vector with number `vector` = slot * H_kv + head of a cache. A number of an int8 cache is
// the nearest integer to the number over the vector's scale, which is the largest absolute value / 127. What has NaN or
// infinity becomes NaN as a whole.
template <int LANES>
inline void write_kv(void* cache, float* scales, codemill::Dtype dtype, size_t vector, const float* from, int head_dim) {
    const size_t first = vector * head_dim;
    if (dtype == codemill::Dtype::kInt8) {
        scales[vector] = write_int8<LANES>(static_cast<int8_t*>(cache) + first, from, head_dim);
    } else if (dtype == codemill::Dtype::kBfloat16) {
        write_bfloat16<LANES>(static_cast<bfloat16*>(cache) + first, from, head_dim);
    } else {
        __builtin_memcpy(static_cast<float*>(cache) + first, from, head_dim * sizeof(float));
    }
}

}  // namespace
