// For x86-64 with AVX2 and FMA.
#include "product.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <utility>

#include "processor.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma,f16c")
#include "product_variant.h"

namespace {

struct Avx2 {
    static constexpr int kLanes = 8;
    static constexpr int kMaxRows = 4;
    static constexpr int kPanelRows = 4, kPanelBlocks = 1;
    // 8-bit weights are made signed: products of unsigned ones would overflow the 16 bits in which pairs are added.
    template <int BITS>
    static constexpr int kCentred = BITS == 8 ? 128 : 0;
    using Bytes = __m256i;
    using Ints = Lanes<8>::Ints;

    static inline Bytes load(const uint8_t* from) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    }

    static inline Floats<8> load_scales(const uint16_t* from) {
        return (Floats<8>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }

    template <int BITS>
    static inline Bytes unpack(Bytes x, int part) {
        if constexpr (BITS == 8) return _mm256_xor_si256(x, _mm256_set1_epi8(-128));
        return _mm256_and_si256(part ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
    }

    template <int BITS>
    static inline Ints dot4(Ints sum, Bytes weights, int32_t inputs) {
        __m256i x = _mm256_set1_epi32(inputs);
        if constexpr (BITS == 8) {  // |w| * (x with the sign of w)
            x = _mm256_sign_epi8(x, weights);
            weights = _mm256_abs_epi8(weights);
        }
        const __m256i pairs = _mm256_maddubs_epi16(weights, x);
        return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }

    static inline Floats<8> fma(Floats<8> a, Floats<8> b, Floats<8> c) {
        return (Floats<8>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    }
};

}  // namespace
END_TARGET

const codemill::ProductKernels* codemill::product_kernels_avx2() {
    static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    return supported ? &kProductKernels<Avx2> : nullptr;
}

#else

const codemill::ProductKernels* codemill::product_kernels_avx2() { return nullptr; }

#endif
