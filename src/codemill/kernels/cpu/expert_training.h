// The experts of a mixture in training: forward, and backward by hand. See kernels/expert_training.py.
//
// Letters: N tokens, P pairs of a token and an expert, D model, E experts, F ffn, k experts of a token.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codemill {

// Numbers are bf16 where it does not say otherwise. D and F are multiples of 32.
struct ExpertPass {
    const uint16_t* x;       // [N, D]
    const void* gate_up;     // [E, 2F, D], fp32 or bf16
    const void* down;        // [E, D, F], the same
    const int64_t* tokens;   // [P], expert after expert
    const int64_t* starts;   // [E + 1]: where the pairs of each begin
    uint16_t* hidden;        // [P, 2F]: gate and up; forward writes it, backward reads it
    uint16_t* rows;          // [P, D]: what each expert yields; in backward its gradient of x, or null
    // The rest is for backward.
    const uint16_t* gradient;  // [N, D]
    const float* scales;       // fp32 [P]: of what each expert yields
    float* scale_gradient;     // fp32 [P]
    void* gate_up_gradient;    // as the weights, or null; of experts without tokens it is left alone
    void* down_gradient;
    int32_t num_experts, hidden_size, ffn, weights_are_bf16;
};

struct ExpertKernels {
    size_t (*scratch_floats)(const ExpertPass& pass, int expert);
    void (*forward)(const ExpertPass& pass, int expert, float* scratch);
    void (*backward)(const ExpertPass& pass, int expert, float* scratch);
    // out fp32 [D] = the sum over k of scales[i] * rows[places[i]]; without scales if they are null.
    void (*combine)(const uint16_t* rows, const int64_t* places, const float* scales, int count, int size, float* out);
};

// Null where the processor has no AMX.
const ExpertKernels* expert_kernels_amx();

}  // namespace codemill
