// For every processor: vectors of four floats, which SSE2 and NEON have.
#include "expert_training_variant.h"

const codemill::ExpertKernels* codemill::expert_kernels_plain() { return &kExpertKernels<4>; }
