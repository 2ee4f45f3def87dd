// For every processor: vectors of four floats, which SSE2 and NEON have; and the choice of a variant.
#include "row_kernels_variant.h"

const codemill::RowKernels* codemill::row_kernels_plain() { return &kRowKernels<4>; }

const codemill::RowKernels& codemill::row_kernels(int max_lanes) {
    const RowKernels* kernels = nullptr;
    if (max_lanes >= 16) kernels = row_kernels_avx512();
    if (!kernels && max_lanes >= 8) kernels = row_kernels_avx2();
    return kernels ? *kernels : *row_kernels_plain();
}
