// Products of training on AMX's tiles. See vectors.h for how to include it.
//
// The left side of a product lies in memory as [block of 16 rows][step of 32 columns] tiles, the right side as panels of 32
// columns, each [side of 16 columns][step of 32 rows].
#pragma once

#include "attention_tiles.h"

namespace {

constexpr int kRowStep = 2 * kSide;  // rows and columns of a 2 x 2 product

inline size_t round_up(size_t count) { return (count + kRowStep - 1) / kRowStep * kRowStep; }

// 32 numbers as bf16.
inline __m512i load_numbers(const uint16_t* from) { return _mm512_loadu_si512(from); }
inline __m512i load_numbers(const float* from) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + kSide), _mm512_loadu_ps(from));
}

inline __m512 to_floats(__m256i x) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
inline __m256i to_bfloat16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline __m512 load_bfloat16(const uint16_t* from) { return to_floats(_mm256_loadu_si256((const __m256i*)from)); }

// load(row) has 32 numbers of a row -> words of rows 2i and 2i + 1, two tiles of 16 columns.
template <class Load>
inline void pair_rows(const Load& load, __m512i* left, __m512i* right) {
    alignas(64) static constexpr uint16_t kLeft[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = _mm512_load_si512(kLeft), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    for (int i = 0; i < kSide; ++i) {
        const __m512i even = load(2 * i), odd = load(2 * i + 1);
        left[i] = _mm512_permutex2var_epi16(even, first, odd);
        right[i] = _mm512_permutex2var_epi16(even, second, odd);
    }
}

inline void store_tile(Word* to, const __m512i* tile) {
    for (int i = 0; i < kSide; ++i) _mm512_store_si512(to + i * kSide, tile[i]);
}

// The left side of a product: rows by columns, in tiles.
struct Left {
    Word* tiles;
    int steps;

    Word* tile(size_t block, int step) const { return tiles + (block * steps + step) * kTile; }
    uint16_t* numbers(size_t row, int step) const {
        return reinterpret_cast<uint16_t*>(tile(row / kSide, step) + row % kSide * kSide);
    }
    static size_t words(size_t rows, size_t columns) { return rows * columns / 2; }
};

// Two blocks of 16 columns of the right side.
struct Panel {
    Word* tiles;
    int steps;

    Word* tile(int side, int step) const { return tiles + (side * steps + step) * kTile; }
};

// Rows of 32 numbers -> the tiles of a panel at a step.
inline void put_pairs(const __m512i* rows, const Panel& panel, int step) {
    __m512i first[kSide], second[kSide];
    pair_rows([&](int i) { return rows[i]; }, first, second);
    store_tile(panel.tile(0, step), first);
    store_tile(panel.tile(1, step), second);
}

// use(row, sums): the 32 sums of each row, the last of which may be of filled-up rows. The first `steps` of
// both sides count.
template <class Use>
inline void multiply(const Left& left, size_t num_rows, const Panel& panel, int steps, const Use& use) {
    alignas(64) float sums[4 * kTile];
    for (size_t row = 0; row < num_rows; row += kRowStep) {
        const size_t block = row / kSide;
        multiply_tiles(left.tile(block, 0), left.tile(block + 1, 0), kTile, panel.tile(0, 0), panel.tile(1, 0), kTile,
                       steps, sums);
        for (int i = 0; i < kRowStep; ++i) {
            const float* from = sums + i / kSide * 2 * kTile + i % kSide * kSide;
            use(row + i, _mm512_load_ps(from), _mm512_load_ps(from + kTile));
        }
    }
}

template <class Use>
inline void multiply(const Left& left, size_t num_rows, const Panel& panel, const Use& use) {
    multiply(left, num_rows, panel, left.steps, use);
}

// The panel of 32 columns of a matrix; load(row) has those of a row.
template <class Load>
void load_columns(const Load& load, const Panel& panel) {
    for (int step = 0; step < panel.steps; ++step) {
        __m512i left[kSide], right[kSide];
        pair_rows([&](int i) { return load(size_t(step) * kStep + i); }, left, right);
        store_tile(panel.tile(0, step), left);
        store_tile(panel.tile(1, step), right);
    }
}

// 32 rows of a left side, at `first`, from 32 columns of a matrix; load(row) has those of a row.
template <class Load>
void load_transposed(const Load& load, size_t first, const Left& left) {
    for (int step = 0; step < left.steps; ++step) {
        __m512i upper[kSide], lower[kSide];
        pair_rows([&](int i) { return load(size_t(step) * kStep + i); }, upper, lower);
        transpose(upper);
        transpose(lower);
        store_tile(left.tile(first / kSide, step), upper);
        store_tile(left.tile(first / kSide + 1, step), lower);
    }
}

}  // namespace
