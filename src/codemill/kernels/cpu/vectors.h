// Vectors of LANES floats in the compilers' vector extension, so that one source serves every instruction set.
//
// Included by the variants after they have chosen their instructions: everything here has internal linkage and calls no
// library code, which might be compiled for an older processor elsewhere and be mixed up by the linker.
#pragma once

#include <cstdint>
#include <utility>

namespace {

struct bfloat16 {
    uint16_t bits;
};

template <int LANES>
struct Lanes {
    typedef float Floats __attribute__((vector_size(LANES * 4)));
    typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
    typedef uint32_t Unsigned __attribute__((vector_size(LANES * 4)));
};

template <int LANES>
using Floats = typename Lanes<LANES>::Floats;

// Vector registers that there are: what loops keep in them depends on it.
#if defined(__aarch64__)
template <int LANES>
constexpr int kRegisters = 32;
#else
template <int LANES>
constexpr int kRegisters = LANES == 16 ? 32 : 16;
#endif

template <int LANES>
inline Floats<LANES> load(const float* from) {
    Floats<LANES> x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

template <int LANES>
inline void store(float* to, Floats<LANES> x) {
    __builtin_memcpy(to, &x, sizeof x);
}

// 2 * LANES neighbouring numbers. Of bfloat16, `first` has the even ones and `second` the odd ones, which takes no
// shuffle: one is the low half of a 32-bit lane, one the high half. Whoever sums over numbers need not care.
template <int LANES>
struct Pair {
    Floats<LANES> first, second;
};

template <int LANES>
inline Pair<LANES> load_pair(const float* from) {
    return {load<LANES>(from), load<LANES>(from + LANES)};
}

template <int LANES>
inline Pair<LANES> load_pair(const bfloat16* from) {
    typename Lanes<LANES>::Unsigned bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return {(Floats<LANES>)(bits << 16), (Floats<LANES>)(bits & 0xffff0000u)};
}

template <int LANES>
inline void store_pair(float* to, Pair<LANES> x) {
    store<LANES>(to, x.first);
    store<LANES>(to + LANES, x.second);
}

// The bits of a bfloat16 in the high half of each lane, rounded to the nearest even; NaN stays NaN.
template <int LANES>
inline typename Lanes<LANES>::Unsigned rounded_to_bfloat16(Floats<LANES> x) {
    using Unsigned = typename Lanes<LANES>::Unsigned;
    const Unsigned bits = (Unsigned)x, is_nan = (Unsigned)(x != x);
    return (((bits + 0x7fffu + ((bits >> 16) & 1u)) & ~is_nan) | (0x7fc00000u & is_nan)) & 0xffff0000u;
}

template <int LANES>
inline void store_pair(bfloat16* to, Pair<LANES> x) {
    const auto bits = (rounded_to_bfloat16<LANES>(x.first) >> 16) | rounded_to_bfloat16<LANES>(x.second);
    __builtin_memcpy(to, &bits, sizeof bits);
}

template <int LANES>
inline Floats<LANES> maximum(Floats<LANES> a, Floats<LANES> b) {
    return a > b ? a : b;
}

// e^x for x <= 0: 2^n times a polynomial for the rest. 0 below -87, where fp32 runs out; NaN stays NaN.
template <int LANES>
inline Floats<LANES> exponential(Floats<LANES> x) {
    using Ints = typename Lanes<LANES>::Ints;
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
    const Floats<LANES> shifted = x * 1.44269504f + kRounder;
    const Floats<LANES> whole = shifted - kRounder;
    const Floats<LANES> rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats<LANES> sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;  // the polynomial of Cephes' expf
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * (rest * rest) + rest + 1.0f;
    // Unsigned, as it overflows where the result is 0.
    const Floats<LANES> power = (Floats<LANES>)(((typename Lanes<LANES>::Unsigned)shifted << 23) + (127u << 23));
    return (Floats<LANES>)((Ints)(sum * power) & ~(x < -87.0f));
}


// The lanes of a and b by turns, from lane FROM on.
template <int LANES, int FROM, int... I>
inline Floats<LANES> zip_from(Floats<LANES> a, Floats<LANES> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (FROM + I / 2 + I % 2 * LANES)...);
#else
    return __builtin_shuffle(a, b, typename Lanes<LANES>::Ints{(FROM + I / 2 + I % 2 * LANES)...});
#endif
}

// Lane i of the result is lane FROM + i of x, counted round.
template <int LANES, int FROM, int... I>
inline Floats<LANES> rotate(Floats<LANES> x, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, x, ((FROM + I) % LANES)...);
#else
    return __builtin_shuffle(x, typename Lanes<LANES>::Ints{((FROM + I) % LANES)...});
#endif
}

// The sums over all lanes of four vectors -> to[4].
template <int LANES>
inline void store_sums(float* to, const Floats<LANES>* rows) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    const auto add = [lanes](Floats<LANES> a, Floats<LANES> b) {
        return zip_from<LANES, 0>(a, b, lanes) + zip_from<LANES, LANES / 2>(a, b, lanes);
    };
    Floats<LANES> sums = add(add(rows[0], rows[2]), add(rows[1], rows[3]));
    // Lane i now belongs to row i % 4.
    if constexpr (LANES == 16) sums += rotate<LANES, 8>(sums, lanes);
    if constexpr (LANES >= 8) sums += rotate<LANES, 4>(sums, lanes);
    __builtin_memcpy(to, &sums, 4 * sizeof(float));
}

