// Operations on AMX's tiles of 16 rows by 16 words, a word being two bf16 numbers or a float. See vectors.h for how to
// include it.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "kv_elements.h"

namespace {

constexpr int kSide = 16;
constexpr int kTile = kSide * kSide;  // words
constexpr int kStep = 2 * kSide;      // numbers that one tile product sums over
using Word = uint32_t;

void configure_tiles() {
    struct alignas(64) Configuration {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } configuration;
    for (int i = 0; i < 8; ++i) {
        configuration.row_bytes[i] = 64;
        configuration.rows[i] = kSide;
    }
    asm volatile("" : : "r"(&configuration) : "memory");  // GCC takes the instruction to read the first eight bytes alone
    _tile_loadconfig(&configuration);
}

// out = the four tiles a0 b0, a0 b1, a1 b0, a1 b1, summed over `steps`; the next step's tiles lie `stride` words on.
inline void multiply_tiles(const Word* a0, const Word* a1, size_t a_stride, const Word* b0, const Word* b1,
                           size_t b_stride, int steps, float* out) {
    asm volatile("" : : : "memory");  // what was stored before is there: GCC does not know that tiles are loaded
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int step = 0; step < steps; ++step) {
        _tile_loadd(4, a0 + step * a_stride, 64);
        _tile_loadd(6, b0 + step * b_stride, 64);
        _tile_loadd(7, b1 + step * b_stride, 64);
        _tile_loadd(5, a1 + step * a_stride, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + kTile, 64);
    _tile_stored(2, out + 2 * kTile, 64);
    _tile_stored(3, out + 3 * kTile, 64);
}

// 32 numbers of a head vector as bf16.
inline __m512i load_step(const bfloat16* from) { return _mm512_loadu_si512(from); }
inline __m512i load_step(const int8_t* from) {
    const __m512 low = (__m512)load_bytes<16>(from), high = (__m512)load_bytes<16>(from + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);  // exact
}

// [16][16] words, transposed.
inline void transpose(__m512i* x) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int half = 0; half < 16; half += 8) {
        for (int i = 0; i < 4; ++i) {
            y[half + i] = _mm512_shuffle_i32x4(x[half + i], x[half + 4 + i], 0x88);
            y[half + 4 + i] = _mm512_shuffle_i32x4(x[half + i], x[half + 4 + i], 0xdd);
        }
    }
    for (int i = 0; i < 8; ++i) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0x88);
        x[8 + i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0xdd);
    }
}

// Floats as sums of two bf16 numbers, that of each `even` lane in the low half of a word, of `odd` in the high half.
struct Split {
    __m512i high, low;
};

inline Split split(__m512 even, __m512 odd) {
    const __m512i top = _mm512_set1_epi32(static_cast<int>(0xffff0000u)), half = _mm512_set1_epi32(0x8000);
    const __m512i high_even = _mm512_and_si512((__m512i)even, top), high_odd = _mm512_and_si512((__m512i)odd, top);
    const __m512i low_even = _mm512_add_epi32((__m512i)(even - (__m512)high_even), half);
    const __m512i low_odd = _mm512_add_epi32((__m512i)(odd - (__m512)high_odd), half);
    return {_mm512_or_si512(_mm512_srli_epi32(high_even, 16), high_odd),
            _mm512_or_si512(_mm512_srli_epi32(low_even, 16), _mm512_and_si512(low_odd, top))};
}

// Two tiles, one behind the other.
inline void store_tiles(Word* to, const __m512i* high, const __m512i* low) {
    for (int i = 0; i < kSide; ++i) {
        _mm512_store_si512(to + i * kSide, high[i]);
        _mm512_store_si512(to + kTile + i * kSide, low[i]);
    }
}

}  // namespace
