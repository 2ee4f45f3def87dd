// For x86-64 with AVX-512 and its dot products of bytes (VNNI).
#include "product.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <utility>

#include "targets.h"

BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include "product_variant.h"

namespace {

struct Avx512 {
    static constexpr int kLanes = 16;
    static constexpr int kMaxRows = 8;                      // that fit the registers with one block
    static constexpr int kPanelRows = 6, kPanelBlocks = 2;  // the same with two
    template <int BITS>
    static constexpr int kCentred = 0;  // the weights are taken as unsigned
    using Bytes = __m512i;
    using Ints = Lanes<16>::Ints;

    static inline Bytes load(const uint8_t* from) { return _mm512_loadu_si512(from); }

    static inline Floats<16> load_scales(const uint16_t* from) {
        return (Floats<16>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }

    // The `part`th four weights of each lane.
    template <int BITS>
    static inline Bytes unpack(Bytes x, int part) {
        if constexpr (BITS == 8) return x;
        return _mm512_and_si512(part ? _mm512_srli_epi16(x, 4) : x, _mm512_set1_epi8(15));
    }

    template <int BITS>
    static inline Ints dot4(Ints sum, Bytes weights, int32_t inputs) {
        return (Ints)_mm512_dpbusd_epi32((__m512i)sum, weights, _mm512_set1_epi32(inputs));
    }

    static inline Ints round(Floats<16> x) { return (Ints)_mm512_cvtps_epi32((__m512)x); }

    static inline Floats<16> fma(Floats<16> a, Floats<16> b, Floats<16> c) {
        return (Floats<16>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    }
};

}  // namespace
END_TARGET

const codemill::ProductKernels* codemill::product_kernels_avx512() {
    const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512vnni");
    return supported ? &kProductKernels<Avx512> : nullptr;
}

#else

const codemill::ProductKernels* codemill::product_kernels_avx512() { return nullptr; }

#endif