// `count` numbers in the first lanes, fewer than LANES; zeros in the others, and from there nothing is read.
template <int LANES>
inline Floats<LANES> load_some(const float* from, int count) {
    Floats<LANES> x = {};
    __builtin_memcpy(&x, from, count * sizeof(float));
    return x;
}

template <int LANES>
inline void store_some(float* to, Floats<LANES> x, int count) {
    __builtin_memcpy(to, &x, count * sizeof(float));
}

// The numbers that `bits` are in fp16, which not every compiler has as a type.
template <int LANES>
inline Floats<LANES> from_float16(typename Lanes<LANES>::Unsigned bits) {
    using Ints = typename Lanes<LANES>::Ints;
    constexpr int kExponent = (127 - 15) << 23;  // what fp32 adds to an exponent of fp16; twice for infinity and NaN
    const Ints magnitude = (Ints)(bits & 0x7fffu), shifted = (magnitude << 13) + kExponent;
    const Ints number = magnitude >= 0x7c00 ? shifted + kExponent : shifted;
    const Floats<LANES> tiny = __builtin_convertvector(magnitude, Floats<LANES>) * 0x1p-24f;
    const Ints unsigned_bits = magnitude < 0x400 ? (Ints)tiny : number;
    return (Floats<LANES>)(unsigned_bits | (Ints)((bits & 0x8000u) << 16));
}

inline float to_float(float x) { return x; }

inline float to_float(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float number;
    __builtin_memcpy(&number, &bits, sizeof bits);
    return number;
}

// The bfloat16 that `x` is; what bfloat16 does not have is cut off.
inline bfloat16 upper_half(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return {static_cast<uint16_t>(bits >> 16)};
}

template <int LANES>
inline Floats<LANES> magnitude(Floats<LANES> x) {
    return (Floats<LANES>)((typename Lanes<LANES>::Ints)x & 0x7fffffff);
}

// 1 / (1 + e^-x). The divisor 1 + e^-|x| lies in [1, 2], where a parabola is within 1 % of the reciprocal and two of
// Newton's steps make that exact, in less time than a division.
template <int LANES>
inline Floats<LANES> sigmoid(Floats<LANES> x) {
    const Floats<LANES> e = exponential<LANES>(-magnitude<LANES>(x)), divisor = e + 1.0f;
    Floats<LANES> inverse = (divisor * (32.0f / 99) - 16.0f / 11) * divisor + 70.0f / 33;
    for (int step = 0; step < 2; ++step) inverse += inverse * (1.0f - divisor * inverse);
    return x >= 0.0f ? inverse : e * inverse;
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), the latter as 2 atanh(s) with s <= 1/3, which keeps small numbers exact.
template <int LANES>
inline Floats<LANES> softplus(Floats<LANES> x) {
    const Floats<LANES> e = exponential<LANES>(-magnitude<LANES>(x)), s = e / (e + 2.0f), square = s * s;
    Floats<LANES> sum = Floats<LANES>{} + 1.0f / 15;
    for (float odd = 13; odd >= 1; odd -= 2) sum = sum * square + 1.0f / odd;
    return (x > 0.0f ? x : Floats<LANES>{}) + 2.0f * s * sum;
}

// The sum over all lanes.
template <int LANES>
inline float total(Floats<LANES> x) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    if constexpr (LANES == 16) x += rotate<LANES, 8>(x, lanes);
    if constexpr (LANES >= 8) x += rotate<LANES, 4>(x, lanes);
    x += rotate<LANES, 2>(x, lanes);
    x += rotate<LANES, 1>(x, lanes);
    return x[0];
}

// The largest lane.
template <int LANES>
inline int32_t highest(typename Lanes<LANES>::Ints x) {
    using Ints = typename Lanes<LANES>::Ints;
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    const auto fold = [&](Ints y) { x = x > y ? x : y; };
    if constexpr (LANES == 16) fold((Ints)rotate<LANES, 8>((Floats<LANES>)x, lanes));
    if constexpr (LANES >= 8) fold((Ints)rotate<LANES, 4>((Floats<LANES>)x, lanes));
    fold((Ints)rotate<LANES, 2>((Floats<LANES>)x, lanes));
    fold((Ints)rotate<LANES, 1>((Floats<LANES>)x, lanes));
    return x[0];
}

// The sum over all lanes.
template <int LANES>
inline int32_t total(typename Lanes<LANES>::Ints x) {
    using Ints = typename Lanes<LANES>::Ints;
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    if constexpr (LANES == 16) x += (Ints)rotate<LANES, 8>((Floats<LANES>)x, lanes);
    if constexpr (LANES >= 8) x += (Ints)rotate<LANES, 4>((Floats<LANES>)x, lanes);
    x += (Ints)rotate<LANES, 2>((Floats<LANES>)x, lanes);
    x += (Ints)rotate<LANES, 1>((Floats<LANES>)x, lanes);
    return x[0];
}

template <int LANES>
inline float sum_of_squares(const float* x, int count) {
    Floats<LANES> sum = {};
    int i = 0;
    for (; i + LANES <= count; i += LANES) sum += load<LANES>(x + i) * load<LANES>(x + i);
    if (i < count) sum += load_some<LANES>(x + i, count - i) * load_some<LANES>(x + i, count - i);
    return total<LANES>(sum);
}

}  // namespace
