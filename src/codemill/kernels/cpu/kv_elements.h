// The numbers of a KV cache in vectors: each dtype is loaded in the order that costs least, and queries and outputs are
// brought into that order and back. See vectors.h for how to include it.
#pragma once

#include <cstddef>
#if defined(__x86_64__)
#include <immintrin.h>  // to be included before the instructions are chosen
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "dtype.h"
#include "vectors.h"

namespace {

// GCC takes a byte at a time for its own conversion of such vectors, hence the intrinsics.
template <int LANES>
inline Floats<LANES> load_bytes(const int8_t* from) {
#if defined(__x86_64__)
    if constexpr (LANES == 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return (Floats<LANES>)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
    } else if constexpr (LANES == 8) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        return (Floats<LANES>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    } else {
        const __m128i bytes = _mm_loadu_si32(from), pairs = _mm_unpacklo_epi8(bytes, bytes);
        const __m128i integers = _mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24);
        return (Floats<LANES>)_mm_cvtepi32_ps(integers);
    }
#elif defined(__aarch64__)
    static_assert(LANES == 4);
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return (Floats<LANES>)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
#else
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes bytes;
    __builtin_memcpy(&bytes, from, LANES);
    return __builtin_convertvector(__builtin_convertvector(bytes, typename Lanes<LANES>::Ints), Floats<LANES>);
#endif
}

template <int LANES>
inline Pair<LANES> load_pair(const int8_t* from) {
    return {load_bytes<LANES>(from), load_bytes<LANES>(from + LANES)};
}

// Lane i of the result is lane 2 * i + ODD of a and b, laid side by side.
template <int LANES, int ODD, int... I>
inline Floats<LANES> unzip(Floats<LANES> a, Floats<LANES> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (2 * I + ODD)...);
#else
    return __builtin_shuffle(a, b, typename Lanes<LANES>::Ints{(2 * I + ODD)...});
#endif
}

// Neighbouring numbers -> as `load_pair` gives those of an Element.
template <int LANES, class Element>
inline Pair<LANES> in_order_of(Pair<LANES> x) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    if constexpr (sizeof(Element) != sizeof(bfloat16)) return x;
    return {unzip<LANES, 0>(x.first, x.second, lanes), unzip<LANES, 1>(x.first, x.second, lanes)};
}

// And back.
template <int LANES, class Element>
inline Pair<LANES> in_natural_order(Pair<LANES> x) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    if constexpr (sizeof(Element) != sizeof(bfloat16)) return x;
    return {zip_from<LANES, 0>(x.first, x.second, lanes), zip_from<LANES, LANES / 2>(x.first, x.second, lanes)};
}

// 2 * LANES numbers of a query, from number `index` on, in the order of a cache of Element.
template <int LANES, class Element>
inline Pair<LANES> load_query(const void* query, codemill::Dtype dtype, size_t index) {
    if (dtype == codemill::Dtype::kFloat32) {
        return in_order_of<LANES, Element>(load_pair<LANES>(static_cast<const float*>(query) + index));
    }
    const Pair<LANES> x = load_pair<LANES>(static_cast<const bfloat16*>(query) + index);
    return in_order_of<LANES, Element>(in_natural_order<LANES, bfloat16>(x));
}

// The same for an output.
template <int LANES, class Element>
inline void store_output(void* out, codemill::Dtype dtype, size_t index, Pair<LANES> x) {
    const Pair<LANES> natural = in_natural_order<LANES, Element>(x);
    if (dtype == codemill::Dtype::kFloat32) {
        store_pair<LANES>(static_cast<float*>(out) + index, natural);
    } else {
        store_pair<LANES>(static_cast<bfloat16*>(out) + index, in_order_of<LANES, bfloat16>(natural));
    }
}

}  // namespace
