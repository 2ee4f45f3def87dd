// For every processor: vectors of four floats, and whatever the compiler makes of the products.
#include "product_variant.h"

namespace {

struct Plain {
    static constexpr int kLanes = 4;
    static constexpr int kMaxRows = 4;
    static constexpr int kPanelRows = 4, kPanelBlocks = 1;
    template <int BITS>
    static constexpr int kCentred = 0;
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    using Ints = Lanes<4>::Ints;

    static inline Bytes load(const uint8_t* from) {
        Bytes x;
        __builtin_memcpy(&x, from, sizeof x);
        return x;
    }

    static inline Floats<4> load_scales(const uint16_t* from) {
        return from_float16<4>(Lanes<4>::Unsigned{from[0], from[1], from[2], from[3]});
    }

    template <int BITS>
    static inline Bytes unpack(Bytes x, int part) {
        if constexpr (BITS == 8) return x;
        return part ? x >> 4 : x & 15;
    }

    template <int BITS>
    static inline Ints dot4(Ints sum, Bytes weights, int32_t inputs) {
        int8_t x[4];
        __builtin_memcpy(x, &inputs, sizeof x);
        using Unsigned = Lanes<4>::Unsigned;
        for (int i = 0; i < 4; ++i) sum += (Ints)((Unsigned)weights >> (8 * i) & 255u) * static_cast<int32_t>(x[i]);
        return sum;
    }

    // One rounding, as the processors' own instructions do it, where there is one.
    static inline Floats<4> fma(Floats<4> a, Floats<4> b, Floats<4> c) {
        Floats<4> sum;
        for (int i = 0; i < 4; ++i) sum[i] = __builtin_fmaf(a[i], b[i], c[i]);
        return sum;
    }
};

}  // namespace

const codemill::ProductKernels* codemill::product_kernels_plain() { return &kProductKernels<Plain>; }
