// The sums over all lanes of several vectors, in one tree: see vectors.h for how to include it.
#pragma once

#include <cstddef>

#include "vectors.h"

namespace {

// Lane i of the result is a[i] + a[i + STRIDE] where i has no bit STRIDE, else b[i] + b[i - STRIDE].
template <int LANES, int STRIDE, int... I>
inline Floats<LANES> fold_lanes(Floats<LANES> a, Floats<LANES> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (I & STRIDE ? I + LANES : I)...) +
           __builtin_shufflevector(a, b, (I & STRIDE ? I - STRIDE + LANES : I + STRIDE)...);
#else
    using Ints = typename Lanes<LANES>::Ints;
    return __builtin_shuffle(a, b, Ints{(I & STRIDE ? I + LANES : I)...}) +
           __builtin_shuffle(a, b, Ints{(I & STRIDE ? I - STRIDE + LANES : I + STRIDE)...});
#endif
}

template <int LANES, int STRIDE>
inline Floats<LANES> fold_lanes(Floats<LANES> a, Floats<LANES> b) {
    return fold_lanes<LANES, STRIDE>(a, b, std::make_integer_sequence<int, LANES>());
}

// Four vectors at once: bits LANES / 2 and LANES / 4 of a lane's number now say whose it is.
template <int LANES>
inline Floats<LANES> fold_four(const Floats<LANES>* x) {
    constexpr int kHalf = LANES / 2;
    return fold_lanes<LANES, kHalf / 2>(fold_lanes<LANES, kHalf>(x[0], x[1]), fold_lanes<LANES, kHalf>(x[2], x[3]));
}

template <int LANES, int... I>
inline Floats<LANES> row_by_row(Floats<LANES> x, std::integer_sequence<int, I...>) {
    constexpr auto lane = [](int i) {
        const int vector = i % 4, row = i / 4;
        const int inside = LANES == 16 ? row % 2 * 2 + row / 2 : row;
        return vector % 2 * (LANES / 2) + vector / 2 * (LANES / 4) + inside;
    };
#if defined(__clang__)
    return __builtin_shufflevector(x, x, lane(I)...);
#else
    return __builtin_shuffle(x, typename Lanes<LANES>::Ints{lane(I)...});
#endif
}

// to[row * stride + i] = the sum of all lanes of x[row][i]. A row's sums do not depend on how many rows there are.
template <int LANES, int ROWS>
inline void store_sums_of(float* to, size_t stride, const Floats<LANES> (&x)[ROWS][4]) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    constexpr int kAtOnce = LANES / 4;
    for (int first = 0; first < ROWS; first += kAtOnce) {
        const auto folded = [&](int row) { return fold_four<LANES>(x[first + (first + row < ROWS ? row : 0)]); };
        Floats<LANES> sums = folded(0);
        if constexpr (LANES == 8) sums = fold_lanes<LANES, 1>(sums, folded(1));
        if constexpr (LANES == 16) {
            const Floats<LANES> even = fold_lanes<LANES, 2>(sums, folded(1));
            sums = fold_lanes<LANES, 1>(even, ROWS > 2 ? fold_lanes<LANES, 2>(folded(2), folded(3)) : even);
        }
        const Floats<LANES> ordered = row_by_row<LANES>(sums, lanes);
        for (int row = 0; row < kAtOnce && first + row < ROWS; ++row) {
            const float* from = reinterpret_cast<const float*>(&ordered) + 4 * row;
            __builtin_memcpy(to + (first + row) * stride, from, 4 * sizeof(float));
        }
    }
}

}  // namespace
