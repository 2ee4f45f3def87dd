// For every processor: vectors of four floats, which SSE2 and NEON have.
#include "paged_attention_variant.h"

const codemill::AttentionKernels* codemill::attention_kernels_plain(int head_dim, Dtype cache) {
    return kernels<4>(head_dim, cache);
}
