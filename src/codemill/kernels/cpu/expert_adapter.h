// Products with the experts of a mixture whose weights are frozen, plain or packed, with low-rank updates beside them.
// See kernels/expert_adapter.py.
//
// Letters: N rows, P pairs of a token and an expert, E experts, K inputs, M outputs, r rank, D model, F ffn,
// k experts of a token.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matrix.h"

namespace codemill {

// out = x weight^T + low second^T, low = scale * (x first^T), for the rows of each expert. Backwards, the gradient of x is
// such a product too, with the weight as it is. Numbers are bf16 where it does not say otherwise; K, M, r are multiples
// of 32.
struct AdaptedProduct {
    const uint16_t* x;       // [N, K]
    const int64_t* tokens;   // [P]: the row of x of each pair; null where that is the pair
    const int64_t* starts;   // [E + 1]: where the pairs of each expert begin
    const uint16_t* first;   // [E, r, K], or null
    const uint16_t* second;  // [E, M, r]
    uint16_t* low;           // [P, r], written
    uint16_t* out;           // [P, M]
    Matrix weight;           // of the first expert: [M, K], or [K, M] where it is transposed
    int32_t num_experts, num_inputs, num_outputs, rank, transposed;
    float scale;
};

// out fp32 [E, r, M] = low^T x, summed over the pairs of each expert; zero for one that has none.
struct AdapterGradient {
    const uint16_t* low;    // [P, r]
    const uint16_t* x;      // [N, M]
    const int64_t* tokens;  // as above
    const int64_t* starts;
    float* out;
    int32_t num_experts, num_columns, rank;
};

// silu(gate) * up, forward and backward. Backward also gives the activations again.
struct Activation {
    const uint16_t* hidden;  // [P, 2F]: gate and up
    uint16_t* act;           // [P, F], written
    // The rest is for backward.
    const uint16_t* gradient;   // [P, F]: of the activations, but for `scales`
    const float* scales;        // fp32 [P]: of what each expert yields
    uint16_t* hidden_gradient;  // [P, 2F], written
    float* scale_gradient;      // fp32 [P], written
    int64_t num_pairs;
    int32_t ffn;
};

// out fp32 [N, D]: of each token the sum of its rows, by `scales` where they are not null.
struct Combination {
    const uint16_t* rows;   // [P, D]
    const int64_t* places;  // [N, k]: where they are
    const float* scales;    // fp32 [N, k], or null
    float* out;
    int64_t num_tokens;
    int32_t top_k, hidden_size;
};

struct ExpertAdapterKernels {
    size_t (*product_scratch)(const AdaptedProduct& product, int expert);  // floats
    void (*product)(const AdaptedProduct& product, int expert, float* scratch);
    size_t (*gradient_scratch)(const AdapterGradient& gradient, int expert);
    void (*gradient)(const AdapterGradient& gradient, int expert, float* scratch);
    void (*activate)(const Activation& activation, size_t first, size_t last);
    void (*combine)(const Combination& combination, size_t first, size_t last);
};

// Null where the processor has no AMX.
const ExpertAdapterKernels* expert_adapter_kernels_amx();

}  // namespace codemill
