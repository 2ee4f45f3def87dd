// For every processor: vectors of four floats, which SSE2 and NEON have.
#include "paged_attention_variant.h"

const codemill::Kernels* codemill::kernels_plain(int head_dim, bool is_bf16) { return kernels<4>(head_dim, is_bf16); }
