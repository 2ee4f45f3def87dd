// For aarch64 with dot products of bytes (ARMv8.2 and later).
#include "product.h"

#include "targets.h"

#if HAS_ARM_EXTENSIONS

#include <arm_neon.h>

#include <utility>

#include "processor.h"

BEGIN_TARGET("arch=armv8.2-a+dotprod")
#include "product_variant.h"

namespace {

struct Neon {
    static constexpr int kLanes = 4;
    static constexpr int kMaxRows = 4;  // a block takes four registers a row, and there are 32
    static constexpr int kPanelRows = 6, kPanelBlocks = 1;
    // 8-bit weights are made signed, as the instruction takes them.
    template <int BITS>
    static constexpr int kCentred = BITS == 8 ? 128 : 0;
    using Bytes = uint8x16_t;
    using Ints = Lanes<4>::Ints;

    static inline Bytes load(const uint8_t* from) { return vld1q_u8(from); }

    static inline Floats<4> load_scales(const uint16_t* from) {
        return (Floats<4>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
    }

    template <int BITS>
    static inline Bytes unpack(Bytes x, int part) {
        if constexpr (BITS == 8) return veorq_u8(x, vdupq_n_u8(128));
        return part ? vshrq_n_u8(x, 4) : vandq_u8(x, vdupq_n_u8(15));
    }

    template <int BITS>
    static inline Ints dot4(Ints sum, Bytes weights, int32_t inputs) {
        const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(inputs));
        return (Ints)vdotq_s32((int32x4_t)sum, vreinterpretq_s8_u8(weights), x);
    }

    static inline Floats<4> fma(Floats<4> a, Floats<4> b, Floats<4> c) {
        return (Floats<4>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
    }
};

}  // namespace
END_TARGET

const codemill::ProductKernels* codemill::product_kernels_neon() {
    static const bool supported = has_dot_products();
    return supported ? &kProductKernels<Neon> : nullptr;
}

#else

const codemill::ProductKernels* codemill::product_kernels_neon() { return nullptr; }

#endif
